"""Reads image files of every supported format, and fits their images to square samples.

The content of a file decides which reader opens it. Every command reads its inputs here, so `prepare`, `reconstruct`
and `embed` see the same pixels.

Every image is fitted the same way. Pixels that are not square are resampled to square ones. The image is centred on a
black square whose side is the image's longer side (letterbox), resized by an antialiased bilinear filter, and rounded
to the stored bit depth.
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import InputError, Rejected
from cyclic_cli.imaging import levels, nifti, pictures
from cyclic_cli.imaging.aspect import with_square_pixels
from cyclic_cli.imaging.dicom import reading as dicom
from cyclic_cli.imaging.dicom.header import Facts, Identities
from cyclic_cli.imaging.dicom.reading import Shown

HEAD = 348  # bytes that suffice to recognise every format
MOST_REPLACEMENTS = 1000  # frames that are tried in place of a blank one
SUFFIXES = {".dcm", ".dicom", ".dic", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".gz"}
"""Suffixes removed when an output is named after its input. Any other suffix may be part of a dotted UID."""


@dataclass(frozen=True)
class Picture:
    """One image as a viewer shows it, possibly at a lower resolution that suffices for the sample's size.

    `pixels` (H', W') are float32 in [0, 1], where 0 is black. The pixels are square: those of other files have been
    resampled. `facts` holds the size of this original. Along either axis, cell k covers the original's pixels from
    (k - `edge`) · `scale` to (k + 1 - `edge`) · `scale`. `guesses` are keys of `guesses.GUESSES`.
    """

    pixels: np.ndarray
    facts: Facts
    identities: Identities
    frame: int = 0
    scale: int = 1
    edge: float = 0.0
    guesses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """An open file whose header has been read, but not its pixels.

    `frames` are the 0-based numbers of the frames that the settings select, [0] for a single image. `identities` are
    those that the header names. Where `may_replace` is true, the nearest of all `count` frames that is not blank takes
    the place of a blank one.
    """

    frames: list[int]
    identities: Identities
    shown: Callable[[int], Shown]
    count: int = 1
    may_replace: bool = False

    def picture(self, frame: int) -> Picture:
        """One frame, or the nearest one that is not blank.

        Raises Rejected with a reason of `errors.REASONS`, whatever goes wrong.
        """
        try:
            return self._picture(frame)
        except Rejected as error:
            if error.reason != "blank" or not self.may_replace:
                raise
            for other in islice(_outwards(frame, self.count), MOST_REPLACEMENTS):
                with suppress(Rejected):
                    picture = self._picture(other)
                    return replace(picture, guesses=(*picture.guesses, "nearest_frame"))
            raise

    def _picture(self, frame: int) -> Picture:
        with _errors_as_rejected():
            shown = self.shown(frame)
            if shown.pixels.min() == shown.pixels.max():
                raise Rejected("blank", *([f"every pixel of frame {frame + 1} has the same value"] * (self.count > 1)))
            if shown.aspect == 1:
                pixels, facts = shown.pixels, shown.facts
            else:
                pixels = with_square_pixels(shown.pixels, shown.aspect, dicom.LARGEST_SIDE)
                facts = _resampled(shown.facts, *pixels.shape)
        return Picture(pixels, facts, self.identities, frame, shown.scale, shown.edge, shown.guesses)


def _resampled(facts: Facts, height: int, width: int) -> Facts:
    spacing = float(f"{facts.pixel_spacing * facts.height / height:.4g}")
    return replace(facts, height=height, width=width, pixel_spacing=spacing)


def _outwards(frame: int, count: int) -> Iterator[int]:
    """The other frames, the nearest first (the earlier at ties)."""
    for distance in range(1, count):
        yield from (other for other in (frame - distance, frame + distance) if 0 <= other < count)


def content_of(path: Path) -> bytes:
    """A file's bytes. Raises Rejected: missing, empty, or unreadable, which includes folders and pipes."""
    try:
        if not path.exists():
            raise Rejected("missing")
        if not path.is_file():  # reading a pipe could block for ever
            is_folder = path.is_dir()
            raise Rejected("unreadable", "a folder that cannot be listed" if is_folder else "not a regular file")
        content = path.read_bytes()
    except OSError as error:
        raise Rejected("unreadable", error.strerror or "") from error
    if not content:
        raise Rejected("empty")
    return content


def open_scan(content: bytes, preprocessing: Preprocessing, allow_burned_in: bool = False) -> Scan:
    """Open a file of any known format. The content decides the format, not the file's name.

    Args:
        content: The file.
        preprocessing: Which frames are selected, and how they are shown.
        allow_burned_in: Accept images whose header states burned-in text.

    Raises:
        Rejected: with a reason of `errors.REASONS`.
        Skipped: a valid object that holds no image.
    """
    reader = READERS[file_format(content)]
    with _errors_as_rejected():
        return reader(content, preprocessing, allow_burned_in)


def read(content: bytes, preprocessing: Preprocessing) -> Picture:
    """The first of a file's selected frames. Raises what `open_scan` and `Scan.picture` raise."""
    scan = open_scan(content, preprocessing, allow_burned_in=True)
    return scan.picture(scan.frames[0])


@contextmanager
def _errors_as_rejected() -> Iterator[None]:
    """Turn every error into Rejected, so that one bad file never ends a job.

    This includes errors by a bug and by lack of memory.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except MemoryError as error:
        raise Rejected("too_large", "there is not enough memory to read it") from error
    except BaseException as error:  # decoders written in Rust raise panics that are not an Exception
        raise Rejected("unexpected", f"reading it failed ({type(error).__name__})") from error


def file_format(content: bytes) -> str:
    """The key of `READERS` for a file, from its first bytes. Raises Rejected: unknown_format."""
    head = content[:HEAD]
    if dicom.looks_like_dicom(head):  # first: a DICOM preamble may also be a TIFF header
        return "dicom"
    for marks, name in MARKS:
        if head.startswith(marks):
            return name
    if nifti.looks_like_nifti(content):
        return "nifti"
    if nifti.looks_like_header_of_pair(content):
        raise Rejected("unknown_format", nifti.PAIR)
    raise Rejected("unknown_format")


def _open_dicom(content: bytes, preprocessing: Preprocessing, allow_burned_in: bool) -> Scan:
    file = dicom.DicomFile(content, preprocessing, allow_burned_in)
    return Scan(file.frames, file.identities, file.shown, file.frame_count, preprocessing.frames == "middle")


def _open_picture(content: bytes, preprocessing: Preprocessing, _: bool) -> Scan:
    file = pictures.PictureFile(content, preprocessing, file_format(content))
    return Scan(file.frames, Identities(), file.shown, file.frame_count, preprocessing.frames == "middle")


def _open_nifti(content: bytes, preprocessing: Preprocessing, _: bool) -> Scan:
    """A volume (X, Y, Z) or a series of volumes. Its frames are axial slices, selected by the settings."""
    with dicom.quiet():
        volume = nifti.Volume(content)
    return Scan(
        dicom.select_frames(volume.slices, preprocessing.frames),
        Identities(),
        partial(_shown_slice, volume, preprocessing),
        volume.slices,
        preprocessing.frames == "middle",
    )


def _shown_slice(volume: nifti.Volume, preprocessing: Preprocessing, frame: int) -> Shown:
    with dicom.quiet():
        shown = levels.show(volume.slice(frame), preprocessing)
    # A volume has no window, so that its own range is the rule and no guess.
    return replace(shown, facts=replace(shown.facts, pixel_spacing=volume.spacing), guesses=())


READERS: dict[str, Callable[[bytes, Preprocessing, bool], Scan]] = {
    "dicom": _open_dicom,
    "png": _open_picture,
    "jpeg": _open_picture,
    "tiff": _open_picture,
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
    """Fit an image to the square of a stored sample.

    Args:
        picture: The image.
        preprocessing: The sample's side in pixels and bit depth.

    Returns:
        (1, size, size), uint8 in 0–255 or uint16 in 0–65535.
    """
    height, width, size = picture.facts.height, picture.facts.width, preprocessing.size
    pixels = picture.pixels
    # The filter is separable. The longer axis goes first, because the array with the letterbox is then smaller.
    for axis in (0, 1) if height >= width else (1, 0):
        pixels = _fit_axis(pixels, axis, (height, width)[axis], picture, size)
    largest = 2**preprocessing.bits - 1
    levels = np.rint(np.clip(pixels, 0, 1) * largest)
    return levels.astype(np.uint8 if preprocessing.bits == 8 else np.uint16)[None]


def _fit_axis(pixels: np.ndarray, axis: int, length: int, picture: Picture, size: int) -> np.ndarray:
    """Letterbox one axis, of `length` pixels in the original, and resize it to `size` pixels."""
    side = max(picture.facts.height, picture.facts.width)
    layout = _axis_layout(length, side, pixels.shape[axis], picture.scale, picture.edge, size)
    turn = (slice(None), None) if axis == 0 else (None, slice(None))
    shape = list(pixels.shape)
    if layout.cells != shape[axis]:
        shape[axis] = layout.cells
        square = np.zeros(shape, dtype=np.float32)
        inside = square[layout.image] if axis == 0 else square[:, layout.image]
        np.multiply(pixels, layout.covered[turn], out=inside)
        pixels = square
    if axis == 0:
        new, box = (shape[1], size), (0.0, layout.begin, float(shape[1]), layout.end)
    else:
        new, box = (size, shape[0]), (layout.begin, 0.0, layout.end, float(shape[0]))
    resized = Image.fromarray(pixels).resize(new, Image.Resampling.BILINEAR, box)
    return np.asarray(resized) * layout.correction[turn]


@dataclass(frozen=True)
class _AxisLayout:
    """Where the cells of an image lie on the letterboxed square, along one axis.

    The image's cells fill the slice `image` of an array of `cells` cells. The square runs from `begin` to `end` in that
    array. These limits are fractions, because the letterbox need not be a whole number of cells wide. `covered` (n,) is
    the fraction of each image cell that the original covers, since cells at its edges may reach into the letterbox.
    `correction` (size,) multiplies each row of the sample. It makes a white image exactly as white as it would be
    without the reduction to cells.
    """

    cells: int
    image: slice
    begin: float
    end: float
    covered: np.ndarray
    correction: np.ndarray


@lru_cache(maxsize=256)
def _axis_layout(length: int, side: int, count: int, scale: int, edge: float, size: int) -> _AxisLayout:
    """The layout of `count` cells along an axis of `length` pixels, on a square of `side` pixels resized to `size`."""
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
    return _AxisLayout(cells, image, begin, end, covered, correction)


def image_area(height: int, width: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of a fitted sample that lie wholly inside the image, without letterbox.

    Args:
        height: Height of the original in pixels.
        width: Width of the original in pixels.
        size: Side of the fitted square in pixels.
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
    """(H, W) or (H, W, 3) uint8 as the bytes of a PNG without text chunks."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
