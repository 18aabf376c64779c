"""Maps pixel values to grey levels in [0, 1]: straight lines, windows, lookup tables and value ranges (PS3.3 C.11).

Nothing here reads a whole DICOM header. `rendering` decides which of these maps a frame needs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from cyclic_cli.config import check_window
from cyclic_cli.errors import Rejected
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
    """The unclipped line of a LINEAR (PS3.3 C.11.2.1.2.1, width above 1) or LINEAR_EXACT (C.11.2.1.3.2) window."""
    if function == "LINEAR_EXACT":
        return Line(1 / width, 0.5 - center / width)
    return Line(1 / (width - 1), 0.5 - (center - 0.5) / (width - 1))


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Map values to [0, 1] by a window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Of any shape, after the modality transform.
        center: Window Center, in the same unit.
        width: Window Width, above 0; at least 1 for LINEAR.
        function: LINEAR, LINEAR_EXACT or SIGMOID; any other name is treated as LINEAR.
    """
    if function == "SIGMOID":
        shifted = np.clip((values.astype(np.float32) - np.float32(center)) / np.float32(width), -20, 20)
        return (1 / (1 + np.exp(-4 * shifted))).astype(np.float32)
    if function != "LINEAR_EXACT" and width <= 1:  # the formula divides by width - 1, and a width of 1 is a threshold
        return (values > center - 0.5).astype(np.float32)
    return clipped(window_line(center, width, function))(values)


def range_line(low: float, high: float, inverse: bool) -> Line:
    """The line that maps `low` to 0 and `high` to 1, or the other way round if `inverse`."""
    span = max(high - low, 1e-30)
    return Line(-1 / span, high / span) if inverse else Line(1 / span, -low / span)


def value_range(values: np.ndarray, setting: object) -> tuple[float, float]:
    """The minimum and maximum of finite values for `full`, else PERCENTILES. Raises Rejected: blank."""
    if values.size == 0:
        raise Rejected("blank")
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


def voi_table(item: Dataset, signed: bool, big_endian: bool) -> Shades:
    """An item of the VOI LUT Sequence, scaled to [0, 1] by the largest entry that the descriptor's bits allow."""
    table, largest = lookup_table(item, signed, big_endian), np.float32(2 ** int(item.LUTDescriptor[2]) - 1)
    return lambda values: np.clip(table(values) / largest, 0, 1)


def lookup_table(item: Dataset, signed: bool, big_endian: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A Modality or VOI LUT (PS3.3 C.11.1.1 and C.11.2.1.1) as a function from values to its entries, as float32.

    Values below the first mapped value take the first entry. Values above the last mapped value take the last entry.

    Args:
        item: A sequence item with LUT Descriptor and LUT Data.
        signed: Whether the values may be negative.
        big_endian: Byte order of the file, which pydicom does not change in words (OW).
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    data = item["LUTData"].value
    if isinstance(data, bytes):
        data = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2" if big_endian else "<u2")
    words = np.atleast_1d(np.asarray(data)).astype("<u2")
    if bits <= 8 and 1 < entries <= 2 * len(words) <= entries + 1:  # two entries per word, the first in the low byte
        words = words.view(np.uint8)
    table = words[:entries].astype(np.float32)
    if first > 2**15 - 1 and signed:
        first -= 2**16  # the descriptor was read unsigned although the values are signed
    last = len(table) - 1
    return lambda values: table[np.clip(np.subtract(values, first, dtype=np.float64), 0, last).astype(np.int64)]


def plain_shades(stored: np.ndarray, bits: int | None, setting: str, factor: int) -> np.ndarray:
    """Turn pixel values without a DICOM header into grey levels.

    Args:
        stored: (H, W).
        bits: Bit depth whose full range is shown; None to derive the range from the values and `setting`.
        setting: The `--window` setting: CENTER/WIDTH, `full`, or any other name for PERCENTILES.
        factor: Side in pixels of the cells over which grey levels are averaged, as in `Rendering.shown`.

    Returns:
        (⌈H / factor⌉, ⌈W / factor⌉) float32 in [0, 1].

    Raises:
        Rejected: blank, where no value is finite.
    """
    if bits is not None:
        return show_line(stored, Line(1 / (2**bits - 1)), factor)
    requested = check_window(setting)
    if isinstance(requested, tuple):
        return in_strips(stored, lambda values: window(values, *requested), factor)
    finite = stored[np.isfinite(stored)] if stored.dtype.kind == "f" else stored
    return show_line(stored, range_line(*value_range(finite, requested), inverse=False), factor)
