"""Files to tensors: which reader a file needs, told by its content, and how a picture becomes a square of pixels.

Every command reads its inputs here, so `prepare`, `reconstruct` and `embed` see the same pixels.

A picture is fitted in one way everywhere: centred on a black square of its longer side (letterbox), then
reduced by an antialiased bilinear filter, then rounded to the stored depth.
"""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cyclic_cli import dicom
from cyclic_cli.config import Preprocessing
from cyclic_cli.dicom.header import Facts, Identities
from cyclic_cli.dicom.rendering import PERCENTILES
from cyclic_cli.errors import InputError, Rejected

Image.MAX_IMAGE_PIXELS = None  # our own limit, with our own error, stands in `_read_pillow`
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF's tag of photometric interpretation, and the value of inverted films
LARGEST_SIDE = 2**14  # pixels; the letterbox of a longer strip would fill the memory
HEAD = 132  # bytes that tell every format
SUFFIXES = {".dcm", ".dicom", ".dic", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}
"""Suffixes taken off when an output is named after its input; all others may be part of a dotted UID."""


@dataclass(frozen=True)
class Picture:
    """One image as a viewer shows it: `pixels` (H, W) float32 in [0, 1], 0 black."""

    pixels: np.ndarray
    facts: Facts
    identities: Identities


def read(path: Path) -> Picture:
    """Read an image file of any known format.

    Raises:
        Rejected: with a reason of `errors.REASONS`.
        Skipped: a valid object that holds no picture.
    """
    reader = READERS[file_format(path)]
    try:
        picture = reader(path)
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # one bad file never ends a job, not even by a bug or for want of memory
        raise Rejected("unexpected", f"reading it failed ({type(error).__name__})") from error
    if max(picture.pixels.shape) > LARGEST_SIDE:
        raise Rejected("too_large", f"a side of {max(picture.pixels.shape)} pixels; at most {LARGEST_SIDE} are taken")
    if picture.pixels.min() == picture.pixels.max():
        raise Rejected("blank")
    return picture


def file_format(path: Path) -> str:
    """The key of `READERS` that a file's content asks for, whatever its name. Raises Rejected when there is none."""
    try:
        if not path.exists():
            raise Rejected("missing")
        if not path.is_file():  # a pipe would wait for ever
            folder = path.is_dir()
            raise Rejected("unreadable", "a folder that cannot be listed" if folder else "not a regular file")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise Rejected("unreadable", error.strerror or "") from error
    if not head:
        raise Rejected("empty")
    if dicom.looks_like_dicom(head):  # first: a DICOM preamble may also be a TIFF header
        return "dicom"
    for marks, name in MARKS:
        if head.startswith(marks):
            return name
    raise Rejected("unknown_format")


def _read_dicom(path: Path) -> Picture:
    return Picture(*dicom.read(path))


def _read_pillow(path: Path) -> Picture:
    """PNG, JPEG and TIFF: grey by bit depth, colour by luminance, of several pages the middle one, upright by EXIF."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > dicom.LARGEST_FRAME:
                    raise Rejected("too_large", f"{image.width}×{image.height} pixels are declared")
                image.seek(getattr(image, "n_frames", 1) // 2)
                tags = getattr(image, "tag_v2", {})
                pixels, bits = _grey(ImageOps.exif_transpose(image))
                if bits == 16 and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow sees to 8 bits, not to 16
                    pixels = 1 - pixels
    except Rejected:
        raise
    except Exception as error:  # Pillow raises almost anything on damaged data
        raise Rejected("broken_pixels", f"the image cannot be decoded ({type(error).__name__})") from error
    height, width = pixels.shape
    return Picture(pixels, Facts(bits=bits, height=height, width=width), Identities())


def _grey(image: Image.Image) -> tuple[np.ndarray, int]:
    """A Pillow image of any mode as (H, W) float32 in [0, 1], with its bits per sample."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32) / 65535, 16
    if image.mode in (
        "I",
        "F",
    ):  # 32 bits without a stated range: robust percentiles, as for DICOM without a window
        values = np.asarray(image).astype(np.float32)
        low, high = np.percentile(values[np.isfinite(values)], PERCENTILES)
        return np.clip(np.nan_to_num((values - low) / max(high - low, 1e-30)), 0, 1).astype(np.float32), 32
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(image.convert("L"), dtype=np.float32) / 255, 8


READERS: dict[str, Callable[[Path], Picture]] = {
    "dicom": _read_dicom,
    "png": _read_pillow,
    "jpeg": _read_pillow,
    "tiff": _read_pillow,
}
MARKS = [
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),  # BigTIFF
    (b"MM\x00+", "tiff"),
]


def fit(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """A picture as a stored sample.

    Args:
        pixels: (H, W) float32 in [0, 1].
        preprocessing: Side and depth.

    Returns:
        (1, size, size), uint8 in 0–255 or uint16 in 0–65535.
    """
    height, width = pixels.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), dtype=np.float32)
    square[top : top + height, left : left + width] = pixels
    size = preprocessing.size
    resized = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
    largest = 2**preprocessing.bits - 1
    levels = np.rint(np.clip(resized, 0, 1) * largest)
    return levels.astype(np.uint8 if preprocessing.bits == 8 else np.uint16)[None]


def image_area(height: int, width: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of a fitted sample that hold only image, no letterbox.

    Args:
        height: Pixels of the original.
        width: Pixels of the original.
        size: Side of the fitted square.
    """
    side = max(height, width)

    def inside(length: int) -> slice:
        start = (side - length) // 2
        first = math.ceil(start * size / side)
        return slice(first, max(first + 1, math.floor((start + length) * size / side)))

    return inside(height), inside(width)


def as_float(stored: np.ndarray) -> np.ndarray:
    """Stored pixels, uint8 or uint16 of any shape, as float32 in [0, 1]."""
    return stored.astype(np.float32) / np.float32(np.iinfo(stored.dtype).max)


def as_png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 as the bytes of a PNG without any text in it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
