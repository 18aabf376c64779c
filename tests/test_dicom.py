"""DICOM as a viewer shows it: a table of flavours with known grey levels, and DCMTK as an independent viewer."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from conftest import make_dicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing
from pydicom.sequence import Sequence

from cyclic_cli import dicom
from cyclic_cli.config import Preprocessing
from cyclic_cli.dicom import rendering
from cyclic_cli.dicom.header import Facts, Identities
from cyclic_cli.errors import Rejected, Skipped


def read(path: Path, **settings: Any) -> tuple[np.ndarray, Facts, Identities]:
    """The first selected frame, its facts, and whom the header names."""
    film = dicom.Film(path.read_bytes(), Preprocessing(**settings))
    shown = film.shown(film.frames[0])
    return shown.pixels, shown.facts, film.identities


def bundled(name: str) -> Path:
    """A file that comes with pydicom; nothing is downloaded."""
    return Path(str(get_testdata_file(name, download=False)))


RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16  # 0–4080, 12 bits
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def item(**attributes: Any) -> Sequence:
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return Sequence([dataset])


def voi_lut() -> Sequence:
    """Maps 0–255 to a falling 16-bit ramp."""
    table = np.linspace(65535, 0, 256).astype("<u2")
    sequence = item(LUTDescriptor=[256, 0, 16], LUTData=table.tolist())
    sequence[0]["LUTDescriptor"].VR, sequence[0]["LUTData"].VR = "US", "US"
    return sequence


LOW, HIGH = np.percentile(RAMP[RAMP >= 800], (0.5, 99.5))
linear = np.clip((RAMP - 2047.5) / 4095 + 0.5, 0, 1)
signed = RAMP.astype(np.int16) - 2000
FLAVOURS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "window": (RAMP, WINDOW, linear),
    "monochrome1 is inverted after the window": (
        RAMP,
        {"WindowCenter": 500, "WindowWidth": 401, "PhotometricInterpretation": "MONOCHROME1"},
        1 - np.clip((RAMP - 499.5) / 400 + 0.5, 0, 1),
    ),
    "first of several windows": (RAMP, {"WindowCenter": [2048, 100], "WindowWidth": [4096, 50]}, linear),
    "linear exact": (
        RAMP,
        {"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "LINEAR_EXACT"},
        np.clip((RAMP - 1000.0) / 500 + 0.5, 0, 1),
    ),
    "sigmoid": (
        RAMP,
        {"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "SIGMOID"},
        1 / (1 + np.exp(-4 * (RAMP - 1000.0) / 500)),
    ),
    "rescale before the window": (
        RAMP,
        {"RescaleSlope": 0.5, "RescaleIntercept": -1000, "WindowCenter": 0, "WindowWidth": 1001},
        np.clip((RAMP * 0.5 - 1000 + 0.5) / 1000 + 0.5, 0, 1),
    ),
    "signed": (
        signed,
        {"WindowCenter": 0, "WindowWidth": 2001, "bits": 16},
        np.clip((signed + 0.5) / 2000 + 0.5, 0, 1),
    ),
    "no window takes robust percentiles": (
        RAMP,
        {},
        np.clip((RAMP - np.percentile(RAMP, 0.5)) / np.subtract(*np.percentile(RAMP, (99.5, 0.5))), 0, 1),
    ),
    "padding is black": (
        np.where(RAMP < 800, 65535, RAMP).astype(np.uint16),
        {"PixelPaddingValue": 65535, "bits": 16, "WindowCenter": 2048, "WindowWidth": 4096},
        np.where(RAMP < 800, 0, linear),
    ),
    "padding does not count in the percentiles": (
        np.where(RAMP < 800, 65535, RAMP).astype(np.uint16),
        {"PixelPaddingValue": 65500, "PixelPaddingRangeLimit": 65535, "bits": 16},
        np.where(
            RAMP < 800,
            0,
            np.clip((RAMP - LOW) / (HIGH - LOW), 0, 1),
        ),
    ),
    "padding of an inverted film is black": (
        np.where(RAMP < 800, 0, RAMP).astype(np.uint16),
        {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1", **WINDOW},
        np.where(RAMP < 800, 0, 1 - linear),
    ),
    "eight bits": (
        (RAMP // 16).astype(np.uint8),
        {"bits": 8, "WindowCenter": 128, "WindowWidth": 256},
        (RAMP // 16) / 255,
    ),
    "middle frame": (np.stack([RAMP * 0, RAMP, RAMP[::-1]]), WINDOW, linear),
}


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_flavour_has_its_known_grey_levels(name: str, tmp_path: Path) -> None:
    pixels, header, expected = FLAVOURS[name]
    got, facts, _ = read(make_dicom(tmp_path / "x.dcm", pixels, **header))
    assert got.dtype == np.float32
    assert (facts.height, facts.width) == got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_voi_lut_goes_before_a_window(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP // 16, VOILUTSequence=voi_lut(), **WINDOW)
    np.testing.assert_allclose(read(path)[0], 1 - (RAMP // 16) / 255, atol=1e-4)


def test_the_window_of_a_frame_is_its_own(tmp_path: Path) -> None:
    groups = Sequence()
    for center in (1000, 2048, 3000):
        group = Dataset()
        group.FrameVOILUTSequence = item(WindowCenter=center, WindowWidth=4096)
        group.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=100)
        groups.append(group)
    frames = np.stack([RAMP] * 3)
    path = make_dicom(tmp_path / "x.dcm", frames, PerFrameFunctionalGroupsSequence=groups)
    np.testing.assert_allclose(read(path)[0], np.clip((RAMP + 100 - 2047.5) / 4095 + 0.5, 0, 1), atol=2e-6)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    colour = np.zeros((4, 6, 3), np.uint8)
    colour[..., 0], colour[:2, :, 1], colour[..., 2] = 255, 128, 20
    got = read(make_dicom(tmp_path / "x.dcm", colour, bits=8))[0]
    expected = np.asarray(Image.fromarray(colour).convert("L")) / 255  # Pillow's own luminance, rounded
    np.testing.assert_allclose(got, expected, atol=0.5 / 255 + 1e-6)


def test_a_palette_reads_the_same_in_big_endian(tmp_path: Path) -> None:
    """A grey palette of 16-bit words turns the stored index upside down, whichever byte of a word stands first."""
    indices = (RAMP // 16).astype(np.uint8)
    for syntax, kind in (("1.2.840.10008.1.2.1", "<u2"), ("1.2.840.10008.1.2.2", ">u2")):
        words = (np.arange(255, -1, -1) * 257).astype(kind).tobytes()
        palette = {f"{colour}PaletteColorLookupTableData": words for colour in ("Red", "Green", "Blue")}
        palette |= {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16] for colour in ("Red", "Green", "Blue")}
        path = make_dicom(
            tmp_path / f"{syntax}.dcm",
            indices,
            bits=8,
            syntax=syntax,
            PhotometricInterpretation="PALETTE COLOR",
            **palette,
        )
        np.testing.assert_allclose(read(path)[0], 1 - indices / 255, atol=1e-6)


def test_numbers_that_are_none_become_black(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW)
    header = pydicom.dcmread(path)
    values = RAMP.astype(np.float32)
    values[0] = np.nan
    del header.PixelData
    header.FloatPixelData = values.tobytes()
    header.BitsAllocated = 32
    header.save_as(path)
    got = read(path)[0]
    assert np.isfinite(got).all()
    assert (got[0] == 0).all()


@pytest.mark.parametrize(("center", "width"), [(40, 400), (100.5, 1), (0, 2), (2000, 33.3)])
def test_windows_equal_those_of_pydicom(center: float, width: float) -> None:
    values = np.arange(-500, 3500, dtype=np.float64)
    header = Dataset()
    header.PhotometricInterpretation, header.BitsStored, header.PixelRepresentation = "MONOCHROME2", 8, 0
    header.WindowCenter, header.WindowWidth = center, width
    expected = apply_windowing(values, header) / 255
    np.testing.assert_allclose(rendering.window(values, center, width), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("liver_1frame.dcm", "segmentation"),
        ("rtdose.dcm", "radiotherapy object"),
        ("test-SR.dcm", "structured report"),
        ("DICOMDIR", "DICOMDIR"),
    ],
)
def test_what_is_no_image_is_skipped(name: str, kind: str) -> None:
    with pytest.raises(Skipped) as caught:
        read(bundled(name))
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("name", "reason"),
    [("MR_truncated.dcm", "broken_pixels"), ("no_meta_group_length.dcm", "no_pixels"), ("priv_SQ.dcm", "no_pixels")],
)
def test_damaged_files_are_rejected_with_a_reason(name: str, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        read(bundled(name))
    assert caught.value.reason == reason


def test_an_absurd_size_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, Rows=65535, Columns=65535, NumberOfFrames=9999)
    with pytest.raises(Rejected) as caught:
        read(path)
    assert caught.value.reason == "too_large"


def test_the_header_gives_defined_terms_only(tmp_path: Path) -> None:
    path = make_dicom(
        tmp_path / "x.dcm", RAMP, Modality="DX", ViewPosition="Mrs Miller", BodyPartExamined="CHEST", PatientAge="043Y",
        PatientSex="F", PixelSpacing=[0.2, 0.2], PatientID="7", IssuerOfPatientID="A", StudyInstanceUID="1.2",
    )  # fmt: skip
    _, facts, identities = read(path)
    assert (facts.modality, facts.view, facts.body_part, facts.sex) == ("DX", "other", "CHEST", "F")
    assert (facts.age, facts.bits, facts.pixel_spacing) == ("40-44", 12, 0.2)
    assert identities.patient == ("7", "A")
    assert "7" not in repr(identities)


@pytest.mark.parametrize(
    ("age", "band"), [("007D", "0-4"), ("030M", "0-4"), ("089Y", "85-89"), ("103Y", "90+"), ("", "")]
)
def test_ages_are_bands(tmp_path: Path, age: str, band: str) -> None:
    assert read(make_dicom(tmp_path / "x.dcm", RAMP, PatientAge=age))[1].age == band


def test_a_file_without_preamble_is_dicom_too(tmp_path: Path) -> None:
    whole = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW)
    bare = tmp_path / "bare"
    dataset = pydicom.dcmread(whole)
    pydicom.dcmwrite(bare, Dataset(dataset), implicit_vr=True, little_endian=True)
    assert dicom.looks_like_dicom(bare.read_bytes()[:132])
    np.testing.assert_allclose(read(bare)[0], linear, atol=2e-6)
    assert not dicom.looks_like_dicom(b"\x08\x00then something quite else" + bytes(132))
