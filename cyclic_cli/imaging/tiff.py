"""Reads the pages of TIFF files (TIFF 6.0), also with the 64-bit offsets of BigTIFF.

Pillow knows few combinations of sample depth, sample format, byte order and compression. Therefore it is only asked to
decompress. The strips or tiles of a page are handed to it as an 8-bit image whose pixels are the bytes of the samples,
and the samples are put together here. Images whose compression determines their pixels (fax, JPEG) and YCbCr images are
decoded by Pillow, each page as a file of its own.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import numpy as np
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.aspect import aspect_of
from cyclic_cli.imaging.dicom.jpeg_file import decode_jpeg, needs_other_decoder
from cyclic_cli.imaging.dicom.reading import LARGEST_SIDE
from cyclic_cli.imaging.dicom.streams import stream_header
from cyclic_cli.imaging.levels import Stored, luminance
from cyclic_cli.imaging.pillow import grey, opened, too_large

NEW_SUBFILE_TYPE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SUBFILE_TYPE = 254, 256, 257, 258, 259, 262, 255
FILL_ORDER, STRIPS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 266, 273, 274, 277, 278, 279
MIN_SAMPLE, MAX_SAMPLE, X_RESOLUTION, Y_RESOLUTION, PLANAR = 280, 281, 282, 283, 284
PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_LENGTH, TILES, TILE_BYTES = 317, 320, 322, 323, 324, 325
SAMPLE_FORMAT, S_MIN_SAMPLE, S_MAX_SAMPLE, JPEG_TABLES, SUBSAMPLING = 339, 340, 341, 347, 530
FOR_PILLOW = (
    WIDTH, LENGTH, BITS, COMPRESSION, FILL_ORDER, ROWS_PER_STRIP, PLANAR, 292, 293, PREDICTOR, TILE_WIDTH, TILE_LENGTH,
    332, 338, SUBSAMPLING,
)  # fmt: skip
"""Tags of numbers that Pillow needs where it decodes a page; 292 and 293 are options of fax, 332 and 338 of inks."""

BIG_TIFF = 43  # version in the header
REDUCED, ONE_OF_MANY, MASK = 1, 2, 4  # bits of NewSubfileType
OLD_REDUCED = 2  # value of SubfileType
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK_COLOUR, CMYK, YCBCR = range(7)  # values of photometric interpretation
LAB = (8, 9)  # further ones, whose first sample is the lightness
PLAIN, OLD_JPEG, JPEG, DEFLATE = 1, 6, 7, 8  # values of Compression
COMPRESSIONS_OF_PIXELS = (2, 3, 4, OLD_JPEG, JPEG, 32771, 32809, 34676, 34677, 50001)
COMPRESSIONS = {
    33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG of DNG",
    34933: "PNG", 34934: "JPEG XR", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
"""Compressions that cannot be read, with their names."""
NAMES = {"u": "unsigned", "i": "signed", "f": "floating-point", "c": "complex"}
KINDS = {1: "u", 2: "i", 3: "f", 4: "u", 6: "c"}  # values of SampleFormat, as kinds of NumPy
DEPTHS = {"u": {*range(1, 17), 32, 64}, "i": {8, 16, 32, 64}, "f": {16, 32, 64}, "c": {64, 128}}  # by kind
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange rows and columns
MOST_SAMPLES = 16  # per pixel
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1), 8: np.rot90,
}  # fmt: skip
"""What turns an image upright, by its orientation (TIFF 6.0, page 36). The rest is upright."""
Tags = dict[int, list[int] | bytes]


def frames_of(content: bytes) -> list["Page"]:
    """The pages of a TIFF file that are images of their own.

    These are all but thumbnails, other reductions and masks. Pages marked as one of several are frames where the first
    page is marked so too or has their size, and else belong to it. A file whose first page is tiled is a pyramid, as
    of whole slides: its pages of other sizes are levels, labels and overviews, whether or not they say so. A file that
    has nothing else has its thumbnails as frames.

    Raises:
        Rejected: broken_header.
    """
    pages = [Page(content, tags, number) for number, tags in enumerate(_directories(content))]
    if not pages:
        raise Rejected("broken_header", "the list of its pages is damaged or cut short")
    real = [page for page in pages if not page.is_secondary] or pages
    if not real[0].is_one_of_many:
        real = [page for page in real if not page.is_one_of_many or page.size == real[0].size]
    if TILES in real[0].tags:
        real = [page for page in real if page.size == real[0].size]
    return real


def _directories(content: bytes) -> Iterator[ImageFileDirectory_v2]:
    """The tags of each page. A damaged link to a further page ends the list, since some writers leave such a link."""
    file = io.BytesIO(content)
    order: Literal["little", "big"] = "big" if content[:1] == b"M" else "little"
    is_big = int.from_bytes(content[2:4], order) == BIG_TIFF
    offset = int.from_bytes(content[8:16] if is_big else content[4:8], order)
    seen: set[int] = set()
    while 0 < offset < len(content) and offset not in seen:
        seen.add(offset)
        tags = ImageFileDirectory_v2(b"MM\0*\0\0\0\0" if order == "big" else b"II*\0\0\0\0\0")
        tags._bigtiff = is_big  # Pillow itself recognises only BigTIFF files that are little-endian
        try:
            file.seek(offset)
            tags.load(file)
        except Exception:  # Pillow raises almost anything on damaged data
            return
        if WIDTH not in tags:
            return
        yield tags
        offset = tags.next


class Page:
    """A page of a TIFF file, of which only the tags have been read.

    `size` is the width and height in pixels as stored. `number` counts all pages of the file from 0.
    """

    def __init__(self, content: bytes, tags: ImageFileDirectory_v2, number: int) -> None:
        self._content = content
        self._number_in_file = number
        self.tags = tags
        self.size = (self._number(WIDTH, 0), self._number(LENGTH, 0))

    def decoded(self) -> Stored:
        """The page in upright orientation.

        Raises:
            Rejected: broken_header, too_large, no_decoder or broken_pixels.
        """
        try:
            self._check()
            by_pillow = self._compression in COMPRESSIONS_OF_PIXELS or self._photometric == YCBCR
            stored = self._decoded_by_pillow() if by_pillow else self._decoded_from_samples()
        except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
            raise Rejected("broken_header", "the tags of the page contradict one another") from error
        turn = UPRIGHT.get(self._orientation, np.asarray)
        return replace(stored, values=turn(stored.values), aspect=self._aspect)

    @cached_property
    def is_secondary(self) -> bool:
        """Whether the page is a reduction or a mask of another one (NewSubfileType, SubfileType, TIFF 6.0 page 36)."""
        marked = self._number(NEW_SUBFILE_TYPE, 0) & (REDUCED | MASK)
        return bool(marked) or self._number(SUBFILE_TYPE, 0) == OLD_REDUCED or self._photometric == MASK_COLOUR

    @cached_property
    def is_one_of_many(self) -> bool:
        """Whether the page is marked as one of several, which means little where the first page is not marked so."""
        return bool(self._number(NEW_SUBFILE_TYPE, 0) & ONE_OF_MANY)

    # ---------------------------------------------------------------------------------------------------- tags

    def _values(self, tag: int) -> tuple[Any, ...]:
        """All values of a tag, () where it is missing or damaged."""
        try:
            value = self.tags.get(tag, ())
        except Exception:  # Pillow decodes a tag when it is asked for
            return ()
        return value if isinstance(value, tuple) else (value,)

    def _number(self, tag: int, default: int) -> int:
        """The first value of a tag as an integer."""
        values = self._values(tag)
        return values[0] if values and isinstance(values[0], int) else default

    @property
    def _compression(self) -> int:
        return self._number(COMPRESSION, PLAIN)

    @property
    def _photometric(self) -> int:
        fax = self._compression in (2, 3, 4)
        return self._number(PHOTOMETRIC, RGB if self._per_pixel >= 3 else WHITE_IS_ZERO if fax else BLACK_IS_ZERO)

    @property
    def _orientation(self) -> int:
        return self._number(ORIENTATION, 1)

    @property
    def _per_pixel(self) -> int:
        return self._number(SAMPLES, len(self._values(BITS)) or 1)

    @cached_property
    def _bits(self) -> int:
        """Bits per sample. Raises Rejected: no_decoder."""
        depths = set(self._values(BITS) or (1,))
        if len(depths) > 1:
            raise Rejected("no_decoder", "the samples of a pixel differ in depth")
        return int(depths.pop())

    @property
    def _aspect(self) -> float:
        """Height of an upright pixel divided by its width, from the resolutions in pixels per unit."""
        resolutions = [self._values(tag) for tag in (X_RESOLUTION, Y_RESOLUTION)]
        across, down = (float(values[0]) if values and isinstance(values[0], Real) else 0.0 for values in resolutions)
        return aspect_of(down, across) if self._orientation in SIDEWAYS else aspect_of(across, down)

    def _check(self) -> None:
        """Raise Rejected for sizes, compressions and layouts that cannot be read."""
        width, height = self.size
        if width < 1 or height < 1:
            raise Rejected("broken_header", "the page states no size")
        if max(self.size) > LARGEST_SIDE:
            raise too_large(width, height)
        if self._compression not in COMPRESSION_INFO:
            name = COMPRESSIONS.get(self._compression, f"number {self._compression}")
            raise Rejected("no_decoder", f"the TIFF compression {name} is not supported")
        if self._photometric not in (*range(7), *LAB):
            raise Rejected("no_decoder", f"the TIFF photometric interpretation {self._photometric} is not supported")
        if not 1 <= self._per_pixel <= MOST_SAMPLES:
            raise Rejected("no_decoder", f"a pixel has {self._per_pixel} samples; at most {MOST_SAMPLES} are supported")

    # ------------------------------------------------------------------------------------- decompression by Pillow

    @property
    def _is_tiled(self) -> bool:
        return TILES in self.tags

    @cached_property
    def _block(self) -> tuple[int, int]:
        """Width and height in pixels of a tile, or of a strip."""
        width, height = self.size
        if self._is_tiled:
            return self._number(TILE_WIDTH, 0), self._number(TILE_LENGTH, 0)
        return width, min(height, self._number(ROWS_PER_STRIP, height))

    @property
    def _grid(self) -> tuple[int, int]:
        """The numbers of strips or tiles across and down. Raises Rejected: broken_header."""
        if min(self._block) < 1:
            raise Rejected("broken_header", "the page has strips or tiles without a size")
        return -(-self.size[0] // self._block[0]), -(-self.size[1] // self._block[1])

    def _blocks(self, first: int, count: int, plain: int | None = None) -> list[bytes]:
        """The compressed content of strips or tiles. Uncompressed ones have `plain` bytes, whatever their tags say."""
        offsets = self._values(TILES if self._is_tiled else STRIPS)[first : first + count]
        lengths = self._values(TILE_BYTES if self._is_tiled else STRIP_BYTES)[first : first + count]
        if plain is not None and self._compression == PLAIN:
            lengths = (plain,) * count
        elif not lengths and count == 1:
            lengths = (len(self._content),)
        if len(offsets) < count or len(lengths) < count:
            raise Rejected("broken_pixels", "the page has fewer strips or tiles than its size needs")
        if any(offset >= len(self._content) for offset in offsets):
            raise Rejected("broken_pixels", "the file is cut short")
        return [self._content[offset : offset + length] for offset, length in zip(offsets, lengths, strict=True)]

    def _plane(self, plane: int, row: int) -> np.ndarray:
        """The bytes (rows, blocks across, `row`) of a plane, `row` being the length of a row of a strip or tile."""
        across, down = self._grid
        height = self._block[1]
        rows = down * height if self._is_tiled else self.size[1]
        blocks = self._blocks(plane * across * down, across * down, row * height)
        if not self._is_tiled and self._compression == PLAIN:
            blocks[-1] = blocks[-1][: row * (rows - (down - 1) * height)]
        if self._compression == PLAIN and self._number(FILL_ORDER, 1) == 1:
            content = np.frombuffer(b"".join(blocks), dtype=np.uint8)
            if content.size < rows * across * row:
                raise Rejected("broken_pixels", "the file is cut short")
            if across == 1:
                return content.reshape(rows, 1, row)
            return content.reshape(down, across, height, row).swapaxes(1, 2).reshape(rows, across, row)
        tags: Tags = {WIDTH: [across * row], LENGTH: [rows], BITS: [8], SAMPLES: [1], PHOTOMETRIC: [BLACK_IS_ZERO]}
        tags |= {COMPRESSION: [self._compression], FILL_ORDER: [self._number(FILL_ORDER, 1)]}
        tags |= {TILE_WIDTH: [row], TILE_LENGTH: [height]} if self._is_tiled else {ROWS_PER_STRIP: [height]}
        with opened(_as_file(tags, blocks), "TIFF") as image:
            return np.asarray(image).reshape(rows, across, row)

    def _decoded_by_pillow(self) -> Stored:
        """A page whose pixels Pillow decodes: fax, JPEG and YCbCr."""
        if self._compression == OLD_JPEG:  # its tables lie anywhere in the file
            with opened(self._content, "TIFF") as image:
                image.seek(self._number_in_file)
                return Stored(grey(image), 8, (0, 255))
        across, down = self._grid
        blocks = self._blocks(0, across * down * (self._per_pixel if self._number(PLANAR, 1) == 2 else 1))
        found = stream_header(blocks[0]) if self._compression == JPEG else None
        if needs_other_decoder(found):
            return self._decoded_from_streams(blocks)
        tags: Tags = {tag: list(self._values(tag)) for tag in FOR_PILLOW if tag in self.tags}
        tags |= {PHOTOMETRIC: [self._photometric], SAMPLES: [self._per_pixel]}
        if JPEG_TABLES in self.tags:
            tags[JPEG_TABLES] = b"".join(self._values(JPEG_TABLES))
        if found is not None and self._photometric == RGB and found.sampling != (1, 1):  # RGB is never subsampled
            tags |= {PHOTOMETRIC: [YCBCR], SUBSAMPLING: list(found.sampling)}
        if self._compression == PLAIN:  # Pillow leaves only compressed YCbCr to libtiff, which knows about subsampling
            tags[COMPRESSION], blocks = [DEFLATE], [zlib.compress(block, 1) for block in blocks]
        with opened(_as_file(tags, blocks), "TIFF") as image:
            return Stored(grey(image), 8, (0, 255))

    def _decoded_from_streams(self, blocks: list[bytes]) -> Stored:
        """A page whose strips or tiles are JPEG streams that Pillow cannot decode, of more than 8 bits or lossless."""
        tables = b"".join(self._values(JPEG_TABLES))[2:-2]  # without the markers of a file's beginning and end
        parts = [decode_jpeg(block[:2] + tables + block[2:]) for block in blocks]
        across, down = self._grid
        rows = [np.concatenate(parts[row * across : (row + 1) * across], axis=1) for row in range(down)]
        values = np.concatenate(rows)[: self.size[1], : self.size[0]]
        return Stored(values, self._bits, self._limits(values), self._photometric == WHITE_IS_ZERO)

    # ------------------------------------------------------------------------------------------ samples from bytes

    def _decoded_from_samples(self) -> Stored:
        """A page of grey, RGB, palette or CMYK samples of any depth and format."""
        values = self._samples({RGB: 3, CMYK: 4}.get(self._photometric, 1))
        values = values[..., 0] if values.shape[2] == 1 else values
        if self._photometric == PALETTE:
            return Stored(self._looked_up(values), 8, (0, 255))
        if self._photometric == CMYK:
            left = 1 - values / np.float32(np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1)
            return Stored(np.rint(255 * left[..., :3] * left[..., 3:]).astype(np.uint8), 8, (0, 255))
        if values.dtype.kind == "c":
            values = np.abs(values)
        return Stored(values, self._bits, self._limits(values), self._photometric == WHITE_IS_ZERO)

    def _samples(self, wanted: int) -> np.ndarray:
        """The first `wanted` samples of each pixel, (H, W, wanted)."""
        separate = self._number(PLANAR, 1) == 2 and self._per_pixel > 1
        if self._per_pixel < wanted:
            raise Rejected("broken_header", f"a pixel has {self._per_pixel} samples, but its colours need {wanted}")
        kept = 1 if separate else self._per_pixel
        row = -(-self._block[0] * kept * self._bits // 8)
        planes = [self._joined(self._plane(plane, row), kept) for plane in range(wanted if separate else 1)]
        width, height = self.size
        joined = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        return joined[:height, :width, :wanted]

    def _joined(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Samples (rows, columns, count) from bytes (rows, blocks across, bytes), with the predictor undone."""
        bits, predictor = self._bits, self._number(PREDICTOR, 1)
        kind = KINDS.get(self._number(SAMPLE_FORMAT, 1), "u")
        height, across = rows.shape[:2]
        if bits not in DEPTHS[kind]:
            raise Rejected("no_decoder", f"{NAMES[kind]} samples of {bits} bits are not supported")
        if bits not in (8, 16, 32, 64, 128):
            return _unpacked(rows, self._block[0] * count, bits).reshape(height, -1, count)
        order = ">" if self._content[:1] == b"M" else "<"
        if predictor == 3:  # of floats: differences of bytes, the highest bytes of a row first
            rows = np.cumsum(rows.reshape(height, across, -1, count), axis=2, dtype=np.uint8)
            rows = rows.reshape(height, across, bits // 8, -1).swapaxes(2, 3)
            order = ">"
        samples = np.ascontiguousarray(rows).view(f"{order}{kind}{bits // 8}").reshape(height, across, -1, count)
        if predictor == 2:
            whole = samples.view(f"{order}u{bits // 8}")
            samples = np.cumsum(whole, axis=2, dtype=f"u{bits // 8}").view(f"{kind}{bits // 8}")
        return samples.reshape(height, -1, count).astype(samples.dtype.newbyteorder("="), copy=False)

    def _looked_up(self, indices: np.ndarray) -> np.ndarray:
        """The luminance of palette colours, uint8."""
        table = np.array(self._values(COLOUR_MAP), dtype=np.uint16)
        entries = 2**self._bits
        if self._bits > 16 or table.size != 3 * entries:
            raise Rejected("broken_header", "the colour map is missing, or its length is wrong")
        colours = table if table.max() < 256 else table >> 8  # some writers fill only the low bytes
        return luminance(colours.astype(np.uint8).reshape(3, 1, entries).transpose(1, 2, 0))[0][indices]

    def _limits(self, values: np.ndarray) -> tuple[float, float] | None:
        """The values of black and white that the page declares; None where it does not.

        Depths that are no container's, and depths up to 8 bits, state the range. So do the tags of the least and
        largest value, unless they give the container's whole range, or values lie outside.
        """
        if values.dtype.kind == "u" and (self._bits <= 8 or self._bits not in (16, 32, 64)):
            return 0, 2**self._bits - 1
        for least, largest in ((S_MIN_SAMPLE, S_MAX_SAMPLE), (MIN_SAMPLE, MAX_SAMPLE)):
            lows, highs = self._values(least), self._values(largest)
            try:
                low, high = float(min(lows, default=0)), float(max(highs))
            except (ValueError, TypeError):
                continue
            says_nothing = values.dtype.kind in "ui" and high >= np.iinfo(values.dtype).max
            holds = -math.inf < low < high < math.inf and low <= np.nanmin(values) <= np.nanmax(values) <= high
            if holds and not says_nothing:
                return low, high
        return None


def _unpacked(rows: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The first `count` unsigned samples of `bits` bits in each row (..., bytes), the highest bit first."""
    starts = np.arange(count) * bits
    byte, bit = starts // 8, starts % 8
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 4)])
    word = np.zeros((*rows.shape[:-1], count), dtype=np.uint32 if bits <= 16 else np.uint64)
    length = (bits + 14) // 8  # bytes over which a sample may extend
    for step in range(length):
        word = word << 8 | padded[..., byte + step]
    samples = word >> (8 * length - bits - bit).astype(word.dtype) & (2**bits - 1)
    return samples.astype(np.min_scalar_type(2**bits - 1))


# --------------------------------------------------------------------------------------------------------- Pillow


def _as_file(tags: Tags, blocks: list[bytes]) -> bytes:
    """A BigTIFF file of one page. Its values have 8 bytes each (type LONG8), or are bytes of no type."""
    starts = np.cumsum([16, *(len(block) for block in blocks)]).tolist()
    tiled = TILE_WIDTH in tags
    tags = tags | {TILES if tiled else STRIPS: starts[:-1]}
    tags |= {TILE_BYTES if tiled else STRIP_BYTES: [len(block) for block in blocks]}
    after = starts[-1] + 8 + 20 * len(tags) + 8  # where longer values begin
    entries, longer = b"", b""
    for tag, values in sorted(tags.items()):
        raw = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}Q", *values)
        kind, count = (7, len(raw)) if isinstance(values, bytes) else (16, len(values))
        inline = raw.ljust(8, b"\0") if len(raw) <= 8 else struct.pack("<Q", after + len(longer))
        entries += struct.pack("<HHQ", tag, kind, count) + inline
        longer += raw if len(raw) > 8 else b""
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, starts[-1])
    return b"".join((head, *blocks, struct.pack("<Q", len(tags)), entries, bytes(8), longer))
