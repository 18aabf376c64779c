"""JPEG files that Pillow cannot decode: 12 bits, lossless, JPEG-LS. The references are imagecodecs and closed forms."""

import io
from typing import Any

import numpy as np
import pytest
from helpers.makers import smooth_image
from PIL import Image

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import Rejected
from cyclic_cli.imaging import readers

imagecodecs = pytest.importorskip("imagecodecs")

GREY = smooth_image(1, 64, 80)
DEEP = np.rint(GREY / 255 * 4095).astype(np.uint16)


def read(content: bytes, **settings: Any) -> readers.Picture:
    return readers.read(bytes(content), Preprocessing(**({"exact": True} | settings)))


def test_12_bits() -> None:
    content = imagecodecs.jpeg_encode(DEEP, level=95, bitspersample=12)
    picture = read(content)
    np.testing.assert_allclose(picture.pixels, imagecodecs.jpeg_decode(content) / 4095, atol=1.01 / 4095)
    assert (picture.guesses, picture.facts.bits) == ((), 12)
    shown = read(content, window="2000/1001").pixels
    np.testing.assert_allclose(shown, np.clip((DEEP - 1999.5) / 1000 + 0.5, 0, 1), atol=0.02)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_streams(bits: int) -> None:
    values = np.rint(GREY / 255 * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    picture = read(imagecodecs.ljpeg_encode(values, bitspersample=bits))
    low, high = (0, 2**bits - 1) if bits < 16 else np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(picture.pixels, np.clip((values - float(low)) / (high - low), 0, 1), atol=1e-5)
    assert picture.guesses == (() if bits < 16 else ("own_range",))
    assert picture.facts.bits == bits


def test_jpeg_ls() -> None:
    np.testing.assert_allclose(read(imagecodecs.jpegls_encode(GREY)).pixels, GREY / 255, atol=1e-6)


def baseline() -> bytes:
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize("unit", [0, 1, 2])  # a ratio, pixels per inch or per centimetre
@pytest.mark.parametrize(("across", "down", "shape"), [(200, 100, (128, 80)), (1, 2, (64, 160)), (0, 1, (64, 80))])
@pytest.mark.parametrize("size", [16, 224])
def test_pixels_that_are_not_square_are_resampled(
    unit: int, across: int, down: int, shape: tuple[int, int], size: int
) -> None:
    content = bytearray(baseline())
    content[13:18] = bytes([unit]) + across.to_bytes(2, "big") + down.to_bytes(2, "big")  # of the JFIF segment
    preprocessing = Preprocessing(size=size)
    picture = readers.read(bytes(content), preprocessing)
    assert (picture.facts.height, picture.facts.width) == shape
    if shape != (64, 80):
        expected = Image.fromarray(GREY).resize(shape[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(picture.pixels * 255, np.asarray(expected), atol=8)


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (baseline()[:-700], "broken_pixels", "the JPEG data are cut short"),
        (baseline().replace(b"\xff\xc0", b"\xff\xc5", 1), "no_decoder", "JPEG of 8 bits with hierarchical coding"),
        (baseline()[:30], "broken_pixels", "the JPEG data are cut short"),
        (baseline()[:2] + b"\xff\xfe" + bytes(90), "broken_pixels", "the beginning of the JPEG file is damaged"),
    ],
)
def test_rejections_say_what_is_wrong(content: bytes, reason: str, detail: str) -> None:
    with pytest.raises(Rejected) as caught:
        read(content)
    assert caught.value.reason == reason
    assert detail in caught.value.message
