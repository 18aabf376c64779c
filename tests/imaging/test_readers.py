"""Image files are recognised by content, read at their bit depth and orientation, and letterboxed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.makers import make_dicom, make_png, smooth_image
from PIL import Image

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import REASONS, Rejected, Terminated
from cyclic_cli.imaging import readers
from cyclic_cli.imaging.dicom.header import Facts, Identities


def read(path: Path, **settings: Any) -> readers.Picture:
    """The first selected frame."""
    return readers.read(readers.content_of(path), Preprocessing(**settings))


def picture_of(pixels: np.ndarray) -> readers.Picture:
    return readers.Picture(pixels, Facts(height=pixels.shape[0], width=pixels.shape[1]), Identities())


GREY = smooth_image(1, 60, 80)


def test_png_and_tiff_of_8_and_16_bits_and_jpeg_read_alike(tmp_path: Path) -> None:
    """Images of 16 bits are shown by their own range, so all are compared over their full range."""
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "b.png")
    Image.fromarray(deep).save(tmp_path / "c.tif")
    Image.fromarray(GREY).save(tmp_path / "d.tiff")
    Image.fromarray(np.stack([GREY] * 3, -1)).save(tmp_path / "e.png")
    for name in "a.png b.png c.tif d.tiff e.png".split():
        window = "full" if name in ("b.png", "c.tif") else "auto"
        np.testing.assert_allclose(read(tmp_path / name, window=window).pixels, GREY / 255, atol=1e-6, err_msg=name)
    Image.fromarray(GREY).save(tmp_path / "f.jpg", quality=95)
    assert np.abs(read(tmp_path / "f.jpg").pixels - GREY / 255).mean() < 0.01


def test_a_16_bit_ramp_stays_monotone(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert (np.diff(read(tmp_path / "ramp.png", window="full").pixels.ravel()) > 0).all()
    shown = read(tmp_path / "ramp.png").pixels.ravel()
    assert (np.diff(shown[40:-40]) > 0).all()  # all but half a percent at either end


def test_format_is_recognised_by_content(tmp_path: Path) -> None:
    assert readers.file_format((make_dicom(tmp_path / "image.jpg", GREY, bits=8)).read_bytes()) == "dicom"
    make_png(tmp_path / "x.png", GREY).rename(tmp_path / "x.dcm")
    assert readers.file_format((tmp_path / "x.dcm").read_bytes()) == "png"


def test_dicom_whose_preamble_is_a_tiff_header(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", GREY, bits=8)
    path.write_bytes(b"II*\x00" + path.read_bytes()[4:])
    assert readers.file_format((path).read_bytes()) == "dicom"


def test_middle_page_is_read_by_default(tmp_path: Path) -> None:
    pages = [Image.fromarray(smooth_image(number, 30, 30)) for number in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_allclose(read(tmp_path / "x.tif").pixels, np.asarray(pages[1]) / 255, atol=1e-6)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
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
def test_unreadable_files_have_a_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Rejected) as caught:
        read(path)
    assert caught.value.reason == reason
    assert reason in REASONS


def test_unexpected_errors_reject_one_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """An exception such as decoders written in Rust raise."""

    def failing_with(error: BaseException) -> Callable[..., readers.Scan]:
        def open_it(*_: Any) -> readers.Scan:
            raise error

        return open_it

    path = make_png(tmp_path / "x.png", GREY)
    for error, reason in ((MemoryError(), "too_large"), (Panic(), "unexpected")):
        monkeypatch.setitem(readers.READERS, "png", failing_with(error))
        with pytest.raises(Rejected) as caught:
            read(path)
        assert caught.value.reason == reason
    monkeypatch.setitem(readers.READERS, "png", failing_with(Terminated()))
    with pytest.raises(Terminated):
        read(path)


def test_truncated_images_are_rejected(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "tif"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(GREY).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(Rejected):
            read(path)


def test_blank_images_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        read(make_png(tmp_path / "x.png", np.zeros((9, 9), np.uint8)))
    assert caught.value.reason == "blank"


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (50, 50), (301, 200), (7, 300)], ids=str)
def test_fit_equals_the_antialiased_resize_of_the_letterboxed_square_by_pillow(shape: tuple[int, int]) -> None:
    picture = smooth_image(2, *shape).astype(np.float32) / 255
    side = max(shape)
    square = Image.new("F", (side, side), 0.0)
    square.paste(Image.fromarray(picture), ((side - shape[1]) // 2, (side - shape[0]) // 2))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR)) * 255
    fitted = readers.fit(picture_of(picture), Preprocessing(size=32))
    assert fitted.shape == (1, 32, 32)
    assert fitted.dtype == np.uint8
    np.testing.assert_allclose(fitted[0], expected, atol=0.5001)
    deep = readers.fit(picture_of(picture), Preprocessing(size=32, bits=16))
    np.testing.assert_allclose(deep[0] / 257, expected, atol=0.01)


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (50, 50), (301, 200)], ids=str)
def test_image_area_excludes_the_letterbox_exactly(shape: tuple[int, int]) -> None:
    fitted = readers.fit(picture_of(np.ones(shape, np.float32)), Preprocessing(size=32))[0]
    rows, columns = readers.image_area(*shape, 32)
    inner = (slice(rows.start + 1, rows.stop - 1), slice(columns.start + 1, columns.stop - 1))
    assert (fitted[inner] == 255).all()
    assert fitted[rows, columns].min() > 100  # antialiasing blends the edge with black
    outside = fitted.copy()
    outside[max(0, rows.start - 2) : rows.stop + 2, max(0, columns.start - 2) : columns.stop + 2] = 0
    assert outside.max() == 0


@pytest.mark.parametrize("window", ["full", "percentile"])
def test_plain_images_are_stretched_only_on_request(tmp_path: Path, window: str) -> None:
    dull = GREY // 3 + 40
    path = make_png(tmp_path / "x.png", dull)
    np.testing.assert_allclose(read(path).pixels, dull / 255, atol=1e-6)
    np.testing.assert_allclose(read(path, window="lung").pixels, dull / 255, atol=1e-6)
    low, high = (dull.min(), dull.max()) if window == "full" else np.percentile(dull, (0.5, 99.5))
    np.testing.assert_allclose(read(path, window=window).pixels, np.clip((dull - low) / (high - low), 0, 1), atol=1e-6)


def test_tiff_pages_are_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(smooth_image(number, 30, 30)) for number in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    scan = readers.open_scan((tmp_path / "x.tif").read_bytes(), Preprocessing(frames="all"))
    assert scan.frames == [0, 1, 2]
    for frame in scan.frames:
        np.testing.assert_allclose(scan.picture(frame).pixels, np.asarray(pages[frame]) / 255, atol=1e-6)


def test_rotated_jpeg_keeps_its_orientation_at_reduced_resolution(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(smooth_image(4, 500, 800))
    wide.save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture = read(tmp_path / "a.jpg", size=64)
    assert (picture.facts.height, picture.facts.width) == (800, 500)
    upright = readers.fit(read(tmp_path / "a.jpg", size=64, exact=True), Preprocessing(size=64))
    assert np.abs(readers.fit(picture, Preprocessing(size=64)).astype(int) - upright).max() <= 2


@pytest.mark.parametrize("shape", [(60, 80), (301, 200), (7, 300), (223, 225)], ids=str)
@pytest.mark.parametrize(("scale", "edge"), [(3, 0.0), (4, 0.375), (2, 0.25)])
def test_reduced_image_fills_the_same_area(shape: tuple[int, int], scale: int, edge: float) -> None:
    """A white image stays white up to the letterbox for every position of the cells, so nothing is moved or cut."""
    facts = Facts(height=shape[0], width=shape[1])
    counts = [int(np.ceil((length / scale) + edge - 1e-9)) for length in shape]
    reduced = readers.Picture(np.ones(counts, np.float32), facts, Identities(), 0, scale, edge)
    whole = picture_of(np.ones(shape, np.float32))
    fitted = [readers.fit(picture, Preprocessing(size=32, bits=16))[0] / 65535 for picture in (reduced, whole)]
    np.testing.assert_allclose(fitted[0], fitted[1], atol=1e-4)
