"""DICOM files: read the way a viewer shows them, and radiographs written. The only package that knows pydicom.

From stored value to grey level in [0, 1], in the order of the standard (PS3.3 C.11, PS3.4 N.2):

1. decode one frame (the middle one), with the first installed decoder that manages; YBR becomes RGB
2. find the padding: Pixel Padding Value up to Pixel Padding Range Limit, in stored values (PS3.3 C.7.5.1.1.2)
3. modality transform: Modality LUT, else Rescale Slope and Intercept (PS3.3 C.11.1); for enhanced images of this frame
4. values of interest: VOI LUT, else the first window (LINEAR, LINEAR_EXACT or SIGMOID, PS3.3 C.11.2), else the
   range from the 0.5th to the 99.5th percentile of what is not padding
5. photometric interpretation: MONOCHROME1 is inverted after the window, never before; padding becomes black
6. colour (RGB, PALETTE COLOR) skips 2 to 5 and becomes luminance (ITU-R BT.601)

What is unusual: nothing of the header leaves this package but an allow-list (`Facts`), of it only terms that the
standard defines, and the identities that `identity.Keyer` turns into keys. pydicom's own warnings quote values
from the header, so they are silenced here. What is written depends on no clock, host or chance.

    decoding.py    step 1: stored values of one frame
    rendering.py   steps 2 to 6
    header.py      what of a header may be kept, and whom it names
    writing.py     radiographs of the demo's phantoms
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pydicom
import pydicom.config
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cyclic_cli.config import Preprocessing, check_frames
from cyclic_cli.dicom.decoding import decode
from cyclic_cli.dicom.header import Facts, Identities, facts_of, identities_of, whole_number
from cyclic_cli.dicom.rendering import render
from cyclic_cli.errors import InputError, Rejected, Skipped

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

LARGEST_FRAME = 2**30  # samples; the largest film of this field has about 2**25

NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "label map segmentation",
    "1.2.840.10008.5.1.4.1.1.66": "raw data object",
    "1.2.840.10008.5.1.4.1.1.66.1": "spatial registration",
}
"""SOP classes that are valid and hold no image to learn from (PS3.4 B.5), with what they are."""
NOT_IMAGE_FAMILIES = {
    "1.2.840.10008.5.1.4.1.1.11.": "presentation state",
    "1.2.840.10008.5.1.4.1.1.88.": "structured report",
    "1.2.840.10008.5.1.4.1.1.9.": "waveform",
    "1.2.840.10008.5.1.4.1.1.104.": "encapsulated document",
    "1.2.840.10008.5.1.4.1.1.481.": "radiotherapy object",
}


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are DICOM: marked after a preamble, or a data set that starts without one."""
    if head[128:132] == b"DICM":
        return True
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\x00"
    explicit = head[4:6].isalpha() and head[4:6].isupper()  # a value representation such as UL or CS
    implicit = len(head) >= 8 and int.from_bytes(head[4:8], "little") < 256  # the length of a short first element
    return (little or big) and (explicit or (little and implicit))


class Film:
    """A DICOM file whose header is read.

    Args:
        content: The file.
        preprocessing: Which frames, and how they are shown.
        allow_burned_in: Take images that say that text is burned into them.

    Raises:
        Skipped: a valid object without an image to learn from.
        Rejected: broken_header, no_pixels, too_large or burned_in.
    """

    def __init__(self, content: bytes, preprocessing: Preprocessing, allow_burned_in: bool = False) -> None:
        self.identities = Identities()
        with self._careful():
            self._header = _parse(content)
            self.identities = identities_of(self._header)
            _refuse_what_is_no_image(self._header)
            if str(self._header.get("BurnedInAnnotation", "")).strip().upper() == "YES" and not allow_burned_in:
                raise Rejected("burned_in")
            self.frames = select_frames(whole_number(self._header, "NumberOfFrames", 1), preprocessing.frames)

    def pixels(self, frame: int) -> tuple[np.ndarray, Facts]:
        """A frame as a viewer would show it: (H, W) float32 in [0, 1], 0 black; and the header's allowed facts.

        Raises:
            Rejected: no_decoder, broken_pixels or broken_header.
        """
        with self._careful():
            stored = decode(self._header, frame)
            pixels = render(self._header, stored, frame)
            return pixels, facts_of(self._header, pixels.shape)

    @contextmanager
    def _careful(self) -> Iterator[None]:
        """Nothing on the terminal, and every error an InputError that knows whom the header names."""
        with _quiet():
            try:
                yield
            except InputError as error:
                error.identities = self.identities
                raise
            except Exception as error:  # attributes are parsed when they are first read, and may be anything
                wrong = Rejected("broken_header", f"an attribute is missing or wrong ({type(error).__name__})")
                wrong.identities = self.identities
                raise wrong from error


def select_frames(count: int, wanted: str) -> list[int]:
    """The frames, from 0, that a `--frames` setting picks out of `count`. Raises Rejected where there are too few."""
    choice = check_frames(wanted)
    count = max(1, count)
    if choice == "all":
        return list(range(count))
    if isinstance(choice, int):
        if choice > count:
            raise Rejected("no_frame", f"frame {choice} is asked for, and there are {count}")
        return [choice - 1]
    return [0 if choice == "first" else count // 2]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep decoders' complaints off the terminal: C libraries write them straight to file descriptor 2."""
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


def _parse(content: bytes) -> Dataset:
    try:
        header = pydicom.dcmread(io.BytesIO(content), force=True)
    except Exception as error:  # a damaged file makes the parser raise almost anything
        raise Rejected("broken_header", f"the file cannot be parsed ({type(error).__name__})") from error
    if "TransferSyntaxUID" not in header.file_meta:  # no file meta: it is what the parser found it to be
        implicit, little = header.original_encoding
        header.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return header


def _refuse_what_is_no_image(header: Dataset) -> None:
    sop_class = str(header.get("SOPClassUID", "") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    if sop_class in NOT_IMAGES:
        raise Skipped(NOT_IMAGES[sop_class])
    for family, kind in NOT_IMAGE_FAMILIES.items():
        if sop_class.startswith(family) and sop_class != "1.2.840.10008.5.1.4.1.1.481.1":  # RT Image is a film
            raise Skipped(kind)
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Rejected("no_pixels")
    samples = [whole_number(header, name) for name in ("Rows", "Columns")] + [
        whole_number(header, "SamplesPerPixel", 1)
    ]
    if min(samples) < 1:
        raise Rejected("broken_header", "Rows, Columns or Samples per Pixel is missing or zero")
    if np.prod([float(number) for number in samples]) > LARGEST_FRAME:
        raise Rejected("too_large", f"{samples[1]}×{samples[0]} pixels are declared")
