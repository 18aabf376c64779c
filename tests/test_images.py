"""Formats told by content, depth, orientation, letterbox."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_dicom, make_png, smooth_image
from PIL import Image

from cyclic_cli import images
from cyclic_cli.config import Preprocessing
from cyclic_cli.dicom.header import Facts, Identities
from cyclic_cli.errors import REASONS, Rejected, Terminated


def read(path: Path, **settings: Any) -> images.Picture:
    """The first selected frame."""
    return images.read(images.content_of(path), Preprocessing(**settings))


def picture_of(pixels: np.ndarray) -> images.Picture:
    return images.Picture(pixels, Facts(height=pixels.shape[0], width=pixels.shape[1]), Identities())


GREY = smooth_image(1, 60, 80)


def test_png_and_tiff_of_8_and_16_bits_and_jpeg_read_alike(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "b.png")
    Image.fromarray(deep).save(tmp_path / "c.tif")
    Image.fromarray(GREY).save(tmp_path / "d.tiff")
    Image.fromarray(np.stack([GREY] * 3, -1)).save(tmp_path / "e.png")
    for name in "a.png b.png c.tif d.tiff e.png".split():
        np.testing.assert_allclose(read(tmp_path / name).pixels, GREY / 255, atol=1e-6, err_msg=name)
    Image.fromarray(GREY).save(tmp_path / "f.jpg", quality=95)
    assert np.abs(read(tmp_path / "f.jpg").pixels - GREY / 255).mean() < 0.01


def test_a_16_bit_ramp_stays_monotone(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert (np.diff(read(tmp_path / "ramp.png").pixels.ravel()) > 0).all()


def test_the_content_tells_the_format_not_the_name(tmp_path: Path) -> None:
    assert images.file_format((make_dicom(tmp_path / "film.jpg", GREY, bits=8)).read_bytes()) == "dicom"
    make_png(tmp_path / "x.png", GREY).rename(tmp_path / "x.dcm")
    assert images.file_format((tmp_path / "x.dcm").read_bytes()) == "png"


def test_a_dicom_preamble_may_be_a_tiff_header(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", GREY, bits=8)
    path.write_bytes(b"II*\x00" + path.read_bytes()[4:])
    assert images.file_format((path).read_bytes()) == "dicom"


def test_white_is_zero_is_turned_at_any_depth(tmp_path: Path) -> None:
    for pixels in (GREY, GREY.astype(np.uint16) * 257):
        Image.fromarray(pixels).save(tmp_path / "x.tif", tiffinfo={262: 0})
        turned = read(tmp_path / "x.tif").pixels
        stored = np.asarray(Image.open(tmp_path / "x.tif")).astype(np.float64) / np.iinfo(pixels.dtype).max
        expected = stored if pixels.dtype == np.uint8 else 1 - stored  # Pillow turns the first itself
        np.testing.assert_allclose(turned, expected, atol=1e-6)
        assert abs(np.corrcoef(turned.ravel(), GREY.ravel())[0, 1]) > 0.999


def test_of_several_pages_the_middle_one_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(smooth_image(number, 30, 30)) for number in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_allclose(read(tmp_path / "x.tif").pixels, np.asarray(pages[1]) / 255, atol=1e-6)


def test_exif_turns_the_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(GREY).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_allclose(read(tmp_path / "x.png").pixels, np.rot90(GREY, -1) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"Dear colleague, ...", "unknown_format"),
        (b"\x89PNG\r\n\x1a\n" + b"nothing else", "broken_pixels"),
        (b"\xff\xd8\xff\xe0 cut", "broken_pixels"),
        (None, "missing"),
    ],
)
def test_what_cannot_be_read_has_a_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Rejected) as caught:
        read(path)
    assert caught.value.reason == reason
    assert reason in REASONS


def test_a_reader_that_fails_unforeseen_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As decoders written in Rust raise it."""

    def failing_with(error: BaseException) -> Callable[..., images.Scan]:
        def open_it(*_: Any) -> images.Scan:
            raise error

        return open_it

    path = make_png(tmp_path / "x.png", GREY)
    for error, reason in ((MemoryError(), "too_large"), (Panic(), "unexpected")):
        monkeypatch.setitem(images.READERS, "png", failing_with(error))
        with pytest.raises(Rejected) as caught:
            read(path)
        assert caught.value.reason == reason
    monkeypatch.setitem(images.READERS, "png", failing_with(Terminated()))
    with pytest.raises(Terminated):
        read(path)


def test_half_an_image_is_not_used(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "tif"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(GREY).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(Rejected):
            read(path)


def test_a_blank_image_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        read(make_png(tmp_path / "x.png", np.zeros((9, 9), np.uint8)))
    assert caught.value.reason == "blank"


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (50, 50), (301, 200), (7, 300)], ids=str)
def test_fit_is_pillows_antialiased_resize_of_the_letterboxed_square(shape: tuple[int, int]) -> None:
    picture = smooth_image(2, *shape).astype(np.float32) / 255
    side = max(shape)
    square = Image.new("F", (side, side), 0.0)
    square.paste(Image.fromarray(picture), ((side - shape[1]) // 2, (side - shape[0]) // 2))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR)) * 255
    fitted = images.fit(picture_of(picture), Preprocessing(size=32))
    assert fitted.shape == (1, 32, 32)
    assert fitted.dtype == np.uint8
    np.testing.assert_allclose(fitted[0], expected, atol=0.5001)
    deep = images.fit(picture_of(picture), Preprocessing(size=32, bits=16))
    np.testing.assert_allclose(deep[0] / 257, expected, atol=0.01)


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (50, 50), (301, 200)], ids=str)
def test_the_image_area_holds_no_letterbox_and_all_else_does(shape: tuple[int, int]) -> None:
    fitted = images.fit(picture_of(np.ones(shape, np.float32)), Preprocessing(size=32))[0]
    rows, columns = images.image_area(*shape, 32)
    inner = (slice(rows.start + 1, rows.stop - 1), slice(columns.start + 1, columns.stop - 1))
    assert (fitted[inner] == 255).all()
    assert fitted[rows, columns].min() > 100  # the edge itself is blended by the antialiasing
    outside = fitted.copy()
    outside[max(0, rows.start - 2) : rows.stop + 2, max(0, columns.start - 2) : columns.stop + 2] = 0
    assert outside.max() == 0
