"""Opens images by Pillow, and turns its errors into rejections."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom.reading import LARGEST_SIDE

Image.MAX_IMAGE_PIXELS = None  # `opened` checks the size itself
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes; some programs write long histories, which are not read here


@contextmanager
def opened(content: bytes, kind: str) -> Iterator[ImageFile.ImageFile]:
    """An image of a file of one format of Pillow. Errors in the block become Rejected, too.

    Raises:
        Rejected: too_large; broken_header where the format is not recognised; broken_pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=[kind]) as image:
                if max(image.size) > LARGEST_SIDE and kind != "TIFF":
                    raise too_large(*image.size)
                yield image
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise Rejected("broken_pixels", f"the beginning of the {kind} file is damaged or cut short") from error
    except Exception as error:  # Pillow raises almost anything on damaged data
        cut = "truncated" in str(error).lower()
        raise Rejected("broken_pixels", f"the {kind} data are {'cut short' if cut else 'damaged'}") from error


def too_large(width: int, height: int) -> Rejected:
    """The error for an image that is longer than any image this program reads."""
    return Rejected("too_large", f"{width}×{height}; a side has at most {LARGEST_SIDE}")


def grey(image: Image.Image) -> np.ndarray:
    """The luminance (H, W) of an image of at most 8 bits per sample, uint8. Alpha is ignored."""
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(image.convert("L"))
