"""Reads DICOM files, and shows their frames the way a viewer does.

Stored values become grey levels in [0, 1] in the order of the standard (PS3.3 C.11, PS3.4 N.2):

1. Decoding: the first decoder that succeeds decodes the frame. YBR becomes RGB, and bits outside Bits Stored are
   dropped (PS3.5 8.1.1).
2. Padding: stored values from Pixel Padding Value to Pixel Padding Range Limit are padding (PS3.3 C.7.5.1.1.2). Float
   pixel data have their own attributes for it (C.7.6.24).
3. Modality transform: the Modality LUT, else Rescale Slope and Intercept (PS3.3 C.11.1). Enhanced images state it per
   frame. A slope that is 0 or no number is taken as 1.
4. Values of interest: the setting `--window` decides. By default the VOI LUT is used, else the first window (LINEAR,
   LINEAR_EXACT or SIGMOID, PS3.3 C.11.2), else the range from the 0.5th to the 99.5th percentile of all pixels that are
   not padding. A LUT or window that is damaged, or that shows a single grey level, is passed over. A narrow LINEAR
   window of fractional values is taken as LINEAR_EXACT. Enhanced images state the LUT or window per frame.
5. Clipping to [0, 1].
6. Polarity: Presentation LUT Shape (PS3.3 C.11.6), else MONOCHROME1, decides whether grey levels are inverted. They are
   inverted at most once, after the window. If the two attributes disagree, the shape takes precedence, as in DCMTK.
7. Padding becomes black.
8. Colour: PALETTE COLOR is mapped by its tables. Colour images skip steps 2 to 7 and become luminance (ITU-R BT.601).

A small sample of a large image does not need the full resolution. JPEG and JPEG 2000 frames are decoded at a lower
resolution where the header or the user states a linear window and there is no padding. All other frames are decoded in
full and averaged after step 7. Two checks limit the error. A frame that clips strongly where it varies strongly is
decoded in full, since clipping and averaging do not commute. A frame with sharp edges is decoded at a higher
resolution. The setting `exact` decodes every frame in full and never averages. The sample differs from that one by at
most half a grey level on average, and four grey levels at the 99.9th percentile.

Only two things from a header leave this package. One is an allow-list of facts (`Facts`), restricted to terms that the
standard defines. The other is the identities, which `privacy.keys.Keyer` turns into keys. pydicom's warnings quote
header values, so they are silenced here.

    parsing.py             the header and the pixel data of a file, with the transfer syntax that they have
    streams.py             fragments, frames and headers of compressed streams
    decoding.py            step 1: stored values of one frame, at full or reduced resolution
    rendering.py           steps 2 to 8
    windows.py             lines, windows and lookup tables for rendering.py
    reduction.py           checks whether a reduced resolution suffices
    strips.py              arithmetic of large frames for rendering.py
    header.py              facts that may be kept, and identities
    jpeg_file.py           JPEG files that Pillow cannot decode, as frames of DICOM
    structured_report.py   text of a structured report
    directory.py           files that a DICOMDIR lists
    writing.py             synthetic radiographs as DICOM files
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pydicom
import pydicom.config
from pydicom.dataset import Dataset
from pydicom.uid import UID

from cyclic_cli.config import Preprocessing, check_frames
from cyclic_cli.errors import InputError, Rejected, Skipped
from cyclic_cli.imaging.dicom.decoding import Reduced, decode, frame_count, guesses_of, reductions
from cyclic_cli.imaging.dicom.header import (
    Facts,
    Identities,
    aspect_of_pixels,
    code_of,
    facts_of,
    identities_of,
    whole_number,
)
from cyclic_cli.imaging.dicom.parsing import ends_in_header, parse
from cyclic_cli.imaging.dicom.reduction import MEAN_BOUND, clips_little, is_smooth
from cyclic_cli.imaging.dicom.rendering import Rendering
from cyclic_cli.imaging.dicom.structured_report import text_of

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

LARGEST_SIDE = 2**14  # pixels; the letterboxed square of a longer image would not fit into memory
LARGEST_FRAME = LARGEST_SIDE**2  # samples; the largest radiographs have about 2**25
CELLS = 3  # minimum number of cells per sample pixel, along a side, before the antialiased resize

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "label map segmentation",
    "1.2.840.10008.5.1.4.1.1.66": "raw data object",
    "1.2.840.10008.5.1.4.1.1.66.1": "spatial registration",
}
"""Valid SOP classes without an image to learn from (PS3.4 B.5), with their names."""
NOT_IMAGE_FAMILIES = {
    "1.2.840.10008.5.1.4.1.1.11.": "presentation state",
    "1.2.840.10008.5.1.4.1.1.88.": "structured report",
    "1.2.840.10008.5.1.4.1.1.9.": "waveform",
    "1.2.840.10008.5.1.4.1.1.104.": "encapsulated document",
    "1.2.840.10008.5.1.4.1.1.481.": "radiotherapy object",
}
"""Prefixes of such SOP classes, with the names of their families."""


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are DICOM: a preamble and its mark, or a dataset without preamble."""
    if head[128:132] == b"DICM":
        return True
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\x00"
    explicit = head[4:6].isalpha() and head[4:6].isupper()  # a value representation such as UL or CS
    implicit = len(head) >= 8 and int.from_bytes(head[4:8], "little") < 256  # the length of a short first element
    return (little or big) and (explicit or (little and implicit))


@dataclass(frozen=True)
class Shown:
    """A frame as a viewer shows it, possibly at a lower resolution.

    `pixels` (H', W') are float32 in [0, 1], where 0 is black. Along either axis, cell k covers the original's pixels
    from (k - `edge`) · `scale` to (k + 1 - `edge`) · `scale`. `facts` holds the size of the original. `guesses` are
    keys of `guesses.GUESSES`. `aspect` is the height of a pixel divided by its width; where it is not 1, `scale` is 1.
    """

    pixels: np.ndarray
    facts: Facts
    scale: int = 1
    edge: float = 0.0
    guesses: tuple[str, ...] = ()
    aspect: float = 1.0


class DicomFile:
    """A DICOM file whose header has been read.

    Args:
        content: The file.
        preprocessing: Which frames are selected, and how they are shown.
        allow_burned_in: Accept images whose header states burned-in text.

    Raises:
        Skipped: a valid object without an image to learn from.
        Rejected: broken_header, no_pixels, too_large, broken_pixels, no_frame or burned_in.
    """

    def __init__(self, content: bytes, preprocessing: Preprocessing, allow_burned_in: bool = False) -> None:
        self.identities = Identities()
        self._preprocessing = preprocessing
        with self._handled_errors():
            self._header, behind = parse(content)
            self.identities = identities_of(self._header, behind)
            _refuse_non_images(self._header)
            if code_of(self._header, "BurnedInAnnotation") == "YES" and not allow_burned_in:
                raise Rejected("burned_in")
            self.frame_count = frame_count(self._header)
            declared = whole_number(self._header, "NumberOfFrames", 1)
            self._guesses = ("frame_count",) if self.frame_count < declared else ()
            self._header.NumberOfFrames = self.frame_count
            self.frames = select_frames(self.frame_count, preprocessing.frames)

    def shown(self, frame: int) -> Shown:
        """Decode a frame and show it as a viewer would.

        Raises:
            Rejected: no_decoder, broken_pixels, blank or broken_header.
        """
        with self._handled_errors():
            rendering = Rendering(self._header, frame, self._preprocessing.window)
            height, width = (whole_number(self._header, name) for name in ("Rows", "Columns"))
            aspect = aspect_of_pixels(self._header, rendering.measures)
            facts = facts_of(self._header, (height, width), rendering.measures)
            of_stream = guesses_of(self._header, frame)
            chosen = self._reduced(rendering, frame, aspect) or Reduced(decode(self._header, frame), 1)
            while rendering.shows_nothing(chosen.stored, "stored_bits" in of_stream):
                rendering.ignore_window()
                chosen = chosen if chosen.scale == 1 else Reduced(decode(self._header, frame), 1)
            factor = cell_factor(chosen.stored, self._preprocessing, aspect)
            pixels = rendering.shown(chosen.stored, factor)
            guesses = (*self._guesses, *of_stream, *rendering.guesses)
            return Shown(pixels, facts, chosen.scale * factor, chosen.edge / factor, guesses, aspect)

    def _reduced(self, rendering: Rendering, frame: int, aspect: float) -> Reduced | None:
        """The frame at the lowest resolution within the error bounds; None where the full frame must be decoded."""
        line, size = rendering.straight, self._preprocessing.size
        if self._preprocessing.exact or line is None or aspect != 1:
            return None
        for reduced in reductions(self._header, frame, size, MEAN_BOUND / 255 / max(abs(line.slope), 1e-9)):
            if not clips_little(line, reduced.stored):
                return None
            if max(reduced.stored.shape) >= reduced.aliases_below * size or is_smooth(line, reduced.stored):
                return reduced
        return None

    @contextmanager
    def _handled_errors(self) -> Iterator[None]:
        """Silence decoders, and turn every error into an InputError that carries the header's identities."""
        with quiet():
            try:
                yield
            except InputError as error:
                error.identities = self.identities
                raise
            except Exception as error:  # pydicom parses attributes on first access, and may raise anything
                wrong = Rejected("broken_header", "an attribute that the image needs is missing or damaged")
                wrong.identities = self.identities
                raise wrong from error


def cell_factor(stored: np.ndarray, preprocessing: Preprocessing, aspect: float = 1.0) -> int:
    """The side in pixels of the cells over which an image (H, W) or (H, W, 3) is averaged before it is resized.

    Pixels that are not square (`aspect` is not 1) are not averaged.
    """
    return 1 if preprocessing.exact or aspect != 1 else max(1, max(stored.shape[:2]) // (CELLS * preprocessing.size))


def select_frames(count: int, wanted: str) -> list[int]:
    """The 0-based frames that a `--frames` setting selects from `count` frames. Raises Rejected: no_frame."""
    choice = check_frames(wanted)
    count = max(1, count)
    if choice == "all":
        return list(range(count))
    if isinstance(choice, int):
        if choice > count:
            raise Rejected("no_frame", f"frame {choice} was requested, but the number of frames is {count}")
        return [choice - 1]
    return [0 if choice == "first" else count // 2]


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of decoders. C libraries write them directly to file descriptor 2."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _refuse_non_images(header: Dataset) -> None:
    """Raise Skipped for objects that hold no image, and Rejected for images without pixels or of impossible size."""
    sop_class = str(header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    if sop_class in NOT_IMAGES:
        raise Skipped(NOT_IMAGES[sop_class])
    for family, kind in NOT_IMAGE_FAMILIES.items():
        if sop_class.startswith(family) and sop_class != "1.2.840.10008.5.1.4.1.1.481.1":  # RT Image
            raise Skipped(kind, text_of(header) if kind == "structured report" else "")
    found = [name for name in PIXELS if name in header]
    if not found and ends_in_header(header):
        raise Rejected("broken_header", "the file ends within its header, or an element states a wrong length")
    if not found:
        is_image = "Rows" in header or "Image Storage" in UID(sop_class).name
        raise Rejected("no_pixels", *(["an image without pixel data, or cut short before them"] if is_image else []))
    if not header[found[0]].value:
        raise Rejected("no_pixels", "the pixel data are empty, or the file ends where they begin")
    rows, columns, samples = (whole_number(header, name) for name in ("Rows", "Columns", "SamplesPerPixel"))
    if rows < 1 or columns < 1:
        raise Rejected("broken_header", "Rows or Columns is missing or zero")
    if max(rows, columns) > LARGEST_SIDE or rows * columns * max(1, samples) > LARGEST_FRAME:
        raise Rejected("too_large", f"{columns}×{rows} pixels are declared; a side has at most {LARGEST_SIDE}")
