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
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import InputError, Rejected
from cyclic_cli.imaging import nifti
from cyclic_cli.imaging.dicom import reading as dicom
from cyclic_cli.imaging.dicom.decoding import jpeg_scale
from cyclic_cli.imaging.dicom.header import Facts, Identities
from cyclic_cli.imaging.dicom.reading import Shown
from cyclic_cli.imaging.dicom.rendering import plain_shades

Image.MAX_IMAGE_PIXELS = None  # our own limit, with our own error, stands in `_pillow`
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF's tag of photometric interpretation, and the value of inverted films
ORIENTATION = 274  # EXIF's tag
HEAD = 348  # bytes that tell every format
SUFFIXES = {".dcm", ".dicom", ".dic", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".gz"}
"""Suffixes taken off when an output is named after its input; all others may be part of a dotted UID."""


@dataclass(frozen=True)
class Picture:
    """One image as a viewer shows it, perhaps at a lower resolution that is enough for a sample of the wanted size.

    `pixels` (H', W') are float32 in [0, 1], 0 black; `facts` tell the size of the original. Along either axis, cell k
    lies on the pixels of the original from (k - `edge`) · `scale` to (k + 1 - `edge`) · `scale`.
    """

    pixels: np.ndarray
    facts: Facts
    identities: Identities
    frame: int = 0
    scale: int = 1
    edge: float = 0.0


@dataclass(frozen=True)
class Scan:
    """A file opened: its header is read, its pixels not yet.

    `frames` are the 0-based numbers that the settings select, [0] for a plain picture; `identities` are the header's.
    """

    frames: list[int]
    identities: Identities
    shown: Callable[[int], Shown]

    def picture(self, frame: int) -> Picture:
        """One frame. Whatever goes wrong is Rejected, with a reason of `errors.REASONS`."""
        with _one_bad_file():
            shown = self.shown(frame)
            if shown.pixels.min() == shown.pixels.max():
                raise Rejected("blank")
        return Picture(shown.pixels, shown.facts, self.identities, frame, shown.scale, shown.edge)


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
    if nifti.looks_like_nifti(content):
        return "nifti"
    raise Rejected("unknown_format")


def _open_dicom(content: bytes, preprocessing: Preprocessing, allow_burned_in: bool) -> Scan:
    film = dicom.Film(content, preprocessing, allow_burned_in)
    return Scan(film.frames, film.identities, film.shown)


# ----------------------------------------------------------------------------------------------- PNG, JPEG and TIFF


def _open_pillow(content: bytes, preprocessing: Preprocessing, _: bool) -> Scan:
    count = 1  # what else is in a JPEG file is a preview
    if file_format(content) == "tiff":
        with _pillow(content) as image:
            count = getattr(image, "n_frames", 1)
    frames = dicom.select_frames(count, preprocessing.frames)
    return Scan(frames, Identities(), partial(_shown_by_pillow, content, preprocessing))


@contextmanager
def _pillow(content: bytes) -> Iterator[Image.Image]:
    """An image opened by Pillow, which raises almost anything on damaged data."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "TIFF"]) as image:
                if max(image.size) > dicom.LARGEST_SIDE:
                    raise Rejected(
                        "too_large", f"{image.width}×{image.height}; a side has at most {dicom.LARGEST_SIDE}"
                    )
                yield image
    except (Rejected, MemoryError):
        raise
    except Exception as error:
        raise Rejected("broken_pixels", f"the image cannot be decoded ({type(error).__name__})") from error


def _shown_by_pillow(content: bytes, preprocessing: Preprocessing, frame: int) -> Shown:
    """Grey by bit depth, colour by luminance, upright by EXIF; JPEG at a lower resolution where that is enough."""
    stretched = preprocessing.window in ("full", "percentile")
    with _pillow(content) as image:
        image.seek(frame)
        scale = 1
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            if not (preprocessing.exact or stretched or _is_turned(image)):
                scale = jpeg_scale(max(image.size) / preprocessing.size)
            width, height = image.size
            image.draft("L", (width // scale, height // scale))
        if scale == 1:
            ImageOps.exif_transpose(image, in_place=True)
            width, height = image.size
        stored, bits = _grey(image)
        white_is_zero = bits == 16 and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    factor = dicom.cell_factor(stored, preprocessing)
    pixels = plain_shades(stored, None if stretched or bits == 32 else bits, preprocessing.window, factor)
    if white_is_zero:  # Pillow sees to 8 bits, not to 16
        pixels = 1 - pixels
    return Shown(pixels, Facts(bits=bits, height=height, width=width), scale * factor)


def _is_turned(image: Image.Image) -> bool:
    return "exif" in image.info and image.getexif().get(ORIENTATION, 1) != 1


def _grey(image: Image.Image) -> tuple[np.ndarray, int]:
    """A Pillow image of any mode as (H, W) numbers, with its bits per sample."""
    if image.mode.startswith("I;16"):
        return np.asarray(image), 16
    if image.mode in ("I", "F"):
        return np.asarray(image), 32
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return np.asarray(image.convert("L")), 8


# ------------------------------------------------------------------------------------------------------------ NIfTI


def _open_nifti(content: bytes, preprocessing: Preprocessing, _: bool) -> Scan:
    """A volume (X, Y, Z) or series of them: its axial slices, of which the settings select."""
    volume = nifti.Volume(content)
    return Scan(
        dicom.select_frames(volume.slices, preprocessing.frames),
        Identities(),
        partial(_shown_slice, volume, preprocessing),
    )


def _shown_slice(volume: "nifti.Volume", preprocessing: Preprocessing, frame: int) -> Shown:
    values = volume.slice(frame)
    height, width = values.shape
    factor = dicom.cell_factor(values, preprocessing)
    pixels = plain_shades(values, None, preprocessing.window, factor)
    return Shown(pixels, Facts(bits=volume.bits, pixel_spacing=volume.spacing, height=height, width=width), factor)


READERS: dict[str, Callable[[bytes, Preprocessing, bool], Scan]] = {
    "dicom": _open_dicom,
    "png": _open_pillow,
    "jpeg": _open_pillow,
    "tiff": _open_pillow,
    "nifti": _open_nifti,
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
    height, width, size = picture.facts.height, picture.facts.width, preprocessing.size
    pixels = picture.pixels
    # The filter is separable. The longer axis goes first: the square that holds the letterbox is then small.
    for axis in (0, 1) if height >= width else (1, 0):
        pixels = _fit_axis(pixels, axis, (height, width)[axis], picture, size)
    largest = 2**preprocessing.bits - 1
    levels = np.rint(np.clip(pixels, 0, 1) * largest)
    return levels.astype(np.uint8 if preprocessing.bits == 8 else np.uint16)[None]


def _fit_axis(pixels: np.ndarray, axis: int, length: int, picture: Picture, size: int) -> np.ndarray:
    """Letterbox and resize one axis, of `length` pixels in the original, to `size`."""
    lie = _lie(length, max(picture.facts.height, picture.facts.width), pixels.shape[axis], picture, size)
    turn = (slice(None), None) if axis == 0 else (None, slice(None))
    shape = list(pixels.shape)
    if lie.cells != shape[axis]:
        shape[axis] = lie.cells
        square = np.zeros(shape, dtype=np.float32)
        inside = square[lie.image] if axis == 0 else square[:, lie.image]
        np.multiply(pixels, lie.covered[turn], out=inside)
        pixels = square
    if axis == 0:
        new, box = (shape[1], size), (0.0, lie.begin, float(shape[1]), lie.end)
    else:
        new, box = (size, shape[0]), (lie.begin, 0.0, lie.end, float(shape[0]))
    resized = Image.fromarray(pixels).resize(new, Image.Resampling.BILINEAR, box)
    return np.asarray(resized) * lie.correction[turn]


@dataclass(frozen=True)
class _Lie:
    """How the cells of a picture lie on the letterboxed square, along one axis.

    The cells are put at `image` into `cells` cells of which the square takes those from `begin` to `end`: it begins
    within one, since the letterbox is as wide as it is. `covered` (n,) is the share of each of the picture's cells that
    the original covers, since those at its edges may reach into the letterbox. `correction` (size,) is what each row of
    the sample must be multiplied with to be as white as if a white picture had never been reduced.
    """

    cells: int
    image: slice
    begin: float
    end: float
    covered: np.ndarray
    correction: np.ndarray


def _lie(length: int, side: int, count: int, picture: Picture, size: int) -> _Lie:
    return _lie_of(length, side, count, picture.scale, picture.edge, size)


@lru_cache(maxsize=256)
def _lie_of(length: int, side: int, count: int, scale: int, edge: float, size: int) -> _Lie:
    before = (side - length) // 2
    first = max(0, math.ceil(before / scale - edge))
    begin = first + edge - before / scale
    end = begin + side / scale
    cells, image = max(first + count, math.ceil(end)), slice(first, first + count)
    borders = np.clip((np.arange(count + 1) - edge) * scale, 0, length)
    covered = (np.diff(borders) / scale if cells > count else np.ones(count)).astype(np.float32)
    white = np.zeros((1, cells), dtype=np.float32)
    white[0, image] = covered
    reduced = np.asarray(Image.fromarray(white).resize((size, 1), Image.Resampling.BILINEAR, (begin, 0, end, 1)))[0]
    white = np.zeros((1, side), dtype=np.float32)
    white[0, before : before + length] = 1
    whole = np.asarray(Image.fromarray(white).resize((size, 1), Image.Resampling.BILINEAR))[0]
    correction = np.divide(whole, reduced, out=np.zeros_like(whole), where=reduced > 1e-6)
    return _Lie(cells, image, begin, end, covered, correction)


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
