"""Decodes JPEG files that Pillow cannot decode: those of more than 8 bits, lossless ones, and JPEG-LS.

Such a file is decoded as if it were the only frame of a DICOM file.
"""

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSNearLossless,
)

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom.decoding import decode
from cyclic_cli.imaging.dicom.reading import LARGEST_SIDE

PROGRESSIVE = UID("1.2.840.10008.1.2.4.55")  # retired from the standard
SYNTAXES = {
    0xC0: JPEGBaseline8Bit,
    0xC1: JPEGExtended12Bit,
    0xC2: PROGRESSIVE,
    0xC3: JPEGLossless,
    0xF7: JPEGLSNearLossless,
}
"""Transfer syntaxes by the marker of the frame header (ITU-T T.81 table B.1, T.87 C.1.1)."""
DECODED_BY_PILLOW = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
"""Markers of the processes that every Pillow decodes, if the values have 8 bits."""
PROCESSES = dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical coding")
PROCESSES |= dict.fromkeys((0xC9, 0xCA, 0xCB), "arithmetic coding")
"""Processes that cannot be decoded here, with what is special about them."""


@dataclass(frozen=True)
class FrameHeader:
    """The frame header of a JPEG or JPEG-LS stream (ITU-T T.81 B.2.2, T.87 C.2.2).

    `sampling` are the factors of the first component, across and down.
    """

    marker: int
    bits: int
    rows: int
    columns: int
    samples: int
    sampling: tuple[int, int]


def frame_header(stream: bytes) -> FrameHeader | None:
    """The frame header of a stream, None where there is none."""
    at = 2
    while at + 12 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = (int.from_bytes(stream[at + by : at + by + 2], "big") for by in (5, 7))
            sampling = (stream[at + 11] >> 4, stream[at + 11] & 15)
            return FrameHeader(marker, stream[at + 4], rows, columns, stream[at + 9], sampling)
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def needs_other_decoder(found: FrameHeader | None) -> bool:
    """Whether a stream with this frame header is one that Pillow cannot decode."""
    return found is not None and not (found.bits == 8 and found.marker in DECODED_BY_PILLOW)


def decode_jpeg(stream: bytes) -> np.ndarray:
    """The values (H, W), or (H, W, 3) in RGB, of a JPEG stream.

    Raises:
        Rejected: too_large, no_decoder or broken_pixels.
    """
    found = frame_header(stream)
    if found is None:
        raise Rejected("broken_pixels", "a JPEG stream has no frame header")
    if max(found.rows, found.columns) > LARGEST_SIDE:
        raise Rejected("too_large", f"{found.columns}×{found.rows}; a side has at most {LARGEST_SIDE}")
    if found.marker not in SYNTAXES:
        process = PROCESSES.get(found.marker, "an unknown process")
        raise Rejected("no_decoder", f"JPEG of {found.bits} bits with {process} is not supported")
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(SYNTAXES[found.marker])
    header.Rows, header.Columns, header.SamplesPerPixel = found.rows, found.columns, found.samples
    header.PhotometricInterpretation = "RGB" if found.samples == 3 else "MONOCHROME2"
    header.PlanarConfiguration = 0
    header.BitsAllocated = 8 if found.bits <= 8 else 16
    header.BitsStored, header.HighBit, header.PixelRepresentation = found.bits, found.bits - 1, 0
    header.PixelData = encapsulate([stream])
    header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    return decode(header, 0)
