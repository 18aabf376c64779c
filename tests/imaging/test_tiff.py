"""TIFF: every sample format, compression and byte order, ranges, colours, pages and orientations.

The references are tifffile, which decodes by imagecodecs, and closed forms. Neither shares code with the reader.
"""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.makers import smooth_image
from PIL import Image

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import Rejected
from cyclic_cli.imaging import readers

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")

GREY = smooth_image(1, 67, 53)
COLOUR = np.stack([smooth_image(number, 67, 53) for number in (2, 3, 4)], axis=-1)
WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green and blue in the luminance, ITU-R BT.601


def written(pixels: np.ndarray, **options: Any) -> bytes:
    """A TIFF file by tifffile."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def stack(*pages: tuple[np.ndarray, dict[str, Any]], **options: Any) -> bytes:
    """A TIFF file with several pages, each with options of its own."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as writer:
        for pixels, page_options in pages:
            writer.write(
                pixels, **({"photometric": "minisblack", "metadata": None, "contiguous": False} | page_options)
            )
    return file.getvalue()


def by_hand(strips: list[bytes], tags: dict[int, list[int]]) -> bytes:
    """A little-endian TIFF file of one page, with strips and tags as given. All values are of the type LONG."""
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = tags | {273: starts[:-1], 279: [len(strip) for strip in strips]}
    longer, entries, after = b"", b"", starts[-1] + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        raw = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += raw if len(values) == 1 else struct.pack("<I", after + len(longer))
        longer += b"" if len(values) == 1 else raw
    head = b"II*\0" + struct.pack("<I", starts[-1])
    return head + b"".join(strips) + struct.pack("<H", len(tags)) + entries + bytes(4) + longer


def read(content: bytes, **settings: Any) -> readers.Picture:
    return readers.read(content, Preprocessing(**({"exact": True} | settings)))


def own_range(values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """The values from their 0.5th to their 99.5th percentile, or from those of other values."""
    low, high = np.nanpercentile((values if of is None else of).astype(np.float64), (0.5, 99.5))
    return np.nan_to_num(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1))


def spread(kind: str, pixels: np.ndarray = GREY) -> np.ndarray:
    """The pixels as values of another type, over most of its range; as 12-bit values for uint16."""
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        return (pixels / 255 * 1000 - 200).astype(dtype)
    low, high = (0, 4095) if kind == "u2" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    return (pixels / 255 * 0.999 * (high - low) + low).astype(dtype)


# ------------------------------------------------------------------------------------------------- samples and ranges

KINDS = "u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8".split()
LAYOUTS = [{"rowsperstrip": 67}, {"rowsperstrip": 13}, {"tile": (32, 48)}]
COMPRESSIONS: list[tuple[str | None, int | None]] = [
    (None, None), ("packbits", None), ("lzw", None), ("lzw", 2), ("zlib", None), ("zlib", 2), ("zlib", 3),
]  # fmt: skip


FORMATS = [
    (kind, compression, predictor)
    for kind in KINDS
    for compression, predictor in COMPRESSIONS
    if predictor != (2 if kind[0] == "f" else 3)  # predictor 3 is for floats
]


@pytest.mark.parametrize(("kind", "compression", "predictor"), FORMATS)
def test_samples_of_every_format_are_those_of_tifffile(
    kind: str, compression: str | None, predictor: int | None
) -> None:
    for pixels in (GREY, COLOUR):
        values = spread(kind, pixels)
        luminance = values if values.ndim == 2 else values.astype(np.float64) @ WEIGHTS
        expected = luminance / 255 if kind == "u1" else own_range(luminance, values)
        for number, (layout, order) in enumerate((layout, order) for layout in LAYOUTS for order in "<>"):
            content = written(
                values, byteorder=order, compression=compression, predictor=predictor, bigtiff=number % 3 == 0,
                photometric="minisblack" if values.ndim == 2 else "rgb", **layout,
            )  # fmt: skip
            np.testing.assert_array_equal(tifffile.imread(io.BytesIO(content)), values)
            picture = read(content)
            np.testing.assert_allclose(picture.pixels, expected, atol=0.5 / 255 if kind == "u1" else 2e-4)
            assert picture.guesses == (() if kind == "u1" else ("own_range",))
            assert picture.facts.bits == 8 * values.dtype.itemsize


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_colour_planes_may_be_separate_and_alpha_is_ignored(kind: str) -> None:
    colour = spread(kind, COLOUR)
    expected = read(written(colour, photometric="rgb")).pixels
    planes = np.ascontiguousarray(np.moveaxis(colour, -1, 0))
    alpha = np.concatenate([colour, np.zeros_like(colour[..., :1])], axis=-1)
    for content in (
        written(planes, photometric="rgb", planarconfig="separate", rowsperstrip=13),
        written(planes, photometric="rgb", planarconfig="separate", tile=(16, 16), compression="lzw"),
        written(alpha, photometric="rgb", extrasamples=["unassalpha"], compression="zlib"),
    ):
        np.testing.assert_array_equal(read(content).pixels, expected)


@pytest.mark.parametrize("bits", [2, 4, 9, 10, 12, 14])
@pytest.mark.parametrize("compression", [1, 8])
def test_packed_samples_state_their_range(bits: int, compression: int) -> None:
    values = np.rint(GREY / 255 * (2**bits - 1)).astype(np.uint16)
    rows = np.packbits((values[..., None] >> np.arange(bits - 1, -1, -1) & 1).reshape(67, -1).astype(np.uint8), axis=1)
    strips = [rows[:40].tobytes(), rows[40:].tobytes()]
    strips = [imagecodecs.zlib_encode(strip) for strip in strips] if compression == 8 else strips
    tags = {256: [53], 257: [67], 258: [bits], 259: [compression], 262: [1], 277: [1], 278: [40]}
    picture = read(by_hand(strips, tags))
    np.testing.assert_allclose(picture.pixels, values / (2**bits - 1), atol=1e-6)
    assert picture.guesses == ()
    assert picture.facts.bits == bits


def test_16_bit_images_are_shown_by_their_own_range_unless_a_window_is_given() -> None:
    for values in (spread("u2"), GREY.astype(np.uint16) * 257):
        content = written(values)
        np.testing.assert_allclose(read(content).pixels, own_range(values), atol=1e-5)
        whole = (values - float(values.min())) / (float(values.max()) - values.min())
        picture = read(content, window="full")
        np.testing.assert_allclose(picture.pixels, whole, atol=1e-6)
        assert picture.guesses == ()
    picture = read(written(spread("u2")), window="2000/1001")
    np.testing.assert_allclose(picture.pixels, np.clip((spread("u2") - 1999.5) / 1000 + 0.5, 0, 1), atol=1e-5)
    assert picture.guesses == ()


@pytest.mark.parametrize(
    ("kind", "tags", "limits"),
    [
        ("u2", [(280, "H", 1, 0), (281, "H", 1, 4095)], (0, 4095)),
        ("u2", [(281, "H", 1, 5000)], (0, 5000)),
        ("i2", [(340, "h", 1, -32768), (341, "h", 1, 32766)], (-32768, 32766)),
        ("f4", [(340, "f", 1, -200.0), (341, "f", 1, 1000.0)], (-200, 1000)),
        ("u2", [(280, "H", 1, 0), (281, "H", 1, 65535)], None),  # the type's range, which says nothing
        ("u2", [(281, "H", 1, 255)], None),  # contradicted by the pixels
        ("f4", [(341, "f", 1, float("nan"))], None),
    ],
)
def test_stated_ranges(kind: str, tags: list[tuple[Any, ...]], limits: tuple[float, float] | None) -> None:
    values = spread(kind)
    picture = read(written(values, extratags=[(*tag, True) for tag in tags]))
    low, high = limits or (0, 1)
    expected = (values.astype(np.float64) - low) / (high - low) if limits else own_range(values)
    np.testing.assert_allclose(picture.pixels, expected, atol=1e-5)
    assert picture.guesses == (() if limits else ("own_range",))


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i2", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_white_is_zero_is_inverted_at_every_depth(kind: str, order: str) -> None:
    values = spread(kind)
    shown = read(written(values, photometric="miniswhite", byteorder=order)).pixels
    np.testing.assert_allclose(shown, 1 - (values / 255 if kind == "u1" else own_range(values)), atol=1e-4)


def test_nan_is_black_whatever_white_is() -> None:
    values = spread("f4")
    values[3, 5] = np.nan
    for photometric in ("minisblack", "miniswhite"):
        shown = read(written(values, photometric=photometric)).pixels
        assert shown[3, 5] == 0
        np.testing.assert_allclose(
            shown[20:], np.abs(own_range(values) - (photometric == "miniswhite"))[20:], atol=1e-5
        )


def test_a_small_range_of_large_values_is_kept() -> None:
    values = 1e9 + GREY / 255.0
    np.testing.assert_allclose(read(written(values)).pixels, own_range(values), atol=1e-5)


# ------------------------------------------------------------------------------------------------- colours and codecs


@pytest.mark.parametrize("layout", [{}, {"tile": (32, 32)}, {"rowsperstrip": 16}])
@pytest.mark.parametrize(
    ("subsampling", "photometric"), [((1, 1), 6), ((2, 1), 6), ((2, 2), 6), ((2, 1), 2), ((2, 2), 2)]
)
def test_jpeg_is_decoded_with_any_subsampling(layout: dict[str, Any], subsampling: Any, photometric: int) -> None:
    """RGB (2) is never subsampled, so a subsampled JPEG stream is YCbCr (6) even if the page says RGB."""
    options = {"subsampling": subsampling, "compression": "jpeg", "compressionargs": {"level": 90}}
    content = bytearray(written(COLOUR, photometric="rgb", **options, **layout))
    expected = tifffile.imread(io.BytesIO(content)) @ WEIGHTS
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        at = file.pages[0].tags[262].valueoffset
    content[at : at + 2] = struct.pack("<H", photometric)
    np.testing.assert_allclose(read(bytes(content)).pixels * 255, expected, atol=1)


@pytest.mark.parametrize("encode", [imagecodecs.jpeg_encode, imagecodecs.ljpeg_encode], ids=["lossy", "lossless"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_jpeg_of_12_bits(encode: Callable[..., bytes], photometric: int) -> None:
    values = spread("u2")
    strips = [bytes(encode(np.ascontiguousarray(part), bitspersample=12)) for part in (values[:40], values[40:])]
    tags = {256: [53], 257: [67], 258: [12], 259: [7], 262: [photometric], 277: [1], 278: [40]}
    picture = read(by_hand(strips, tags))
    expected = values if photometric else 4095 - values
    np.testing.assert_allclose(picture.pixels * 4095, expected, atol=0.01 if encode is imagecodecs.ljpeg_encode else 60)
    assert picture.guesses == ()


def test_uncompressed_ycbcr_may_be_subsampled() -> None:
    luma, blue, red = (smooth_image(number, 64, 84) // 8 + 100 for number in (5, 6, 7))
    blocks = luma.reshape(32, 2, 42, 2).transpose(0, 2, 1, 3).reshape(32, 42, 4)
    units = np.concatenate([blocks, blue[::2, ::2, None], red[::2, ::2, None]], axis=-1).astype(np.uint8)
    tags = {256: [83], 257: [63], 258: [8, 8, 8], 259: [1], 262: [6], 277: [3], 278: [16], 530: [2, 2]}
    content = by_hand([units[row : row + 8].tobytes() for row in range(0, 32, 8)], tags)
    np.testing.assert_allclose(read(content).pixels * 255, luma[:63, :83], atol=1)  # Y is the luminance


@pytest.mark.parametrize("codec", ["group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", None])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_bilevel_images(codec: str | None, fill_order: int) -> None:
    file = io.BytesIO()
    Image.fromarray(GREY > 128).save(
        file, "TIFF", tiffinfo={266: fill_order}, **({"compression": codec} if codec else {})
    )
    expected = (GREY > 128) * 1.0
    if codec is None and fill_order == 2:  # Pillow does not reverse the bits that it does not compress
        bits = np.packbits(GREY > 128, axis=1)
        expected = np.unpackbits(bits, axis=1, bitorder="little")[:, :53]
    np.testing.assert_array_equal(read(file.getvalue()).pixels, expected)


@pytest.mark.parametrize("scale", [257, 256, 1])
def test_palettes_may_fill_one_byte_of_two(scale: int) -> None:
    indices, colours = GREY // 16, np.random.default_rng(0).integers(0, 256, (3, 16))
    packed = np.pad(indices, ((0, 0), (0, 1)))
    strip = (packed[:, ::2] << 4 | packed[:, 1::2]).astype(np.uint8).tobytes()
    tags = {256: [53], 257: [67], 258: [4], 259: [1], 262: [3], 277: [1], 278: [67]}
    content = by_hand([strip], tags | {320: (colours * scale).ravel().tolist()})
    np.testing.assert_allclose(read(content).pixels * 255, (colours.T[indices]) @ WEIGHTS, atol=0.6)


def test_cmyk_of_8_and_16_bits() -> None:
    ink = np.concatenate([COLOUR, GREY[..., None] // 2], axis=-1)
    light = (1 - ink[..., :3] / 255) * (1 - ink[..., 3:] / 255)
    for values in (ink, ink.astype(np.uint16) * 257):
        content = written(values, photometric="separated")
        for window in ("auto", "40/400"):  # windows are not for colours in print
            np.testing.assert_allclose(read(content, window=window).pixels, light @ WEIGHTS, atol=1.01 / 255)


# ----------------------------------------------------------------------------------------------- pages, orientation


def frames(content: bytes) -> list[np.ndarray]:
    scan = readers.open_scan(content, Preprocessing(frames="all", exact=True))
    assert scan.frames == list(range(len(scan.frames)))
    return [np.rint(scan.picture(frame).pixels * 255).astype(int) for frame in scan.frames]


SMALL, OTHER = GREY[::4, ::4].copy(), smooth_image(9, 67, 53)
MASK = GREY > 128


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([(GREY, 0), (SMALL, 1)], [GREY]),
        ([(SMALL, 1), (GREY, 0)], [GREY]),
        ([(GREY, 0), (MASK, 4)], [GREY]),
        ([(GREY, 0), (MASK, 5), (OTHER, 0)], [GREY, OTHER]),
        ([(GREY, 2), (OTHER, 2)], [GREY, OTHER]),  # pages of one document
        ([(GREY, 2), (SMALL, 3), (OTHER, 2)], [GREY, OTHER]),
        ([(GREY, 0), (SMALL, 0)], [GREY, SMALL]),  # pages may differ in size
        ([(GREY, 0), (OTHER, 2)], [GREY, OTHER]),  # some writers do not mark the first page
        ([(GREY, 0), (SMALL, 2)], [GREY]),  # marked as a part of something that the first page is no part of
        ([(SMALL, 1)], [SMALL]),  # nothing else is there
    ],
)
def test_thumbnails_and_masks_are_no_frames(pages: list[tuple[np.ndarray, int]], expected: list[np.ndarray]) -> None:
    content = stack(*((pixels, {"subfiletype": kind}) for pixels, kind in pages))
    found = frames(content)
    assert len(found) == len(expected)
    for shown, pixels in zip(found, expected, strict=True):
        np.testing.assert_array_equal(shown, pixels)


def test_old_mark_of_thumbnails() -> None:
    old = {"extratags": [(255, "H", 1, 2, True)]}
    (shown,) = frames(stack((GREY, {}), (SMALL, old)))
    np.testing.assert_array_equal(shown, GREY)


def test_pyramids_have_one_frame() -> None:
    """Levels, labels and overviews of whole slides are no frames: beside the slide, or below it in SubIFDs."""
    tiled = {"tile": (16, 16)}
    unmarked = stack((GREY, tiled), (SMALL, {}), (GREY[::2, ::2].copy(), tiled))
    nested = stack((GREY, tiled | {"subifds": 1}), (SMALL, tiled | {"subfiletype": 1}))
    for content in (unmarked, nested):
        (shown,) = frames(content)
        np.testing.assert_array_equal(shown, GREY)
    assert len(frames(stack((GREY, tiled), (OTHER, tiled)))) == 2


def test_pages_may_differ_in_format() -> None:
    deep = spread("f2")
    found = frames(stack((deep, {}), (COLOUR, {"photometric": "rgb"}), (GREY, {"compression": "lzw"}), byteorder=">"))
    for shown, expected in zip(found, (own_range(deep) * 255, COLOUR @ WEIGHTS, GREY), strict=True):
        np.testing.assert_allclose(shown, expected, atol=1)


def test_a_damaged_link_to_a_further_page_is_ignored() -> None:
    content = bytearray(written(GREY))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        (entries,) = struct.unpack_from("<H", content, file.pages[0].offset)
        at = file.pages[0].offset + 2 + 12 * entries
    content[at : at + 4] = struct.pack("<I", 77)
    (shown,) = frames(bytes(content))
    np.testing.assert_array_equal(shown, GREY)


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what each orientation says of row 0 and column 0
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: a[::-1].T, 7: lambda a: a[::-1, ::-1].T, 8: lambda a: a[:, ::-1].T,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("options", [{}, {"compression": "jpeg", "compressionargs": {"level": 100}}])
def test_orientations(orientation: int, options: dict[str, Any]) -> None:
    content = written(GREY, extratags=[(274, "H", 1, orientation, True)], **options)
    picture = read(content)
    expected = UPRIGHT[orientation](GREY)
    np.testing.assert_allclose(picture.pixels * 255, expected, atol=3 if options else 1e-4)
    assert (picture.facts.height, picture.facts.width) == expected.shape


@pytest.mark.parametrize(
    ("across", "down", "orientation", "shape"),
    [
        (200, 100, 1, (134, 53)),
        (100, 200, 1, (67, 106)),
        (200, 100, 6, (53, 134)),
        (72, 72.3, 1, (67, 53)),
        (0, 72, 1, (67, 53)),
    ],
)
def test_resolutions_that_differ_make_pixels_square(
    across: float, down: float, orientation: int, shape: tuple[int, int]
) -> None:
    """An image of 67 rows and 53 columns."""
    turn = [(274, "H", 1, orientation, True)]
    picture = read(written(GREY, resolution=(across, down), extratags=turn))
    assert picture.pixels.shape == (picture.facts.height, picture.facts.width) == shape


# ------------------------------------------------------------------------------------------------------- rejections


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (written(COLOUR, photometric="rgb", compression="jpeg2000"), "no_decoder", "JPEG 2000"),
        (written(GREY)[:2000], "broken_pixels", "the file is cut short"),
        (written(GREY, compression="zlib").replace(b"\x78\x9c", b"\x00\x00", 1), "broken_pixels", "damaged"),
        (b"II*\0\xff\xff\xff\x7f" + bytes(100), "broken_header", "list of its pages"),
        (by_hand([bytes(900)], {256: [10], 257: [30], 258: [24], 277: [1]}), "no_decoder", "24 bits"),
        (by_hand([bytes(900)], {256: [40000], 257: [30], 258: [8], 277: [1]}), "too_large", "40000"),
        (by_hand([bytes(900)], {256: [30], 257: [30], 258: [8], 277: [1], 278: [10]}), "broken_pixels", "fewer strips"),
        (by_hand([bytes(900)], {256: [30], 257: [30], 258: [8], 262: [2], 277: [1]}), "broken_header", "colours"),
        (by_hand([bytes(900)], {256: [30], 257: [30], 258: [8], 262: [32803], 277: [1]}), "no_decoder", "32803"),
    ],
)  # fmt: skip
def test_rejections_say_what_is_wrong(content: bytes, reason: str, detail: str) -> None:
    with pytest.raises(Rejected) as caught:
        read(content)
    assert caught.value.reason == reason
    assert detail in caught.value.message
    assert "Error" not in caught.value.message
