"""Files to tensors: which reader a file needs, told by its content, and how a picture becomes a square of pixels.

Every command reads its inputs here, so `prepare`, `reconstruct` and `embed` see the same pixels.

A picture is fitted in one way everywhere: centred on a black square of its longer side (letterbox), then
reduced by an antialiased bilinear filter, then rounded to the stored depth.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cyclic_cli import dicom
from cyclic_cli.config import Preprocessing
from cyclic_cli.dicom.header import Facts, Identities
from cyclic_cli.dicom.rendering import PERCENTILES
from cyclic_cli.errors import InputError, Rejected

Image.MAX_IMAGE_PIXELS = None  # our own limit, with our own error, stands in `_pillow`
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF's tag of photometric interpretation, and the value of inverted films
LARGEST_SIDE = 2**14  # pixels; the letterbox of a longer strip would fill the memory
HEAD = 132  # bytes that tell every format
SUFFIXES = {".dcm", ".dicom", ".dic", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}
"""Suffixes taken off when an output is named after its input; all others may be part of a dotted UID."""


@dataclass(frozen=True)
class Picture:
    """One image as a viewer shows it: `pixels` (H, W) float32 in [0, 1], 0 black; `facts` tell the original's size."""

    pixels: np.ndarray
    facts: Facts
    identities: Identities
    frame: int = 0


@dataclass(frozen=True)
class Scan:
    """A file opened: its header is read, its pixels not yet.

    `frames` are the 0-based numbers that the settings select, [0] for a plain picture; `identities` are the header's.
    """

    frames: list[int]
    identities: Identities
    read: Callable[[int], tuple[np.ndarray, Facts]]  # a frame's pixels (H, W) float32 in [0, 1]

    def picture(self, frame: int) -> Picture:
        """One frame. Whatever goes wrong is Rejected, with a reason of `errors.REASONS`."""
        with _one_bad_file():
            pixels, facts = self.read(frame)
            if pixels.min() == pixels.max():
                raise Rejected("blank")
        return Picture(pixels, facts, self.identities, frame)


def content_of(path: Path) -> bytes:
    """A file's bytes. Raises Rejected: missing, unreadable (a folder or a pipe too) or empty."""
    try:
        if not path.exists():
            raise Rejected("missing")
        if not path.is_file():  # a pipe would wait for ever
            folder = path.is_dir()
            raise Rejected("unreadable", "a folder that cannot be listed" if folder else "not a regular file")
        content = path.read_bytes()
    except OSError as error:
        raise Rejected("unreadable", error.strerror or "") from error
    if not content:
        raise Rejected("empty")
    return content


def open_scan(content: bytes, preprocessing: Preprocessing, allow_burned_in: bool = False) -> Scan:
    """Open a file of any known format, told by its content.

    Args:
        content: The file.
        preprocessing: Which frames are wanted, and how they are shown.
        allow_burned_in: Take images that say that text is burned into them.

    Raises:
        Rejected: with a reason of `errors.REASONS`.
        Skipped: a valid object that holds no picture.
    """
    reader = READERS[file_format(content)]
    with _one_bad_file():
        return reader(content, preprocessing, allow_burned_in)


def read(content: bytes, preprocessing: Preprocessing) -> Picture:
    """The first of a file's selected frames. Raises as `open_scan` and `Scan.picture` do."""
    scan = open_scan(content, preprocessing, allow_burned_in=True)
    return scan.picture(scan.frames[0])


@contextmanager
def _one_bad_file() -> Iterator[None]:
    """One bad file never ends a job, not even by a bug or for want of memory: whatever it raises becomes Rejected."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except MemoryError as error:
        raise Rejected("too_large", "there is not enough memory for it") from error
    except BaseException as error:  # panics of decoders written in Rust included
        raise Rejected("unexpected", f"reading it failed ({type(error).__name__})") from error


def file_format(content: bytes) -> str:
    """The key of `READERS` that a file's first bytes ask for. Raises Rejected when there is none."""
    head = content[:HEAD]
    if dicom.looks_like_dicom(head):  # first: a DICOM preamble may also be a TIFF header
        return "dicom"
    for marks, name in MARKS:
        if head.startswith(marks):
            return name
    raise Rejected("unknown_format")


def _open_dicom(content: bytes, preprocessing: Preprocessing, allow_burned_in: bool) -> Scan:
    film = dicom.Film(content, preprocessing, allow_burned_in)
    return Scan(film.frames, film.identities, film.pixels)


def _open_pillow(content: bytes, preprocessing: Preprocessing, _: bool) -> Scan:
    with _pillow(content) as image:
        count = getattr(image, "n_frames", 1)
    frames = dicom.select_frames(count, preprocessing.frames)
    return Scan(frames, Identities(), partial(_read_pillow, content))


@contextmanager
def _pillow(content: bytes) -> Iterator[Image.Image]:
    """An image opened by Pillow, which raises almost anything on damaged data."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                if max(image.size) > LARGEST_SIDE:
                    raise Rejected(
                        "too_large", f"{image.width}×{image.height} pixels; a side has at most {LARGEST_SIDE}"
                    )
                yield image
    except (Rejected, MemoryError):
        raise
    except Exception as error:
        raise Rejected("broken_pixels", f"the image cannot be decoded ({type(error).__name__})") from error


def _read_pillow(content: bytes, frame: int) -> tuple[np.ndarray, Facts]:
    """PNG, JPEG and TIFF: grey by bit depth, colour by luminance, upright by EXIF."""
    with _pillow(content) as image:
        image.seek(frame)
        tags = getattr(image, "tag_v2", {})
        pixels, bits = _grey(ImageOps.exif_transpose(image))
        if bits == 16 and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow sees to 8 bits, not to 16
            pixels = 1 - pixels
    height, width = pixels.shape
    return pixels, Facts(bits=bits, height=height, width=width)


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


READERS: dict[str, Callable[[bytes, Preprocessing, bool], Scan]] = {
    "dicom": _open_dicom,
    "png": _open_pillow,
    "jpeg": _open_pillow,
    "tiff": _open_pillow,
}
MARKS = [
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),  # BigTIFF
    (b"MM\x00+", "tiff"),
]


def fit(picture: Picture, preprocessing: Preprocessing) -> np.ndarray:
    """A picture as a stored sample.

    Args:
        picture: What to fit.
        preprocessing: Side and depth.

    Returns:
        (1, size, size), uint8 in 0–255 or uint16 in 0–65535.
    """
    pixels = picture.pixels
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
