"""PNG of 16 bits, colour and alpha. The files are written by hand, and the expected pixels are closed forms."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from helpers.makers import smooth_image

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import Rejected
from cyclic_cli.imaging import readers

GREY = smooth_image(1, 60, 80)
DEEP = np.rint(GREY / 255 * 4095).astype(np.uint16)
COLOUR = np.stack([np.rint(smooth_image(number, 60, 80) / 255 * 4095) for number in (2, 3, 4)], axis=-1).astype("u2")
WEIGHTS = np.array([0.299, 0.587, 0.114])
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of samples per pixel
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
"""First row, first column and steps of the passes of interlaced images (PNG, 8.2)."""


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(pixels: np.ndarray, *chunks: bytes, filtered: bool = False, interlaced: bool = False) -> bytes:
    """A PNG file of 16 bits. `filtered` rows hold differences to the pixel on the left (filter 1)."""
    samples = pixels.reshape(*pixels.shape[:2], -1)
    height, width, count = samples.shape

    def rows(part: np.ndarray) -> bytes:
        content = np.ascontiguousarray(part.astype(">u2")).view(np.uint8).reshape(len(part), -1)
        if filtered:
            left = np.pad(content, ((0, 0), (2 * count, 0)))[:, : -2 * count]
            content = content - left
        return b"".join(bytes([filtered]) + row.tobytes() for row in content)

    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[count], 0, 0, interlaced)
    parts = [samples[top::down, left::right] for top, left, down, right in PASSES] if interlaced else [samples]
    content = b"".join(rows(part) for part in parts)
    chunks = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def read(content: bytes, **settings: Any) -> readers.Picture:
    return readers.read(content, Preprocessing(**({"exact": True} | settings)))


def own_range(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    low, high = np.percentile(of, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_values_of_12_bits_in_16_are_shown_by_their_own_range(
    filtered: bool, interlaced: bool, has_alpha: bool
) -> None:
    """All 16 bits of colours are read. The range is that of all colours together, and alpha has no effect."""
    alpha = np.random.default_rng(0).integers(0, 65536, (60, 80, 1)).astype(np.uint16)
    for pixels in (DEEP[..., None], COLOUR):
        luminance = pixels[..., 0] if pixels.shape[2] == 1 else pixels @ WEIGHTS
        content = png(
            np.concatenate([pixels, alpha], -1) if has_alpha else pixels, filtered=filtered, interlaced=interlaced
        )
        picture = read(content)
        np.testing.assert_allclose(picture.pixels, own_range(luminance, pixels), atol=1e-5)
        assert picture.guesses == ("own_range",)
        assert picture.facts.bits == 16
        np.testing.assert_allclose(
            read(content, window="2000/1001").pixels, np.clip((luminance - 1999.5) / 1000 + 0.5, 0, 1), atol=1e-5
        )


def test_significant_bits_state_the_range() -> None:
    """The standard wants values scaled to 16 bits (11.3.2.4). Values that fit the stated bits are not scaled."""
    for values in (DEEP << 4 | DEEP >> 8, DEEP << 4, DEEP):
        picture = read(png(values, chunk(b"sBIT", b"\x0c")))
        np.testing.assert_allclose(picture.pixels, DEEP / 4095, atol=3e-4)
        assert picture.guesses == ()
    picture = read(png(COLOUR << 4, chunk(b"sBIT", b"\x0c\x0c\x0c")))
    np.testing.assert_allclose(picture.pixels, COLOUR @ WEIGHTS / 4095, atol=3e-4)
    picture = read(png(DEEP, chunk(b"sBIT", b"\x10")))  # all 16 bits: this says nothing
    np.testing.assert_allclose(picture.pixels, own_range(DEEP, DEEP), atol=1e-5)
    assert picture.guesses == ("own_range",)


def test_a_transparent_grey_level_has_no_effect() -> None:
    content = png(DEEP, chunk(b"tRNS", struct.pack(">H", DEEP[3, 3])))
    np.testing.assert_allclose(read(content).pixels, own_range(DEEP, DEEP), atol=1e-5)


def test_orientation_is_applied_at_16_bits() -> None:
    exif = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    shown = read(png(DEEP, chunk(b"eXIf", exif)), window="full").pixels
    np.testing.assert_allclose(shown, np.rot90(DEEP, -1) / 4095, atol=1e-5)


@pytest.mark.parametrize("unit", [0, 1])  # a ratio, or pixels per metre
@pytest.mark.parametrize(
    ("across", "down", "shape"), [(4000, 2000, (120, 80)), (1, 2, (60, 160)), (2835, 2834, (60, 80))]
)
def test_pixels_that_are_not_square_are_resampled(unit: int, across: int, down: int, shape: tuple[int, int]) -> None:
    picture = read(png(DEEP, chunk(b"pHYs", struct.pack(">IIB", across, down, unit))))
    assert picture.pixels.shape == (picture.facts.height, picture.facts.width) == shape


def test_long_text_does_not_matter() -> None:
    text = chunk(b"zTXt", b"history\0\0" + zlib.compress(bytes(3 * 2**20)))
    np.testing.assert_allclose(read(png(DEEP, text), window="full").pixels, DEEP / 4095, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (png(DEEP)[:-600], "the PNG data are cut short"),
        (png(COLOUR)[:-600], "the PNG data are cut short"),
        (png(DEEP).replace(b"IDAT\x78", b"IDAT\x00"), "the PNG data are damaged"),
        (png(DEEP)[:20], "the PNG data are cut short"),
        (png(DEEP).replace(b"IHDR", b"IHDX"), "the beginning of the PNG file is damaged or cut short"),
    ],
)
def test_rejections_say_what_is_wrong(content: bytes, detail: str) -> None:
    with pytest.raises(Rejected) as caught:
        read(content)
    assert (caught.value.reason, caught.value.message) == ("broken_pixels", detail)
