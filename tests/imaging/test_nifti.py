"""NIfTI volumes: orientation, scaling, colour, complex values and damage.

nibabel writes the files, and the expected pixels are closed forms.
"""

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.makers import smooth_image

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import Rejected
from cyclic_cli.imaging import nifti, readers

LPS = np.diag([-1.5, -1.5, 3, 1])
WEIGHTS = np.array([0.299, 0.587, 0.114])


def read(path: Path, **settings: Any) -> readers.Picture:
    """The first selected frame."""
    return readers.read(path.read_bytes(), Preprocessing(**settings))


def own_range(values: np.ndarray) -> np.ndarray:
    low, high = np.nanpercentile(values, (0.5, 99.5))
    return np.nan_to_num(np.clip((values - low) / (high - low), 0, 1))


def volume(shape: tuple[int, ...] = (20, 24, 9)) -> np.ndarray:
    """Random voxels, with axes from right to left, anterior to posterior and feet to head."""
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)


def make_nifti(path: Path, values: np.ndarray, affine: np.ndarray, slope: float = 1.0, kind: str = "1") -> Path:
    nibabel = pytest.importorskip("nibabel")
    made = (nibabel.Nifti1Image if kind == "1" else nibabel.Nifti2Image)(values, affine, dtype=values.dtype)
    made.header.set_slope_inter(slope, 0)
    made.to_filename(path)
    return path


ORIENTATIONS = {  # stored directions: affine, and the function that reorders (left, posterior, superior) voxels
    "LPS": (LPS, lambda values: values),
    "RAS": (np.diag([1.5, 1.5, 3, 1]), lambda values: values[::-1, ::-1]),
    "LPI": (np.diag([-1.5, -1.5, -3, 1]), lambda values: values[:, :, ::-1]),
    "SRA": (
        np.array([[0, 1.5, 0, 0], [0, 0, 1.5, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]]),
        lambda values: values[::-1, ::-1].transpose(2, 0, 1),
    ),
}


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["1", "2"])
def test_volume_slices_are_in_radiological_convention(tmp_path: Path, name: str, orientation: str, kind: str) -> None:
    """Row 0 is anterior and column 0 is the patient's right, for every order of the stored axes."""
    values = volume()
    affine, stored = ORIENTATIONS[orientation]
    path = make_nifti(tmp_path / name, np.ascontiguousarray(stored(values)), affine, kind=kind)
    assert readers.file_format(path.read_bytes()) == "nifti"
    scan = readers.open_scan(path.read_bytes(), Preprocessing(frames="all", window="full"))
    assert scan.frames == list(range(9))
    for frame in (0, 4, 8):
        expected = values[:, :, frame].T.astype(float)
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        picture = scan.picture(frame)
        np.testing.assert_allclose(picture.pixels, expected, atol=1e-6)
        assert picture.facts.pixel_spacing == 1.5


def test_a_volume_is_scaled_and_windowed(tmp_path: Path) -> None:
    values = volume((20, 24, 9, 2))
    path = make_nifti(tmp_path / "x.nii", values, ORIENTATIONS["LPS"][0], slope=0.5)
    expected = np.clip((values[:, :, 4, 0].T * 0.5 - 39.5) / 399 + 0.5, 0, 1)
    np.testing.assert_allclose(read(path, window="40/400").pixels, expected, atol=1e-6)
    low, high = np.percentile(values[:, :, 4, 0] * 0.5, (0.5, 99.5))
    expected = np.clip((values[:, :, 4, 0].T * 0.5 - low) / (high - low), 0, 1)
    np.testing.assert_allclose(read(path).pixels, expected, atol=1e-5)


def test_damaged_volumes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_nifti(tmp_path / "x.nii", volume(), ORIENTATIONS["LPS"][0])
    whole = path.read_bytes()
    packed = make_nifti(tmp_path / "z.nii.gz", volume(), ORIENTATIONS["LPS"][0]).read_bytes()
    for content, reason in (
        (whole[: len(whole) // 2], "broken_pixels"),
        (whole[:360], "broken_pixels"),
        (packed[: len(packed) // 2], "broken_header"),
    ):
        with pytest.raises(Rejected) as caught:
            readers.read(content, Preprocessing())
        assert caught.value.reason == reason
    monkeypatch.setattr(nifti, "LARGEST_VOLUME", 1000)
    with pytest.raises(Rejected) as caught:
        readers.read(packed, Preprocessing())
    assert caught.value.reason == "too_large"


def test_error_without_nibabel_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(100)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(Rejected) as caught:
        readers.read(content, Preprocessing())
    assert caught.value.reason == "no_decoder"
    assert "cyclic-cli[nifti]" in caught.value.message


@pytest.mark.parametrize(
    ("zooms", "shape"),
    [
        ((1.0, 1.5, 3.0), (36, 20)),
        ((2.0, 1.0, 3.0), (24, 40)),
        ((1.0, 1.005, 3.0), (24, 20)),
        ((0.0, 1.0, 1.0), (24, 20)),
    ],
)
def test_voxels_that_are_not_square_are_resampled(
    tmp_path: Path, zooms: tuple[float, float, float], shape: tuple[int, int]
) -> None:
    """The volume has 20 columns and 24 rows. Without an affine, distances are those of pixdim."""
    path = make_nifti(tmp_path / "x.nii", volume(), LPS)
    content = bytearray(path.read_bytes())
    content[80:92] = struct.pack("<3f", *zooms)
    content[252:256] = bytes(4)  # neither qform nor sform
    path.write_bytes(content)
    picture = read(path)
    assert picture.pixels.shape == (picture.facts.height, picture.facts.width) == shape


# ---------------------------------------------------------------------------------------- colour and kinds of voxels

PLANES = np.stack([np.stack([smooth_image(9 * k + c, 20, 24) for k in range(3)], -1) for c in range(3)], -1)
"""Colours (X, Y, Z, 3) of three axial slices."""


@pytest.mark.parametrize("components", ["RGB", "RGBA"])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_colour_voxels_become_luminance(tmp_path: Path, components: str, name: str) -> None:
    voxels = np.zeros(PLANES.shape[:3], dtype=[(component, "u1") for component in components])
    for number, component in enumerate("RGB"):
        voxels[component] = PLANES[..., number]
    picture = read(make_nifti(tmp_path / name, voxels, ORIENTATIONS["RAS"][0]))
    np.testing.assert_allclose(picture.pixels * 255, (PLANES[:, :, 1] @ WEIGHTS)[::-1, ::-1].T, atol=0.51)
    assert picture.facts.bits == 8


@pytest.mark.parametrize(
    ("kind", "intent", "is_colour"),
    [("u1", 0, True), ("u1", 2003, True), ("f4", 2003, True), ("f4", 1007, True), ("i2", 1007, True), ("f4", 0, False)],
)
def test_vectors_of_red_green_and_blue_become_luminance(
    tmp_path: Path, kind: str, intent: int, is_colour: bool
) -> None:
    values = PLANES.astype(kind)
    path = make_nifti(tmp_path / "x.nii", values[:, :, :, None, :], LPS)
    content = bytearray(path.read_bytes())
    content[68:70] = struct.pack("<h", intent)
    path.write_bytes(content)
    expected = (PLANES[:, :, 1] @ WEIGHTS if is_colour else PLANES[:, :, 1, 0]).T
    shown = read(path, window="full").pixels
    low, high = (PLANES[:, :, 1].min(), PLANES[:, :, 1].max()) if is_colour else (expected.min(), expected.max())
    np.testing.assert_allclose(shown, (expected - low) / (float(high) - low), atol=0.51 / (float(high) - low))


@pytest.mark.parametrize("kind", ["c8", "c16"])
def test_complex_voxels_become_magnitudes(tmp_path: Path, kind: str) -> None:
    voxels = PLANES[..., 0] * np.exp(1j * PLANES[..., 1] / 40)
    path = make_nifti(tmp_path / "x.nii", voxels.astype(kind), LPS)
    np.testing.assert_allclose(read(path).pixels, own_range(PLANES[:, :, 1, 0].T), atol=1e-5)


@pytest.mark.parametrize("kind", "i1 u2 i4 u4 i8 u8 f4 f8".split())
@pytest.mark.parametrize("slope", [1.0, 1e-3])
def test_every_type_of_voxels(tmp_path: Path, kind: str, slope: float) -> None:
    """Values are scaled in float64, so a small range of large values is kept."""
    large = 2**30 if np.dtype(kind).itemsize > 4 or kind in ("i4", "u4") else 0
    voxels = (PLANES[..., 0].astype(int) // 2 + large).astype(kind)
    path = make_nifti(tmp_path / "x.nii", voxels, LPS, slope=slope)
    picture = read(path)
    np.testing.assert_allclose(picture.pixels, own_range(PLANES[:, :, 1, 0].T // 2), atol=1e-4)
    assert picture.facts.bits == 8 * np.dtype(kind).itemsize


@pytest.mark.parametrize("slope", [(0.0, 5.0), (float("nan"), float("nan"))])
def test_a_slope_of_zero_or_nan_means_unscaled(tmp_path: Path, slope: tuple[float, float]) -> None:
    """By the standard (nifti1.h), a slope of 0 means that voxels are not scaled."""
    path = make_nifti(tmp_path / "x.nii", volume(), LPS)
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", *slope)
    path.write_bytes(content)
    expected = np.clip((volume()[:, :, 4].T - 39.5) / 399 + 0.5, 0, 1)
    np.testing.assert_allclose(read(path, window="40/400").pixels, expected, atol=1e-6)


def test_nan_is_black(tmp_path: Path) -> None:
    voxels = volume().astype(np.float32)
    voxels[:5] = np.nan
    np.testing.assert_allclose(
        read(make_nifti(tmp_path / "x.nii", voxels, LPS)).pixels, own_range(voxels[:, :, 4].T), atol=1e-5
    )


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 1), (20, 24, 1, 1, 1), (20, 24, 1, 4), (20, 24, 1, 2, 5)])
def test_single_slices_and_series(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = volume(shape)
    scan = readers.open_scan(make_nifti(tmp_path / "x.nii", values, LPS).read_bytes(), Preprocessing(frames="all"))
    assert scan.frames == [0]
    first = values.reshape(20, 24, -1)[:, :, 0]
    np.testing.assert_allclose(scan.picture(0).pixels, own_range(first.T), atol=1e-5)


def test_bytes_after_the_compressed_volume_are_ignored(tmp_path: Path) -> None:
    content = make_nifti(tmp_path / "x.nii", volume(), LPS).read_bytes()
    expected = readers.read(content, Preprocessing()).pixels
    members = gzip.compress(content[:3000]) + gzip.compress(content[3000:])
    for packed in (gzip.compress(content) + b"more", members):
        np.testing.assert_array_equal(readers.read(packed, Preprocessing()).pixels, expected)


# ------------------------------------------------------------------------------------------------------- rejections


@pytest.mark.parametrize("kind", ["Nifti1Pair", "Nifti2Pair", "AnalyzeImage"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_headers_of_pairs_name_the_way_out(tmp_path: Path, kind: str, suffix: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(getattr(nibabel, kind)(volume(), LPS), tmp_path / f"x.img{suffix}")
    with pytest.raises(Rejected) as caught:
        read(tmp_path / f"x.hdr{suffix}")
    assert caught.value.reason == "unknown_format"
    assert "a pair of .hdr and .img" in caught.value.message


@pytest.mark.parametrize(
    ("damage", "reason", "detail"),
    [
        (lambda content: content[:3000], "broken_pixels", "cut short"),
        (lambda content: gzip.compress(content)[:-2000], "broken_header", "cut short"),
        (lambda content: gzip.compress(content)[:-8] + bytes(8), "broken_header", "gzip compression"),
        (lambda content: content[:70] + struct.pack("<h", 77) + content[72:], "broken_header", "data type"),
        (lambda content: content[:40] + struct.pack("<8h", 1, 9, *[1] * 6) + content[56:], "broken_header", "two axes"),
        (lambda content: content[:280] + bytes(48) + content[328:], "broken_header", "orientation"),
    ],
)
def test_rejections_say_what_is_wrong(tmp_path: Path, damage: Any, reason: str, detail: str) -> None:
    path = make_nifti(tmp_path / "x.nii", volume(), LPS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Rejected) as caught:
        read(path)
    assert caught.value.reason == reason
    assert detail in caught.value.message
    assert "Error" not in caught.value.message


def test_a_volume_that_is_far_larger_than_its_file_is_refused_at_once(tmp_path: Path) -> None:
    import nibabel

    path = tmp_path / "x.nii"
    nibabel.save(nibabel.Nifti2Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[40:48] = (10**15).to_bytes(8, "little")  # the third dimension
    path.write_bytes(content)
    for frames in ("middle", "all"):
        with pytest.raises(Rejected, match="far larger than the file"):
            read(path, frames=frames)
