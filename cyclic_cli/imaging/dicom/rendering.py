"""Turns the stored values of one frame into grey levels in [0, 1], as a viewer shows them (steps 2 to 8 of `reading`).

`Rendering` reads the display attributes of a frame once. `Rendering.shown` turns stored values into grey levels, and
averages them over cells where only a small sample is needed. A non-linear chain of steps is computed once for every
possible stored value, and the frame is then mapped by this lookup table.
"""

from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian

from cyclic_cli.config import check_window
from cyclic_cli.imaging.dicom.header import first_number, whole_number
from cyclic_cli.imaging.dicom.strips import Shades, in_strips, looked_up
from cyclic_cli.imaging.dicom.windows import (
    Line,
    clipped,
    lookup_table,
    range_line,
    show_line,
    value_range,
    voi_table,
    window,
    window_line,
)

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's mode L
HOUNSFIELD = {"lung": (-600, 1500), "bone": (400, 1800), "brain": (40, 80), "mediastinum": (40, 400)}
"""Centre and width of the named windows in Hounsfield units, for CT only."""
PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
"""Attributes that state the two limits of the padding values (PS3.3 C.7.5.1.1.2 and C.7.6.24)."""


class Rendering:
    """The display attributes of one frame, and their application to stored values.

    Args:
        header: The file's header.
        frame: Number from 0.
        window: The `--window` setting.

    Raises:
        Rejected: broken_header.
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
    def straight(self) -> Line | None:
        """The line from stored values to unclipped grey levels, where the header or the user states a linear window.

        It is None for other windows, for colour, and where padding must be masked.
        """
        if self._photometric not in ("MONOCHROME1", "MONOCHROME2") or self._padding_names[0] in self._header:
            return None
        window = self._window_line()
        return window.after(self._modality) if window and self._modality else None

    def shown(self, stored: np.ndarray, factor: int = 1) -> np.ndarray:
        """Turn stored values into grey levels as a viewer shows them.

        Args:
            stored: (H, W), or (H, W, 3) for RGB.
            factor: Side in pixels of the cells over which grey levels are averaged; 1 for no averaging. Cells at the
                right and lower edge may have fewer pixels.

        Returns:
            (⌈H / factor⌉, ⌈W / factor⌉) float32 in [0, 1], where 0 is black.

        Raises:
            Rejected: blank, where no value is finite; broken_header.
        """
        if stored.ndim == 3:
            return in_strips(stored, self._colour(stored), factor)
        if self._photometric == "PALETTE COLOR":
            return in_strips(stored, looked_up(stored, self._palette), factor)
        padding = self._padding(stored)
        grey = self._grey(stored, padding)
        if padding is None:
            return show_line(stored, grey, factor) if isinstance(grey, Line) else in_strips(stored, grey, factor)
        low, high = padding
        curve = clipped(grey) if isinstance(grey, Line) else grey

        def masked(strip: np.ndarray) -> np.ndarray:
            shades = curve(strip)
            shades[(strip >= low) & (strip <= high)] = 0
            return shades

        return in_strips(stored, masked, factor)

    # ------------------------------------------------------------------------------------------------ grey

    def _grey(self, stored: np.ndarray, padding: tuple[Any, Any] | None) -> Line | Shades:
        """Steps 3 to 6: the map from stored values to grey levels, ignoring padding. A line is not yet clipped."""
        chosen: Line | Shades | None = self._window_line() or self._window_curve(stored)
        if chosen is None:
            chosen = range_line(*self._range(stored, padding), self._inverse)
        if isinstance(chosen, Line) and self._modality:
            return chosen.after(self._modality)
        curve = clipped(chosen) if isinstance(chosen, Line) else chosen
        return looked_up(stored, lambda values: curve(self._modality_values(values)))

    def _modality_values(self, stored: np.ndarray) -> np.ndarray:
        """Step 3: stored values after the modality transform (Hounsfield units, optical density ...), as float32."""
        if self._modality:
            return self._modality(stored)
        table = lookup_table(self._transform.ModalityLUTSequence[0], stored.dtype.kind == "i", self._big_endian)
        return table(stored)

    def _window_line(self) -> Line | None:
        """The line of the requested or stated window, including step 6; None where there is no linear window."""
        stated = self._requested_window() or (None if self._uses_range or self._has_lut else self._stated_window())
        if stated is None:
            return None
        center, width, function = stated
        if function == "SIGMOID" or (function != "LINEAR_EXACT" and width <= 1):
            return None
        line = window_line(center, width, function)
        return Line(-1, 1).after(line) if self._inverse else line

    def _window_curve(self, stored: np.ndarray) -> Shades | None:
        """The VOI LUT or non-linear window, including step 6; None where none is requested or stated."""
        requested = self._requested_window()
        if requested is None and self._uses_range:
            return None
        if requested is None and self._has_lut:
            signed = float(self._modality_values(np.array([stored.min()]))[0]) < 0
            return self._with_polarity(voi_table(self._stated.VOILUTSequence[0], signed, self._big_endian))
        stated = requested or self._stated_window()
        if stated is None:
            return None
        return self._with_polarity(lambda values: window(values, *stated))

    def _with_polarity(self, curve: Shades) -> Shades:
        """Step 6: the curve, inverted where the header says so."""
        return (lambda values: 1 - curve(values)) if self._inverse else curve

    @property
    def _has_lut(self) -> bool:
        return bool(self._stated.get("VOILUTSequence"))

    @property
    def _uses_range(self) -> bool:
        """Whether the setting asks for the range of the pixel values instead of the file's window."""
        return self._window in ("full", "percentile")

    def _requested_window(self) -> tuple[float, float, str] | None:
        """Centre, width and function of the window in the setting. Named windows apply to CT only."""
        if isinstance(self._window, tuple):
            return *self._window, "LINEAR"
        if self._window in HOUNSFIELD and str(self._header.get("Modality", "")).strip().upper() == "CT":
            return *HOUNSFIELD[self._window], "LINEAR"
        return None

    def _stated_window(self) -> tuple[float, float, str] | None:
        """Centre, width and function of the file's first window; None where there is no valid one."""
        center, width = first_number(self._stated.get("WindowCenter")), first_number(self._stated.get("WindowWidth"))
        if center is None or width is None or width <= 0 or not np.isfinite([center, width]).all():
            return None
        return center, width, str(self._stated.get("VOILUTFunction") or "LINEAR").strip()

    def _range(self, stored: np.ndarray, padding: tuple[Any, Any] | None) -> tuple[float, float]:
        """The lowest and highest value to be shown, from the pixels that are not padding."""
        line = self._modality if stored.dtype.kind in "iu" else None
        values = stored if line else self._modality_values(stored)
        if padding is not None:
            values = values[(stored < padding[0]) | (stored > padding[1])]
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        low, high = value_range(values, self._window)
        if line:
            low, high = sorted(line.slope * end + line.intercept for end in (low, high))
        return low, high

    def _padding(self, stored: np.ndarray) -> tuple[Any, Any] | None:
        """Step 2: the range of stored values that are padding. None where no pixel, or every pixel, is padding."""
        value, limit = (first_number(self._header.get(name)) for name in self._padding_names)
        if value is None or np.isnan(value):  # NaN pixels become black without a mask
            return None
        # Files contradict themselves on whether the attribute is signed (US or SS). Compare in the pixels' own type.
        ends = np.array([value, value if limit is None else limit])
        low, high = np.sort((ends if stored.dtype.kind == "f" else ends.astype(np.int64)).astype(stored.dtype))
        return None if low <= stored.min() and stored.max() <= high else (low, high)

    # ---------------------------------------------------------------------------------------------- colour

    def _palette(self, indices: np.ndarray) -> np.ndarray:
        """Step 8: palette indices of any shape to luminance in [0, 1]."""
        if self._big_endian:
            _swap_palette(self._header)
        colour = apply_color_lut(indices, self._header)
        return _luminance(colour, 2 ** (8 * colour.dtype.itemsize) - 1)

    def _colour(self, stored: np.ndarray) -> Shades:
        """Step 8: the function that maps strips of an RGB frame to luminance in [0, 1]."""
        allocated = 8 * stored.dtype.itemsize
        largest = 2 ** whole_number(self._header, "BitsStored", allocated) - 1
        return lambda strip: _luminance(strip, largest)


def _frame_groups(header: Dataset, frame: int) -> list[Dataset]:
    """The functional groups of a frame of an enhanced image: the per-frame group, then the shared group."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    return ([own[frame]] if frame < len(own) else []) + list(shared[:1])


def _group(groups: list[Dataset], name: str) -> Dataset | None:
    """The first item of the named sequence, from the first group that has it."""
    for group in groups:
        if group.get(name):
            return group[name].value[0]  # type: ignore[no-any-return]
    return None


def _is_inverse(header: Dataset, photometric: str) -> bool:
    """Step 6: whether low values are white.

    Presentation LUT Shape takes precedence over the photometric interpretation. The two never invert twice.
    """
    shape = str(header.get("PresentationLUTShape") or "").strip()
    return shape == "INVERSE" if shape in ("INVERSE", "IDENTITY") else photometric == "MONOCHROME1"


def _modality_line(transform: Dataset) -> Line | None:
    """Rescale Slope and Intercept (PS3.3 C.11.1.1.2); None where a Modality LUT takes their place."""
    if transform.get("ModalityLUTSequence"):
        return None
    slope, intercept = first_number(transform.get("RescaleSlope")), first_number(transform.get("RescaleIntercept"))
    return Line(1.0 if slope is None else slope, intercept or 0.0)


def _swap_palette(header: Dataset) -> None:
    """Convert a palette's 16-bit words to little endian, since pydicom keeps the file's byte order."""
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        words = header.get(name)
        if isinstance(words, bytes) and int(header[f"{colour}PaletteColorLookupTableDescriptor"].value[2]) > 8:
            header[name].value = np.frombuffer(words, ">u2").astype("<u2").tobytes()


def _luminance(colour: np.ndarray, largest: int) -> np.ndarray:
    """Luminance (...) float32 in [0, 1] of colours (..., 3) in [0, `largest`]."""
    red, green, blue = (np.multiply(colour[..., number], np.float32(weight / largest), dtype=np.float32)
                        for number, weight in enumerate(LUMINANCE))  # fmt: skip
    red += green
    red += blue
    return np.clip(red, 0, 1, out=red)
