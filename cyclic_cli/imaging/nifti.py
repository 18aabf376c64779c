"""NIfTI volumes (.nii, .nii.gz): their axial slices as a viewer shows them. nibabel, which reads them, is an extra.

A slice is shown in radiological convention: row 0 is anterior, column 0 the patient's right; slices count upwards from
the feet. Of a series of volumes (a fourth axis) the first is taken.
"""

import gzip
import io
import logging
import zlib

import numpy as np

from cyclic_cli.errors import Rejected

MARKS = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}  # of NIfTI-1 and -2, by their header's length: where and what
GZIP = b"\x1f\x8b"
LARGEST_VOLUME = 2**31  # bytes, unpacked


def looks_like_nifti(content: bytes) -> bool:
    """Whether a file begins as a NIfTI volume does, packed by gzip or not."""
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
    """A volume whose header is read: `slices` counts its axial slices, `spacing` is mm between rows, `bits` of a value.

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
        logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)  # it quotes values of the header
        try:
            content = _unpacked(content)
            kind = nibabel.Nifti2Image if content[4:8] == MARKS[540][1] else nibabel.Nifti1Image
            image = kind.from_bytes(content)
            order = nibabel.io_orientation(
                image.affine
            )  # (3, 2): the axis of the patient, and whether it runs that way
        except Rejected:
            raise
        except Exception as error:  # a damaged header makes the parser raise almost anything
            raise Rejected("broken_header", f"the volume cannot be read ({type(error).__name__})") from error
        if len(image.shape) < 3 or min(image.shape) < 1 or np.isnan(order).any():
            raise Rejected("broken_header", "it is not a volume of three axes")
        self._voxels = image.dataobj
        self._axis = {int(axis): stored for stored, axis in enumerate(order[:, 0])}  # right, anterior, superior: stored
        self._forwards = {int(axis): direction > 0 for axis, direction in order}
        self.slices = int(image.shape[self._axis[2]])
        self.spacing = float(image.header.get_zooms()[self._axis[1]])
        self.bits = int(image.header["bitpix"])

    def slice(self, number: int) -> np.ndarray:
        """An axial slice from the feet upwards: (H, W) float32, scaled as the header says. Raises Rejected."""
        wanted = [slice(None)] * 3 + [0] * (len(self._voxels.shape) - 3)
        wanted[self._axis[2]] = number if self._forwards[2] else self.slices - 1 - number
        try:
            values = np.asarray(self._voxels[tuple(wanted)]).astype(np.float32)  # the two other axes, as stored
        except Exception as error:
            raise Rejected("broken_pixels", f"the slice cannot be read ({type(error).__name__})") from error
        if self._axis[0] < self._axis[1]:
            values = values.T
        # rows run along the anterior axis now, columns along the right one
        values = values[::-1] if self._forwards[1] else values
        return values[:, ::-1] if self._forwards[0] else values


def _unpacked(content: bytes) -> bytes:
    if not content.startswith(GZIP):
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked = file.read(LARGEST_VOLUME + 1)
    if len(unpacked) > LARGEST_VOLUME:
        raise Rejected("too_large", f"more than {LARGEST_VOLUME // 2**30} GiB unpacked")
    return unpacked
