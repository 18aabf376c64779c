"""Decodes JPEG files that Pillow cannot decode: those of more than 8 bits, lossless ones, and JPEG-LS.

Such a file is decoded as if it were the only frame of a DICOM file.
"""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom.decoding import decode
from cyclic_cli.imaging.dicom.reading import LARGEST_SIDE
from cyclic_cli.imaging.dicom.streams import PROCESSES, StreamHeader, stream_header

DECODED_BY_PILLOW = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
"""Markers of the frame headers of processes that every Pillow decodes, if the values have 8 bits."""
UNSUPPORTED = dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical coding")
UNSUPPORTED |= dict.fromkeys((0xC9, 0xCA, 0xCB), "arithmetic coding")
"""Markers of processes that cannot be decoded here, with what is special about them."""


def needs_other_decoder(found: StreamHeader | None) -> bool:
    """Whether a stream with this frame header is one that Pillow cannot decode."""
    return found is not None and not (found.bits == 8 and found.process in DECODED_BY_PILLOW)


def decode_jpeg(stream: bytes) -> np.ndarray:
    """The values (H, W), or (H, W, 3) in RGB, of a JPEG stream.

    Raises:
        Rejected: too_large, no_decoder or broken_pixels.
    """
    found = stream_header(stream)
    if found is None:
        raise Rejected("broken_pixels", "a JPEG stream has no frame header")
    if max(found.rows, found.columns) > LARGEST_SIDE:
        raise Rejected("too_large", f"{found.columns}×{found.rows}; a side has at most {LARGEST_SIDE}")
    if found.process not in PROCESSES:
        process = UNSUPPORTED.get(found.process, "an unknown process")
        raise Rejected("no_decoder", f"JPEG of {found.bits} bits with {process} is not supported")
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = PROCESSES[found.process][0]
    header.Rows, header.Columns, header.SamplesPerPixel = found.rows, found.columns, found.samples
    header.PhotometricInterpretation = "RGB" if found.samples == 3 else "MONOCHROME2"
    header.PlanarConfiguration = 0
    header.BitsAllocated = 8 if found.bits <= 8 else 16
    header.BitsStored, header.HighBit, header.PixelRepresentation = found.bits, found.bits - 1, 0
    header.PixelData = encapsulate([stream])
    header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    return decode(header, 0)
