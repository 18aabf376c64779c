"""Reads PNG, JPEG and TIFF files.

PNG and JPEG files are decoded by Pillow. JPEG is decoded at a lower resolution where that suffices. JPEG files that
Pillow cannot decode, such as those of 12 bits, are decoded as in DICOM files. `tiff` reads the pages of TIFF files, and
`levels` decides which values are shown black and white.
"""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageFile, ImageOps

from cyclic_cli.config import Preprocessing
from cyclic_cli.imaging import levels, tiff
from cyclic_cli.imaging.aspect import aspect_of
from cyclic_cli.imaging.dicom.decoding import jpeg_scale
from cyclic_cli.imaging.dicom.jpeg_file import decode_jpeg, needs_other_decoder
from cyclic_cli.imaging.dicom.reading import Shown, quiet, select_frames
from cyclic_cli.imaging.dicom.streams import stream_header
from cyclic_cli.imaging.levels import Stored
from cyclic_cli.imaging.pillow import grey, opened

ORIENTATION = 274  # EXIF tag
GREY, GREY_ALPHA = b"\0", b"\4"  # colour types of PNG


class PictureFile:
    """A PNG, JPEG or TIFF file. Of its `frame_count` frames, the settings select the 0-based numbers `frames`.

    Further images in PNG and JPEG files are animations and previews, and are ignored.

    Raises:
        Rejected: broken_header or no_frame.
    """

    def __init__(self, content: bytes, preprocessing: Preprocessing, kind: str) -> None:
        self._content, self._preprocessing, self._kind = content, preprocessing, kind
        self._pages: list[tiff.Page] = []
        if kind == "tiff":
            with quiet():
                self._pages = tiff.frames_of(content)
        self.frame_count = max(1, len(self._pages))
        self.frames = select_frames(self.frame_count, preprocessing.frames)

    def shown(self, frame: int) -> Shown:
        """Grey levels of a frame. Raises Rejected: blank, too_large, no_decoder, broken_header or broken_pixels."""
        if self._kind == "png":
            return levels.show(_png(self._content), self._preprocessing)
        if self._kind == "jpeg":
            return _jpeg(self._content, self._preprocessing)
        with quiet():
            return levels.show(self._pages[frame].decoded(), self._preprocessing)


# ----------------------------------------------------------------------------------------------------------------- PNG


def _png(content: bytes) -> Stored:
    depth, colour = content[24:25], content[25:26]  # of the IHDR chunk, which comes first (PNG, 11.2.1)
    with opened(content, "PNG") as image:
        aspect = _aspect(image, image.info.get("aspect") or image.info.get("dpi"))
        if depth != b"\x10":
            ImageOps.exif_transpose(image, in_place=True)
            return Stored(grey(image), 8, (0, 255), aspect=aspect)
        turn = tiff.UPRIGHT.get(_orientation(image), np.asarray)
        values = turn(_deep(image, content, colour))
    bits = _significant_bits(content)
    unscaled = bits < 16 and int(values.max()) < 2**bits  # the standard wants values scaled to 16 bits (PNG, 11.3.2.4)
    declared = (0, 2**bits - 1 if unscaled else 2**16 - 1) if bits < 16 else None
    return Stored(values, 16, declared, aspect=aspect)


def _deep(image: ImageFile.ImageFile, content: bytes, colour: bytes) -> np.ndarray:
    """The samples of a 16-bit PNG without alpha, (H, W) or (H, W, 3) uint16.

    Pillow keeps the high bytes of colours alone. Read as little-endian values, their low bytes are the high ones.
    """
    if colour == GREY:
        return np.asarray(image)
    if colour == GREY_ALPHA:  # four bytes per pixel, as RGBA has
        image._mode = "RGBA"
        image.tile = [image.tile[0]._replace(args="RGBA")]
        return np.asarray(image).view(">u2")[..., 0].astype(np.uint16)
    high = np.asarray(image)[..., :3].astype(np.uint16)
    with opened(content, "PNG") as again:
        again.tile = [again.tile[0]._replace(args=f"{again.mode};16L")]
        return high << 8 | np.asarray(again)[..., :3]


def _significant_bits(content: bytes) -> int:
    """The least of the significant bits that a 16-bit PNG states in its chunk sBIT, 16 where it states none."""
    at = 8
    while at + 8 <= len(content):
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if name == b"sBIT":
            return min([bits for bits in content[at + 8 : at + 8 + min(length, 4)] if 0 < bits < 16], default=16)
        if name == b"IDAT":
            break
        at += 12 + length
    return 16


# ---------------------------------------------------------------------------------------------------------------- JPEG


def _jpeg(content: bytes, preprocessing: Preprocessing) -> Shown:
    found = stream_header(content)
    if found is not None and needs_other_decoder(found):
        with quiet():
            values = decode_jpeg(content)
        limits = (0, 2**found.bits - 1) if found.bits < 16 else None
        return levels.show(Stored(values, found.bits, limits), preprocessing)
    with opened(content, "JPEG") as image:
        aspect, scale = _aspect(image, image.info.get("jfif_density")), 1
        if image.mode in ("L", "RGB"):
            stretched = preprocessing.window in ("full", "percentile")
            if not (preprocessing.exact or stretched or aspect != 1 or _orientation(image) != 1):
                scale = jpeg_scale(max(image.size) / preprocessing.size)
            width, height = image.size
            image.draft("L", (width // scale, height // scale))
        if scale == 1:
            ImageOps.exif_transpose(image, in_place=True)
            width, height = image.size
        values = grey(image)
    shown = levels.show(Stored(values, 8, (0, 255), aspect=aspect), preprocessing)
    return replace(shown, facts=replace(shown.facts, height=height, width=width), scale=shown.scale * scale)


# -------------------------------------------------------------------------------------------------------------- shared


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1


def _aspect(image: Image.Image, densities: tuple[float, float] | None) -> float:
    """Height of an upright pixel divided by its width, from the pixels per unit across and down."""
    if not densities:
        return 1.0
    across, down = reversed(densities) if _orientation(image) in tiff.SIDEWAYS else densities
    return aspect_of(across, down)
