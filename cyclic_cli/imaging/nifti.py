"""Reads the axial slices of NIfTI volumes (.nii, .nii.gz). It needs nibabel, which the extra `nifti` installs.

Slices are shown in radiological convention: row 0 is anterior, and column 0 is the patient's right. Slices are numbered
upwards from the feet. Where a file holds a series of volumes (a fourth axis), the first volume is read. Colour, whether
its voxels are RGB or vectors of red, green and blue, becomes luminance. Complex voxels become magnitudes.
"""

import logging
import math
import zlib

import numpy as np

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.aspect import aspect_of
from cyclic_cli.imaging.levels import Stored

MARKS = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}  # header length of NIfTI-1 and -2: offset and value of the magic
GZIP = b"\x1f\x8b"
LARGEST_VOLUME = 2**31  # bytes after decompression
MOST_VOXELS = 100  # per byte of the file; a volume that is larger by so much is not merely cut short
COLOUR_VECTORS = (1007, 2003, 2004)  # intent codes of vectors, RGB and RGBA
PAIR = "one half of a pair of .hdr and .img (NIfTI or Analyze 7.5); convert the pair to one .nii file"


def looks_like_nifti(content: bytes) -> bool:
    """Whether a file, compressed by gzip or not, begins with a NIfTI header."""
    head = _head(content)
    return any(head[at : at + 4] == mark and _states_length(head, length) for length, (at, mark) in MARKS.items())


def looks_like_header_of_pair(content: bytes) -> bool:
    """Whether a file is the header of a pair of files, of which the other holds the voxels (NIfTI or Analyze 7.5)."""
    head = _head(content)
    of_analyze = _states_length(head, 348) and len(head) <= 352  # it has no mark, and nothing after the header
    of_nifti = (_states_length(head, 348) and head[344:348] == b"ni1\0") or head[4:8] == b"ni2\0"
    return of_analyze or of_nifti


def _head(content: bytes) -> bytes:
    if content.startswith(GZIP):
        try:
            return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(content[:65536], max(MARKS))
        except zlib.error:
            return b""
    return content[: max(MARKS)]


def _states_length(head: bytes, length: int) -> bool:
    """Whether a header begins with its length, in either byte order."""
    return len(head) >= 348 and head[:4] in (length.to_bytes(4, "little"), length.to_bytes(4, "big"))


class Volume:
    """A volume whose header has been read, while its voxels are read slice by slice.

    `slices` is the number of axial slices, `spacing` the distance between rows in mm, and `aspect` the distance between
    rows divided by the distance between columns.

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
        content = _unpacked(content)
        kind = nibabel.Nifti2Image if content[4:8] == MARKS[540][1] else nibabel.Nifti1Image
        try:
            image = kind.from_bytes(content)
            self._intent = int(image.header["intent_code"])
        except Exception as error:  # a damaged header makes the parser raise almost anything
            raise Rejected(
                "broken_header", "its data type is not supported, or a size or scale is not valid"
            ) from error
        try:
            order = nibabel.io_orientation(image.affine)  # (3, 2): patient axis and direction of each stored axis
        except Exception as error:
            raise Rejected("broken_header", "the orientation is not valid") from error
        if len(image.shape) < 2 or min(image.shape) < 1:
            raise Rejected("broken_header", "the volume has fewer than two axes, or an axis of length 0")
        if math.prod(image.shape) > MOST_VOXELS * len(content):
            raise Rejected("broken_pixels", "the volume is far larger than the file that holds it")
        if np.isnan(order).any():
            raise Rejected("broken_header", "the orientation gives an axis of the volume no direction")
        self._voxels = image.dataobj if len(image.shape) > 2 else image.dataobj.reshape((*image.shape, 1))
        self._axis = {
            int(axis): stored for stored, axis in enumerate(order[:, 0])
        }  # right, anterior, superior → stored axis
        self._forwards = {int(axis): direction > 0 for axis, direction in order}
        self.slices = int(self._voxels.shape[self._axis[2]])
        zooms = (*image.header.get_zooms(), 1.0)[:3]
        self.spacing = float(zooms[self._axis[1]])
        kind = self._voxels.dtype
        self._bits = 8 * kind.itemsize // len(kind.names or "1")  # of a component, where voxels are colours
        self.aspect = aspect_of(float(zooms[self._axis[1]]), float(zooms[self._axis[0]]))

    def slice(self, number: int) -> Stored:
        """One axial slice, scaled by the header's slope and intercept.

        Args:
            number: Index from 0, counted from the feet upwards.

        Raises:
            Rejected: broken_pixels.
        """
        shape = self._voxels.shape
        wanted: list[slice | int] = [slice(None)] * 3 + [0] * (len(shape) - 3)
        wanted[self._axis[2]] = number if self._forwards[2] else self.slices - 1 - number
        if self._holds_colour_vectors:
            wanted[4] = slice(0, 3)
        try:
            values = np.asarray(self._voxels[tuple(wanted)])  # the other two axes, in stored order
        except Exception as error:
            raise Rejected("broken_pixels", "the voxels are damaged or cut short") from error
        if values.dtype.names:
            values = np.stack([values[name] for name in "RGB"], axis=-1)
        if self._axis[0] < self._axis[1]:
            values = values.swapaxes(0, 1)
        # now rows run along the anterior axis, and columns along the right axis
        values = values[::-1] if self._forwards[1] else values
        values = values[:, ::-1] if self._forwards[0] else values
        shades_of_8_bits = values.ndim == 3 and values.dtype == np.uint8
        return Stored(_as_real(values), self._bits, (0, 255) if shades_of_8_bits else None, aspect=self.aspect)

    @property
    def _holds_colour_vectors(self) -> bool:
        """Whether the fifth axis holds red, green and blue, by its intent or as bytes of a single volume."""
        shape = self._voxels.shape
        if len(shape) < 5 or shape[4] not in (3, 4):
            return False
        return self._intent in COLOUR_VECTORS or (shape[3] == 1 and self._voxels.dtype == np.uint8)


def _as_real(values: np.ndarray) -> np.ndarray:
    """Colours of 8 bits as they are, magnitudes of complex values, other values as float32 or float64."""
    if values.ndim == 3 and values.dtype == np.uint8:
        return values
    values = np.abs(values) if values.dtype.kind == "c" else values
    exact = values.dtype.itemsize <= 2 or values.dtype in (np.float32, np.float16)
    return values.astype(np.float32 if exact else np.float64)


def _unpacked(content: bytes) -> bytes:
    """The content after gzip decompression where it is compressed. Raises Rejected: too_large or broken_header."""
    if not content.startswith(GZIP):
        return content
    parts, length = [], 0
    while content.startswith(GZIP):  # a file may have several members, and other bytes after them
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            parts.append(inflater.decompress(content, LARGEST_VOLUME + 1 - length))
        except zlib.error as error:
            raise Rejected("broken_header", "the gzip compression of the volume is damaged") from error
        length += len(parts[-1])
        if length > LARGEST_VOLUME:
            raise Rejected("too_large", f"the volume has more than {LARGEST_VOLUME // 2**30} GiB after decompression")
        if not inflater.eof:
            raise Rejected("broken_header", "the gzip file of the volume is cut short")
        content = inflater.unused_data
    return b"".join(parts)
