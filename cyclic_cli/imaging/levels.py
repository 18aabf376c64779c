"""Turns pixel values that no DICOM header describes into grey levels.

Values of at most 8 bits without sign are shown as they are. All other values are shown over the range that the file
declares. Where it declares none, they are shown from the 0.5th to the 99.5th percentile of the image: radiographs of 12
bits are often saved as 16-bit images, which would be nearly black if the full range were shown. The setting `--window`
takes precedence for these values.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cyclic_cli.config import Preprocessing, check_window
from cyclic_cli.imaging.dicom.header import Facts
from cyclic_cli.imaging.dicom.reading import Shown, cell_factor
from cyclic_cli.imaging.dicom.rendering import LUMINANCE
from cyclic_cli.imaging.dicom.strips import in_strips
from cyclic_cli.imaging.dicom.windows import range_line, show_line, value_range, window


@dataclass(frozen=True)
class Stored:
    """Pixel values as a file stores them, in upright orientation.

    `values` are (H, W), or (H, W, 3) in RGB. `bits` is the number of bits per value. `limits` are the values of black
    and white that the file declares, None where it declares none. `white_is_zero` inverts the grey levels. `aspect` is
    the height of a pixel divided by its width.
    """

    values: np.ndarray
    bits: int
    limits: tuple[float, float] | None = None
    white_is_zero: bool = False
    aspect: float = 1.0


def luminance(colour: np.ndarray) -> np.ndarray:
    """The luminance (H, W) of RGB values (H, W, 3): uint8 of uint8, else floats."""
    if colour.dtype == np.uint8:
        return np.asarray(Image.fromarray(colour).convert("L"))
    return np.asarray(colour @ np.array(LUMINANCE, dtype=np.float32))


def show(stored: Stored, preprocessing: Preprocessing) -> Shown:
    """Grey levels of an image, by the rules at the top of this file.

    Raises:
        Rejected: blank, where no value is finite.
    """
    values, requested = stored.values, check_window(preprocessing.window)
    stretched = requested in ("full", "percentile")
    grey = values if values.ndim == 2 else luminance(values)
    factor = cell_factor(grey, preprocessing, stored.aspect)
    guesses: tuple[str, ...] = ()
    if isinstance(requested, tuple) and values.dtype != np.uint8:
        pixels = in_strips(grey, lambda strip: window(strip, *requested), factor)
        pixels = 1 - pixels if stored.white_is_zero else pixels
    else:
        if stored.limits and not stretched:
            low, high = stored.limits
        else:  # of colour images, the range of all three components
            low, high = value_range(values[np.isfinite(values)] if values.dtype.kind == "f" else values, requested)
            guesses = () if stretched else ("own_range",)
        if grey.dtype == np.float64:  # float32 would lose a range that is small against its values
            grey, low, high = (grey - low).astype(np.float32), 0.0, high - low
        pixels = show_line(grey, range_line(low, high, inverse=stored.white_is_zero), factor)
    height, width = grey.shape
    facts = Facts(bits=stored.bits, height=height, width=width)
    return Shown(pixels, facts, factor, guesses=guesses, aspect=stored.aspect)
