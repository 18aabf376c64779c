"""Stored values of one frame → grey levels in [0, 1], as a viewer shows them: steps 2 to 7 of the package's list.

`Rendering` reads what the header says of a frame, once; `Rendering.shown` turns stored values into grey, and averages
them where only a small sample is wanted. A chain that is no straight line is first run over every stored value there
is, and then looked up: the same code, over fewer values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian

from cyclic_cli.config import check_window
from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom.header import first_number, whole_number
from cyclic_cli.imaging.dicom.strips import Shades, cell_means, in_strips, looked_up, quantiles

PERCENTILES = (0.5, 99.5)  # of the pixels that are not padding, where the file states no window
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L
HOUNSFIELD = {"lung": (-600, 1500), "bone": (400, 1800), "brain": (40, 80), "mediastinum": (40, 400)}
"""Centre and width of the windows with a name, in Hounsfield units: they are for CT."""
INVISIBLE = 0.05  # grey levels of 255
MEAN_BOUND, TAIL_BOUND, TAIL = 0.3, 2.0, 99.9
"""What averaging before clipping may cost: grey levels of 255 on average, and at this percentile."""
ROUGHEST = 20.0
"""Grey levels at that percentile by which cells may differ from their neighbours' mean; a fifth reaches the sample."""
PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
"""What fills an image up to its rectangle, one end and the other (PS3.3 C.7.5.1.1.2 and C.7.6.24)."""


@dataclass(frozen=True)
class Line:
    """The straight line `slope` · value + `intercept`."""

    slope: float = 1.0
    intercept: float = 0.0

    def after(self, first: "Line") -> "Line":
        """This line of what `first` gives."""
        return Line(self.slope * first.slope, self.slope * first.intercept + self.intercept)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values of any kind as float32, computed in float64 where float32 does not hold them."""
        kind = np.float64 if values.dtype.kind != "f" and values.dtype.itemsize > 2 else np.float32
        result = np.multiply(values, kind(self.slope), dtype=kind)
        result += kind(self.intercept)
        return result.astype(np.float32, copy=False)


class Rendering:
    """What a header says of how one of its frames is shown.

    Args:
        header: The file's header.
        frame: Number from 0.
        window: The `--window` setting.
    """

    def __init__(self, header: Dataset, frame: int, window: str) -> None:
        self._header = header
        groups = _frame_groups(header, frame)
        self._photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2")).strip()
        self._transform = _group(groups, "PixelValueTransformationSequence") or header
        self._stated = _group(groups, "FrameVOILUTSequence") or header
        self._inverse = _is_inverse(header, self._photometric)
        self._window = check_window(window)
        self._modality = _modality_line(self._transform)
        self._padding_names = next(names for pixels, names in PADDING.items() if pixels in header)
        self._big_endian = header.file_meta.TransferSyntaxUID == ExplicitVRBigEndian

    @property
    def straight(self) -> "Line | None":
        """Stored value to grey before it is clipped, where that is a line that the header or the user states.

        None too where padding has to be kept out, and for colour.
        """
        if self._photometric not in ("MONOCHROME1", "MONOCHROME2") or self._padding_names[0] in self._header:
            return None
        window = self._window_line()
        return window.after(self._modality) if window and self._modality else None

    def shown(self, stored: np.ndarray, factor: int = 1) -> np.ndarray:
        """A frame as a viewer shows it.

        Args:
            stored: (H, W), or (H, W, 3) for RGB.
            factor: Means of `factor` × `factor` pixels are returned; of fewer at the right and lower edge.

        Returns:
            (⌈H / factor⌉, ⌈W / factor⌉) float32 in [0, 1], 0 black.
        """
        if stored.ndim == 3:
            return in_strips(stored, self._colour(stored), factor)
        if self._photometric == "PALETTE COLOR":
            return in_strips(stored, looked_up(stored, self._palette), factor)
        padding = self._padding(stored)
        grey = self._grey(stored, padding)
        if padding is None:
            return _show_line(stored, grey, factor) if isinstance(grey, Line) else in_strips(stored, grey, factor)
        low, high = padding
        curve = _clipped(grey) if isinstance(grey, Line) else grey

        def masked(strip: np.ndarray) -> np.ndarray:
            shades = curve(strip)
            shades[(strip >= low) & (strip <= high)] = 0
            return shades

        return in_strips(stored, masked, factor)

    # ------------------------------------------------------------------------------------------------ grey

    def _grey(self, stored: np.ndarray, padding: tuple[Any, Any] | None) -> Line | Shades:
        """Steps 3 to 6: stored values to grey, padding or not; a line is still to be clipped."""
        chosen: Line | Shades | None = self._window_line() or self._window_curve(stored)
        if chosen is None:
            chosen = _range_line(*self._range(stored, padding), self._inverse)
        if isinstance(chosen, Line) and self._modality:
            return chosen.after(self._modality)
        curve = _clipped(chosen) if isinstance(chosen, Line) else chosen
        return looked_up(stored, lambda values: curve(self._meaning(values)))

    def _meaning(self, stored: np.ndarray) -> np.ndarray:
        """Step 3: what stored values mean (Hounsfield units, optical density ...), as float32."""
        if self._modality:
            return self._modality(stored)
        table = _table(self._transform.ModalityLUTSequence[0], stored.dtype.kind == "i", self._big_endian)
        return table(stored)

    def _window_line(self) -> Line | None:
        """The window that the user asks for or the file states, with step 6; None where it is no straight line."""
        stated = self._asked_window() or (None if self._asks_for_values or self._has_lut else self._stated_window())
        if stated is None:
            return None
        center, width, function = stated
        if function == "SIGMOID" or (function != "LINEAR_EXACT" and width <= 1):
            return None
        line = window_line(center, width, function)
        return Line(-1, 1).after(line) if self._inverse else line

    def _window_curve(self, stored: np.ndarray) -> Shades | None:
        """A VOI LUT, or a window that is no straight line, with step 6; None where nothing is asked for or stated."""
        asked = self._asked_window()
        if asked is None and self._asks_for_values:
            return None
        if asked is None and self._has_lut:
            signed = float(self._meaning(np.array([stored.min()]))[0]) < 0
            return self._turned(_voi_table(self._stated.VOILUTSequence[0], signed, self._big_endian))
        stated = asked or self._stated_window()
        if stated is None:
            return None
        return self._turned(lambda values: window(values, *stated))

    def _turned(self, curve: Shades) -> Shades:
        return (lambda values: 1 - curve(values)) if self._inverse else curve

    @property
    def _has_lut(self) -> bool:
        return bool(self._stated.get("VOILUTSequence"))

    @property
    def _asks_for_values(self) -> bool:
        return self._window in ("full", "percentile")

    def _asked_window(self) -> tuple[float, float, str] | None:
        """Centre and width of the setting; names are for CT alone."""
        if isinstance(self._window, tuple):
            return *self._window, "LINEAR"
        if self._window in HOUNSFIELD and str(self._header.get("Modality", "")).strip().upper() == "CT":
            return *HOUNSFIELD[self._window], "LINEAR"
        return None

    def _stated_window(self) -> tuple[float, float, str] | None:
        """The first window of the file."""
        center, width = first_number(self._stated.get("WindowCenter")), first_number(self._stated.get("WindowWidth"))
        if center is None or width is None or width <= 0 or not np.isfinite([center, width]).all():
            return None
        return center, width, str(self._stated.get("VOILUTFunction") or "LINEAR").strip()

    def _range(self, stored: np.ndarray, padding: tuple[Any, Any] | None) -> tuple[float, float]:
        """Lowest and highest value to be shown, of what is not padding."""
        line = self._modality if stored.dtype.kind in "iu" else None
        values = stored if line else self._meaning(stored)
        if padding is not None:
            values = values[(stored < padding[0]) | (stored > padding[1])]
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        low, high = _ends(values, self._window)
        if line:
            low, high = sorted(line.slope * end + line.intercept for end in (low, high))
        return low, high

    def _padding(self, stored: np.ndarray) -> tuple[Any, Any] | None:
        """Step 2: the range of stored values that fills the image up to its rectangle; None where there is none."""
        value, limit = (first_number(self._header.get(name)) for name in self._padding_names)
        if value is None or np.isnan(value):  # what is no number becomes black by itself
            return None
        # US and SS are both possible, and files disagree with themselves: compare in the stored values' own kind.
        ends = np.array([value, value if limit is None else limit])
        low, high = np.sort((ends if stored.dtype.kind == "f" else ends.astype(np.int64)).astype(stored.dtype))
        return None if low <= stored.min() and stored.max() <= high else (low, high)

    # ---------------------------------------------------------------------------------------------- colour

    def _palette(self, indices: np.ndarray) -> np.ndarray:
        if self._big_endian:
            _swap_palette(self._header)
        colour = apply_color_lut(indices, self._header)
        return _luminance(colour, 2 ** (8 * colour.dtype.itemsize) - 1)

    def _colour(self, stored: np.ndarray) -> Shades:
        allocated = 8 * stored.dtype.itemsize
        largest = 2 ** whole_number(self._header, "BitsStored", allocated) - 1
        return lambda strip: _luminance(strip, largest)


def _frame_groups(header: Dataset, frame: int) -> list[Dataset]:
    """The functional groups that hold for a frame of an enhanced image: its own, then the shared ones."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    return ([own[frame]] if frame < len(own) else []) + list(shared[:1])


def _group(groups: list[Dataset], name: str) -> Dataset | None:
    for group in groups:
        if group.get(name):
            return group[name].value[0]  # type: ignore[no-any-return]
    return None


def _is_inverse(header: Dataset, photometric: str) -> bool:
    """Step 6: whether low values are white. A Presentation LUT Shape says it anew, it never inverts a second time."""
    shape = str(header.get("PresentationLUTShape") or "").strip()
    return shape == "INVERSE" if shape in ("INVERSE", "IDENTITY") else photometric == "MONOCHROME1"


def _modality_line(transform: Dataset) -> Line | None:
    """Rescale Slope and Intercept (PS3.3 C.11.1.1.2); None where a Modality LUT takes their place."""
    if transform.get("ModalityLUTSequence"):
        return None
    slope, intercept = first_number(transform.get("RescaleSlope")), first_number(transform.get("RescaleIntercept"))
    return Line(1.0 if slope is None else slope, intercept or 0.0)


def window_line(center: float, width: float, function: str = "LINEAR") -> Line:
    """LINEAR (PS3.3 C.11.2.1.2.1, of a width above 1) or LINEAR_EXACT (C.11.2.1.3.2) before they are clipped."""
    if function == "LINEAR_EXACT":
        return Line(1 / width, 0.5 - center / width)
    return Line(1 / (width - 1), 0.5 - (center - 0.5) / (width - 1))


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Samples to [0, 1] by a window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Of any shape, after the modality transform.
        center: Window Center, in the same unit.
        width: Window Width, above 0; LINEAR asks for at least 1.
        function: LINEAR, LINEAR_EXACT or SIGMOID; anything else counts as LINEAR.
    """
    if function == "SIGMOID":
        shifted = np.clip((values.astype(np.float32) - np.float32(center)) / np.float32(width), -20, 20)
        return (1 / (1 + np.exp(-4 * shifted))).astype(np.float32)
    if function != "LINEAR_EXACT" and width <= 1:  # the formula divides by width - 1; 1 is a threshold
        return (values > center - 0.5).astype(np.float32)
    return _clipped(window_line(center, width, function))(values)


def _range_line(low: float, high: float, inverse: bool) -> Line:
    span = max(high - low, 1e-30)
    return Line(-1 / span, high / span) if inverse else Line(1 / span, -low / span)


def _ends(values: np.ndarray, setting: object) -> tuple[float, float]:
    """Lowest and highest of finite values (`full`), else robust percentiles."""
    if values.size == 0:
        raise Rejected("blank")
    low, high = quantiles(values, *PERCENTILES) if setting != "full" else (0.0, 0.0)
    if high <= low:  # nearly everything has one value: a mark on an empty field
        low, high = float(values.min()), float(values.max())
    return low, high


def _clipped(line: Line) -> Shades:
    """A line whose values are kept in [0, 1]; a value that is no number gives 0."""

    def shades(values: np.ndarray) -> np.ndarray:
        grey = line(values)
        np.clip(grey, 0, 1, out=grey)
        return np.nan_to_num(grey, copy=False) if values.dtype.kind == "f" else grey

    return shades


def _show_line(stored: np.ndarray, line: Line, factor: int) -> np.ndarray:
    """A frame by a line that is clipped. The line of a mean is the mean of the line, once its values are clipped.

    Integers are clipped and averaged as they are, at whole values: half a stored value must not show.
    """
    few_bits = stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2
    if factor > 1 and few_bits and 0 < abs(line.slope) * 255 / 2 <= INVISIBLE:
        low, high = sorted((end - line.intercept) / line.slope for end in (0, 1))
        return np.clip(line(cell_means(stored, factor, low, high)), 0, 1)
    return in_strips(stored, _clipped(line), factor)


def _leaves_range(grey: np.ndarray) -> bool:
    return bool(grey.min() < -1e-6 or grey.max() > 1 + 1e-6)


def _voi_table(item: Dataset, signed: bool, big_endian: bool) -> Shades:
    """An item of the VOI LUT Sequence; its entries reach up to what the bits of the descriptor hold."""
    table, largest = _table(item, signed, big_endian), np.float32(2 ** int(item.LUTDescriptor[2]) - 1)
    return lambda values: np.clip(table(values) / largest, 0, 1)


def _table(item: Dataset, signed: bool, big_endian: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A Modality or VOI LUT (PS3.3 C.11.1.1 and C.11.2.1.1): values of any kind to its entries, as float32.

    Samples below the first mapped one take the first entry, above the last one the last.

    Args:
        item: LUT Descriptor and LUT Data.
        signed: Whether the values may be negative.
        big_endian: Byte order of the file: pydicom hands words (OW) out as they stand there.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    data = item["LUTData"].value
    if isinstance(data, bytes):
        data = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2" if big_endian else "<u2")
    words = np.atleast_1d(np.asarray(data)).astype("<u2")
    if bits <= 8 and 1 < entries <= 2 * len(words) <= entries + 1:  # two to a word, the first in its low byte
        words = words.view(np.uint8)
    table = words[:entries].astype(np.float32)
    if first > 2**15 - 1 and signed:
        first -= 2**16  # the descriptor was read unsigned although the values are signed
    last = len(table) - 1
    return lambda values: table[np.clip(np.subtract(values, first, dtype=np.float64), 0, last).astype(np.int64)]


def _swap_palette(header: Dataset) -> None:
    """Turn a palette's 16-bit words, which pydicom hands out as they stand in the file, to little endian."""
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        words = header.get(name)
        if isinstance(words, bytes) and int(header[f"{colour}PaletteColorLookupTableDescriptor"].value[2]) > 8:
            header[name].value = np.frombuffer(words, ">u2").astype("<u2").tobytes()


def _luminance(colour: np.ndarray, largest: int) -> np.ndarray:
    """(..., 3) numbers up to `largest` to (...) float32 in [0, 1]."""
    red, green, blue = (np.multiply(colour[..., number], np.float32(weight / largest), dtype=np.float32)
                        for number, weight in enumerate(LUMINANCE))  # fmt: skip
    red += green
    red += blue
    return np.clip(red, 0, 1, out=red)


def plain_shades(stored: np.ndarray, bits: int | None, setting: str, factor: int) -> np.ndarray:
    """Numbers without a DICOM header as grey.

    Args:
        stored: (H, W).
        bits: Whose whole range is shown; None for the range of the numbers themselves.
        setting: The `--window` setting: CENTER/WIDTH, `full`, or robust percentiles for every other.
        factor: As of `Rendering.shown`.

    Returns:
        (⌈H / factor⌉, ⌈W / factor⌉) float32 in [0, 1].
    """
    if bits is not None:
        return _show_line(stored, Line(1 / (2**bits - 1)), factor)
    asked = check_window(setting)
    if isinstance(asked, tuple):
        return in_strips(stored, lambda values: window(values, *asked), factor)
    finite = stored[np.isfinite(stored)] if stored.dtype.kind == "f" else stored
    return _show_line(stored, _range_line(*_ends(finite, asked), inverse=False), factor)


# ------------------------------------------------------------------------------------------------------ reduced frames


def clips_little(line: Line, cells: np.ndarray) -> bool:
    """Whether a frame that was reduced before it is clipped to [0, 1] looks like one that was clipped first.

    A cell's pixels lie, but for noise, between the lowest and the highest of the cells around it. The mean of clipped
    values is then nearest to the clipped mean when they are all equal and farthest from it when they all lie at either
    end (Edmundson and Madansky), which bounds the error of each cell.

    Args:
        line: Stored value to grey.
        cells: (H, W) stored values, reduced.
    """
    grey = line(cells)
    if not _leaves_range(grey):
        return True
    low, high = _around(grey, np.minimum), _around(grey, np.maximum)
    span = np.maximum(high - low, np.float32(1e-12))
    share = np.clip((grey - low) / span, 0, 1)  # of a cell's pixels at the high end, were they all at either end
    over = share * np.maximum(high - 1, 0) + (1 - share) * np.maximum(low - 1, 0) - np.maximum(grey - 1, 0)
    under = share * np.maximum(-high, 0) + (1 - share) * np.maximum(-low, 0) - np.maximum(-grey, 0)
    error = 255 * np.maximum(over, under)
    return bool(error.mean() <= MEAN_BOUND and np.percentile(error, TAIL) <= TAIL_BOUND)


def is_smooth(line: Line, cells: np.ndarray) -> bool:
    """Whether a reduced frame (H, W) has no edges so sharp that they alias."""
    grey = np.clip(line(cells), 0, 1)
    around = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]) / 4
    return bool(255 * np.percentile(np.abs(grey[1:-1, 1:-1] - around), TAIL) <= ROUGHEST)


def _around(cells: np.ndarray, choose: Callable[..., np.ndarray]) -> np.ndarray:
    """The lowest or highest of each cell and its eight neighbours."""
    for axis in (0, 1):
        cells = np.swapaxes(cells, 0, axis)
        chosen = cells.copy()
        choose(chosen[1:], cells[:-1], out=chosen[1:])
        choose(chosen[:-1], cells[1:], out=chosen[:-1])
        cells = np.swapaxes(chosen, 0, axis)
    return cells
