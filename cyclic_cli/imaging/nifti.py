"""Reads the axial slices of NIfTI volumes (.nii, .nii.gz). It needs nibabel, which the extra `nifti` installs.

Slices are shown in radiological convention: row 0 is anterior, and column 0 is the patient's right. Slices are numbered
upwards from the feet. Where a file holds a series of volumes (a fourth axis), the first volume is read.
"""

import gzip
import io
import logging
import zlib

import numpy as np

from cyclic_cli.errors import Rejected

MARKS = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}  # header length of NIfTI-1 and -2: offset and value of the magic
GZIP = b"\x1f\x8b"
LARGEST_VOLUME = 2**31  # bytes after decompression


def looks_like_nifti(content: bytes) -> bool:
    """Whether a file, compressed by gzip or not, begins with a NIfTI header."""
    if content.startswith(GZIP):
        try:
            content = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(content[:65536], max(MARKS))
        except zlib.error:
            return False
    return any(
        content[at : at + 4] == mark and length.to_bytes(4, order) == content[:4]
        for length, (at, mark) in MARKS.items()
        for order in ("little", "big")
    )


class Volume:
    """A volume whose header has been read, while its voxels are read slice by slice.

    `slices` is the number of axial slices, `spacing` the distance between rows in mm, and `bits` the bits per voxel.

    Raises:
        Rejected: no_decoder without nibabel, too_large, broken_header.
    """

    def __init__(self, content: bytes) -> None:
        try:
            import nibabel
        except ImportError:
            raise Rejected(
                "no_decoder", "NIfTI volumes need the extra `nifti`: pip install 'cyclic-cli[nifti]'"
            ) from None
        logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)  # its messages quote header values
        try:
            content = _unpacked(content)
            kind = nibabel.Nifti2Image if content[4:8] == MARKS[540][1] else nibabel.Nifti1Image
            image = kind.from_bytes(content)
            order = nibabel.io_orientation(image.affine)  # (3, 2): patient axis and direction of each stored axis
        except Rejected:
            raise
        except Exception as error:  # a damaged header makes the parser raise almost anything
            raise Rejected("broken_header", f"the volume cannot be read ({type(error).__name__})") from error
        if len(image.shape) < 3 or min(image.shape) < 1 or np.isnan(order).any():
            raise Rejected("broken_header", "the volume does not have three spatial axes")
        self._voxels = image.dataobj
        self._axis = {
            int(axis): stored for stored, axis in enumerate(order[:, 0])
        }  # right, anterior, superior → stored axis
        self._forwards = {int(axis): direction > 0 for axis, direction in order}
        self.slices = int(image.shape[self._axis[2]])
        self.spacing = float(image.header.get_zooms()[self._axis[1]])
        self.bits = int(image.header["bitpix"])

    def slice(self, number: int) -> np.ndarray:
        """One axial slice, (H, W) float32, scaled by the header's slope and intercept.

        Args:
            number: Index from 0, counted from the feet upwards.

        Raises:
            Rejected: broken_pixels.
        """
        wanted = [slice(None)] * 3 + [0] * (len(self._voxels.shape) - 3)
        wanted[self._axis[2]] = number if self._forwards[2] else self.slices - 1 - number
        try:
            values = np.asarray(self._voxels[tuple(wanted)]).astype(np.float32)  # the other two axes, in stored order
        except Exception as error:
            raise Rejected("broken_pixels", f"the slice cannot be read ({type(error).__name__})") from error
        if self._axis[0] < self._axis[1]:
            values = values.T
        # now rows run along the anterior axis, and columns along the right axis
        values = values[::-1] if self._forwards[1] else values
        return values[:, ::-1] if self._forwards[0] else values


def _unpacked(content: bytes) -> bytes:
    """The content after gzip decompression where it is compressed. Raises Rejected: too_large."""
    if not content.startswith(GZIP):
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked = file.read(LARGEST_VOLUME + 1)
    if len(unpacked) > LARGEST_VOLUME:
        raise Rejected("too_large", f"the volume has more than {LARGEST_VOLUME // 2**30} GiB after decompression")
    return unpacked
