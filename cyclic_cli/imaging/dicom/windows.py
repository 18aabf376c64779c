"""Maps pixel values to grey levels in [0, 1]: straight lines, windows, lookup tables and value ranges (PS3.3 C.11).

Nothing here reads a whole DICOM header. `rendering` decides which of these maps a frame needs.
"""

from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom.header import numbers, value_of
from cyclic_cli.imaging.dicom.strips import Shades, cell_means, in_strips, quantiles

PERCENTILES = (0.5, 99.5)  # range of the pixels that are not padding, where the file states no window
INVISIBLE = 0.05  # largest invisible error, in grey levels of 255


@dataclass(frozen=True)
class Line:
    """The straight line `slope` · value + `intercept`."""

    slope: float = 1.0
    intercept: float = 0.0

    def after(self, first: "Line") -> "Line":
        """The composition of both lines, where `first` is applied first."""
        return Line(self.slope * first.slope, self.slope * first.intercept + self.intercept)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Apply the line to values of any type. The result is float32, computed in float64 for wide integers."""
        kind = np.float64 if values.dtype.kind != "f" and values.dtype.itemsize > 2 else np.float32
        result = np.multiply(values, kind(self.slope), dtype=kind)
        result += kind(self.intercept)
        return result.astype(np.float32, copy=False)


def window_line(center: float, width: float, function: str = "LINEAR") -> Line:
    """The unclipped line of a LINEAR (PS3.3 C.11.2.1.2.1) or LINEAR_EXACT (C.11.2.1.3.2) window.

    A LINEAR window must be wider than 1. A narrower one, which the standard does not allow, is taken as LINEAR_EXACT.
    """
    if function == "LINEAR_EXACT" or width < 1:
        return Line(1 / width, 0.5 - center / width)
    return Line(1 / (width - 1), 0.5 - (center - 0.5) / (width - 1))


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Map values to [0, 1] by a window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Of any shape, after the modality transform.
        center: Window Center, in the same unit.
        width: Window Width, above 0.
        function: LINEAR, LINEAR_EXACT or SIGMOID; any other name is treated as LINEAR.
    """
    if function == "SIGMOID":
        shifted = np.clip((values.astype(np.float32) - np.float32(center)) / np.float32(width), -20, 20)
        return (1 / (1 + np.exp(-4 * np.nan_to_num(shifted, nan=-20)))).astype(np.float32)
    if function != "LINEAR_EXACT" and width == 1:  # the formula divides by width - 1; this window is a threshold
        return (values > center - 0.5).astype(np.float32)
    return clipped(window_line(center, width, function))(values)


def range_line(low: float, high: float, inverse: bool) -> Line:
    """The line that maps `low` to 0 and `high` to 1, or the other way round if `inverse`."""
    span = max(high - low, 1e-30)
    return Line(-1 / span, high / span) if inverse else Line(1 / span, -low / span)


def value_range(values: np.ndarray, setting: object) -> tuple[float, float]:
    """The minimum and maximum of finite values for `full`, else PERCENTILES. Raises Rejected: blank."""
    if values.size == 0:
        raise Rejected("blank", "no pixel has a finite value")
    low, high = quantiles(values, *PERCENTILES) if setting != "full" else (0.0, 0.0)
    if high <= low:  # nearly all pixels are equal, as for a mark on an empty field
        low, high = float(values.min()), float(values.max())
    return low, high


def clipped(line: Line) -> Shades:
    """The line, clipped to [0, 1]. NaN becomes 0."""

    def shades(values: np.ndarray) -> np.ndarray:
        grey = line(values)
        np.clip(grey, 0, 1, out=grey)
        return np.nan_to_num(grey, copy=False) if values.dtype.kind == "f" else grey

    return shades


def show_line(stored: np.ndarray, line: Line, factor: int) -> np.ndarray:
    """Map a frame to grey levels by a clipped line, and average the grey levels over cells of side `factor`.

    Integers are clipped and averaged first, and mapped by the line afterwards, which is faster. The result is the same
    but for the rounding of the clipping limits to integers. It is done only where that rounding is invisible.
    """
    few_bits = stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2
    if factor > 1 and few_bits and 0 < abs(line.slope) * 255 / 2 <= INVISIBLE:
        low, high = sorted((end - line.intercept) / line.slope for end in (0, 1))
        return np.clip(line(cell_means(stored, factor, low, high)), 0, 1)
    return in_strips(stored, clipped(line), factor)


@dataclass(frozen=True)
class Table:
    """A lookup table: a Modality or VOI LUT (PS3.3 C.11.1.1 and C.11.2.1.1), or a colour of a palette (C.7.6.3.1.5).

    `entries` (n,) are float32, and `first` is the value that is mapped to the first of them. Values below take the
    first entry, and values above the last mapped value take the last entry. `largest` is the largest entry that the
    bits of the table allow.
    """

    entries: np.ndarray
    first: int
    largest: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The entries of values of any shape, float32."""
        places = np.subtract(values, self.first, dtype=np.float64)
        return self.entries[np.clip(np.nan_to_num(places, copy=False), 0, len(self.entries) - 1).astype(np.int64)]

    def for_values(self, lowest: float, highest: float) -> "Table":
        """The table for an image with these values, where `first` may have been read with the wrong sign (US or SS)."""
        if self.first >= 2**15 and (lowest < 0 or highest < self.first):
            return replace(self, first=self.first - 2**16)
        if self.first < 0 and lowest >= self.first + len(self.entries):
            return replace(self, first=self.first + 2**16)
        return self


def read_table(data: Dataset, descriptor: str, entries: str, big_endian: bool) -> Table | None:
    """A lookup table; None where a part of it is missing or damaged.

    Args:
        data: The dataset or item with the table.
        descriptor: Attribute with the number of entries, the first mapped value and the bits of an entry.
        entries: Attribute with the entries.
        big_endian: Byte order of the file, which pydicom does not change in words (OW).
    """
    stated = numbers(data, descriptor)
    words = _words(value_of(data, entries), big_endian)
    if len(stated) != 3 or not np.isfinite(stated).all() or not len(words):
        return None
    count, first, bits = (int(number) for number in stated)
    count = count % 2**16 or 2**16  # 0 stands for 65536; a count may have been read as a negative number
    if 1 < count <= 2 * len(words) <= count + 1:  # two entries per word, the first in the low byte
        words = words.view(np.uint8)
    words = words[:count]
    highest = int(words.max())
    if not 1 <= bits <= 16 or highest >= 2**bits:
        bits = max(8, highest.bit_length())
    elif highest < 2**8 < 2**bits:  # entries of 8 bits that are said to have more
        bits = 8
    return Table(words.astype(np.float32), first, float(2**bits - 1))


def _words(data: object, big_endian: bool) -> np.ndarray:
    """The data of a lookup table as uint16, in any representation that pydicom gives them; empty where damaged."""
    if isinstance(data, bytes):
        return np.frombuffer(data + b"\0" * (len(data) % 2), ">u2" if big_endian else "<u2").astype("<u2")
    try:
        return np.atleast_1d(np.asarray([] if data is None else data, dtype=np.int64)).astype("<u2")
    except (TypeError, ValueError, OverflowError):
        return np.empty(0, dtype="<u2")
