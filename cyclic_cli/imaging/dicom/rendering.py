"""Turns the stored values of one frame into grey levels in [0, 1], as a viewer shows them (steps 2 to 8 of `reading`).

`Rendering` reads the display attributes of a frame once. `Rendering.shown` turns stored values into grey levels, and
averages them over cells where only a small sample is needed. A non-linear chain of steps is computed once for every
possible stored value, and the frame is then mapped by this lookup table.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian

from cyclic_cli.config import check_window
from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom.header import PADDING, code_of, items_of, numbers, padding_limits, whole_number
from cyclic_cli.imaging.dicom.strips import Shades, in_strips, looked_up
from cyclic_cli.imaging.dicom.windows import (
    Line,
    Table,
    clipped,
    range_line,
    read_table,
    show_line,
    value_range,
    window,
    window_line,
)

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's mode L
HOUNSFIELD = {"lung": (-600, 1500), "bone": (400, 1800), "brain": (40, 80), "mediastinum": (40, 400)}
"""Centre and width of the named windows in Hounsfield units, for CT only."""
VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")  # PS3.3 C.11.2.1.3
SPARSE = 16  # distance of the pixels at which a window is tried first
SMALLEST, LARGEST = 1e-18, 1e18  # magnitudes of slopes and windows that images state
NARROW = 10.0
"""Width below which a LINEAR window of fractional values differs visibly from a LINEAR_EXACT one.

LINEAR is made for whole numbers: it takes half a unit from either side of the window (PS3.3 C.11.2.1.2.1)."""
UNLIKELY = 16.0  # a window whose unit is unsure is so many times wider or narrower than the values at most


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
        self._guesses: dict[str, None] = {}  # in the order in which they are made
        groups = _frame_groups(header, frame)
        self._photometric = code_of(header, "PhotometricInterpretation") or "MONOCHROME2"
        self._transform = _group(groups, "PixelValueTransformationSequence") or header
        self._stated = _group(groups, "FrameVOILUTSequence") or header
        self.measures = _group(groups, "PixelMeasuresSequence")
        self._inverse = _is_inverse(header, self._photometric)
        self._setting = check_window(window)
        self._big_endian = header.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
        has_values = whole_number(header, "SamplesPerPixel", 1) == 1 and self._photometric != "PALETTE COLOR"
        self._modality = self._modality_transform() if has_values else Line()
        self._requested = self._requested_window()
        obeys = has_values and self._requested is None and self._setting not in ("full", "percentile")
        self._table: Table | None = None
        self._window = self._requested
        self._choices = [*self._stated_tables(), *self._stated_windows()] if obeys else []
        if obeys:
            self._take_next_choice()

    @property
    def guesses(self) -> tuple[str, ...]:
        """The assumptions about this frame, keys of `guesses.GUESSES`."""
        return tuple(self._guesses)

    @property
    def straight(self) -> Line | None:
        """The line from stored values to unclipped grey levels, where the header or the user states a linear window.

        It is None for other windows, for colour, and where padding must be masked.
        """
        has_padding = any(value in self._header for value, _ in PADDING.values())
        if has_padding or self._photometric not in ("MONOCHROME1", "MONOCHROME2"):
            return None
        window = self._window_line()
        return window.after(self._modality) if window and isinstance(self._modality, Line) else None

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

    def shows_nothing(self, stored: np.ndarray, is_unsure: bool = False) -> bool:
        """Whether a window or VOI LUT gives different values (H, W), padding apart, the same of 256 grey levels.

        Where it `is_unsure` in which unit the window is stated, one that is far narrower or wider than the values shows
        nothing either.
        """
        if self._table is None and self._window is None:
            return False
        padding = self._padding(stored)
        if self._window and (is_unsure or "modality" in self._guesses) and not self._requested:
            low, high = self._range(stored, padding)
            if not 1 / UNLIKELY <= self._window[1] / max(high - low, SMALLEST) <= UNLIKELY:
                return True
        for part in (stored[::SPARSE, ::SPARSE], stored):
            values = part if padding is None else part[(part < padding[0]) | (part > padding[1])]
            if values.size:
                grey = self._grey(values, None)
                levels = np.rint(255 * (clipped(grey) if isinstance(grey, Line) else grey)(values))
                if levels.min() != levels.max():
                    return False
        return bool(values.size and values.min() != values.max())

    def ignore_window(self) -> None:
        """Take the next window or VOI LUT that the file states, else percentiles, and count that as a guess.

        Raises:
            Rejected: blank, where the setting and not the file states the window.
        """
        if self._requested:
            raise Rejected("blank", "every pixel has the same grey level in the window that --window asks for")
        self._take_next_choice()
        self._guesses["window"] = None

    def _take_next_choice(self) -> None:
        choice = self._choices.pop(0) if self._choices else None
        self._table = choice if isinstance(choice, Table) else None
        self._window = (*choice, self._voi_function(choice[1])) if isinstance(choice, tuple) else None

    # ------------------------------------------------------------------------------------------------ grey

    def _grey(self, stored: np.ndarray, padding: tuple[Any, Any] | None) -> Line | Shades:
        """Steps 3 to 6: the map from stored values to grey levels, ignoring padding. A line is not yet clipped."""
        chosen: Line | Shades | None = self._window_line() or self._window_curve(stored)
        if chosen is None:
            chosen = range_line(*self._range(stored, padding), self._inverse)
        if isinstance(chosen, Line) and isinstance(self._modality, Line):
            return chosen.after(self._modality)
        curve = clipped(chosen) if isinstance(chosen, Line) else chosen
        return looked_up(stored, lambda values: curve(self._modality(values)))

    def _window_line(self) -> Line | None:
        """The line of the requested or stated window, including step 6; None where there is no linear window."""
        if self._window is None:
            return None
        center, width, function = self._window
        if function == "SIGMOID" or (function == "LINEAR" and width == 1):
            return None
        line = window_line(center, width, function)
        return Line(-1, 1).after(line) if self._inverse else line

    def _window_curve(self, stored: np.ndarray) -> Shades | None:
        """The VOI LUT or non-linear window, including step 6; None where none is requested or stated."""
        if self._table is not None:
            ends = self._modality(np.array([stored.min(), stored.max()]))
            table = self._table.for_values(float(ends.min()), float(ends.max()))
            return self._with_polarity(lambda values: np.clip(table(values) / np.float32(table.largest), 0, 1))
        if self._window is None:
            return None
        center, width, function = self._window
        return self._with_polarity(lambda values: window(values, center, width, function))

    def _with_polarity(self, curve: Shades) -> Shades:
        """Step 6: the curve, inverted where the header says so."""
        return (lambda values: 1 - curve(values)) if self._inverse else curve

    # ----------------------------------------------------------------------- what the header and the setting state

    def _modality_transform(self) -> Line | Table:
        """Step 3: the Modality LUT, else Rescale Slope and Intercept (PS3.3 C.11.1.1.2).

        A slope that is 0 or no number is taken as 1, and an intercept that is no number as 0.
        """
        items = items_of(self._transform, "ModalityLUTSequence")
        if table := next(self._tables(items), None):
            return table.for_values(-1.0 if whole_number(self._header, "PixelRepresentation") else 0.0, math.inf)
        slope = next(iter(numbers(self._transform, "RescaleSlope")), 1.0)
        intercept = next(iter(numbers(self._transform, "RescaleIntercept")), 0.0)
        has_slope, has_intercept = SMALLEST <= abs(slope) <= LARGEST, abs(intercept) <= LARGEST
        if items or not (has_slope and has_intercept):
            self._guesses["modality"] = None
        return Line(slope if has_slope else 1.0, intercept if has_intercept else 0.0)

    def _stated_tables(self) -> list[Table]:
        """The usable items of the VOI LUT Sequence."""
        items = items_of(self._stated, "VOILUTSequence")
        tables = list(self._tables(items))
        if items and not tables:
            self._guesses["window"] = None
        return tables

    def _tables(self, items: list[Dataset]) -> Iterator[Table]:
        for item in items:
            if table := read_table(item, "LUTDescriptor", "LUTData", self._big_endian):
                yield table

    def _requested_window(self) -> tuple[float, float, str] | None:
        """Centre, width and function of the window in the setting. Named windows apply to CT only."""
        if isinstance(self._setting, tuple):
            return *self._setting, "LINEAR"
        if self._setting in HOUNSFIELD and code_of(self._header, "Modality") == "CT":
            return *HOUNSFIELD[self._setting], "LINEAR"
        return None

    def _stated_windows(self) -> list[tuple[float, float]]:
        """Centre and width of the file's valid windows."""
        centers, widths = (numbers(self._stated, name) for name in ("WindowCenter", "WindowWidth"))
        valid = [
            (center, width)
            for center, width in zip(centers, widths, strict=False)
            if abs(center) <= LARGEST and SMALLEST <= width <= LARGEST
        ]
        if (centers or widths) and not valid:
            self._guesses["window"] = None
        return valid

    def _voi_function(self, width: float) -> str:
        """VOI LUT Function of a window of this width (PS3.3 C.11.2.1.3)."""
        stated = code_of(self._stated, "VOILUTFunction")
        if stated and stated not in VOI_FUNCTIONS:
            self._guesses["voi_function"] = None
        if stated in ("LINEAR_EXACT", "SIGMOID"):
            return stated
        narrow = width == 1 or (width < NARROW and stated != "LINEAR")
        if width < 1 or (self._is_fractional and narrow):
            self._guesses["narrow_window"] = None
            return "LINEAR_EXACT"
        return "LINEAR"

    @property
    def _is_fractional(self) -> bool:
        """Whether the values to which the window applies lie between whole numbers."""
        return isinstance(self._modality, Line) and (self._modality.slope % 1 != 0 or "PixelData" not in self._header)

    # ----------------------------------------------------------------------------------------- values of the frame

    def _range(self, stored: np.ndarray, padding: tuple[Any, Any] | None) -> tuple[float, float]:
        """The lowest and highest value to be shown, from the pixels that are not padding."""
        line = self._modality if stored.dtype.kind in "iu" and isinstance(self._modality, Line) else None
        values = stored if line else self._modality(stored)
        if padding is not None:
            values = values[(stored < padding[0]) | (stored > padding[1])]
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        low, high = value_range(values, self._setting)
        if line:
            low, high = sorted(line.slope * end + line.intercept for end in (low, high))
        return low, high

    def _padding(self, stored: np.ndarray) -> tuple[Any, Any] | None:
        """Step 2: the range of stored values that are padding. None where no pixel, or every pixel, is padding."""
        limits = padding_limits(self._header, stored.dtype)
        return None if limits and limits[0] <= stored.min() and stored.max() <= limits[1] else limits

    # ---------------------------------------------------------------------------------------------- colour

    def _palette(self, indices: np.ndarray) -> np.ndarray:
        """Step 8: palette indices of any shape to luminance in [0, 1]."""
        names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
        if not any(name + "Data" in self._header for name in names):
            return self._segmented_palette(indices)
        tables = [read_table(self._header, name + "Descriptor", name + "Data", self._big_endian) for name in names]
        colours = [table.for_values(float(indices.min()), float(indices.max()))(indices) for table in tables if table]
        if len(colours) < 3:
            raise Rejected("broken_header", "the palette lacks a colour, or one of its tables is damaged")
        return _luminance(np.stack(colours, axis=-1), max(table.largest for table in tables if table))

    def _segmented_palette(self, indices: np.ndarray) -> np.ndarray:
        """Luminance by a palette of segments, which pydicom expands (PS3.3 C.7.9.2)."""
        try:
            colour = apply_color_lut(indices, self._header)
        except Exception as error:  # pydicom raises almost anything on damaged segments
            raise Rejected("broken_header", "the palette is missing or damaged") from error
        return _luminance(colour, 2 ** (8 * colour.dtype.itemsize) - 1)

    def _colour(self, stored: np.ndarray) -> Shades:
        """Step 8: the function that maps strips of an RGB frame to luminance in [0, 1]."""
        allocated = 8 * stored.dtype.itemsize
        largest = 2 ** whole_number(self._header, "BitsStored", allocated) - 1
        return lambda strip: _luminance(strip, largest)


def _frame_groups(header: Dataset, frame: int) -> list[Dataset]:
    """The functional groups of a frame of an enhanced image: the per-frame group, then the shared group."""
    own = items_of(header, "PerFrameFunctionalGroupsSequence")
    shared = items_of(header, "SharedFunctionalGroupsSequence")
    return own[frame : frame + 1] + shared[:1]


def _group(groups: list[Dataset], name: str) -> Dataset | None:
    """The first item of the named sequence, from the first group that has it."""
    return next((item for group in groups for item in items_of(group, name)[:1]), None)


def _is_inverse(header: Dataset, photometric: str) -> bool:
    """Step 6: whether low values are white.

    Presentation LUT Shape takes precedence over the photometric interpretation. The two never invert twice.
    """
    shape = code_of(header, "PresentationLUTShape")
    return shape == "INVERSE" if shape in ("INVERSE", "IDENTITY") else photometric == "MONOCHROME1"


def _luminance(colour: np.ndarray, largest: float) -> np.ndarray:
    """Luminance (...) float32 in [0, 1] of colours (..., 3) in [0, `largest`]."""
    red, green, blue = (np.multiply(colour[..., number], np.float32(weight / largest), dtype=np.float32)
                        for number, weight in enumerate(LUMINANCE))  # fmt: skip
    red += green
    red += blue
    return np.clip(red, 0, 1, out=red)
