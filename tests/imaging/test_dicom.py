"""DICOM files are shown as the standard requires: windows, polarity, padding, frames and header facts."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import RAMP, RAMP_IN_WINDOW, WINDOW, bundled, read
from helpers.makers import make_dicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing
from pydicom.sequence import Sequence

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import Rejected, Skipped, UsageError
from cyclic_cli.imaging.dicom import reading as dicom
from cyclic_cli.imaging.dicom import windows


def item(**attributes: Any) -> Sequence:
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return Sequence([dataset])


def voi_lut() -> Sequence:
    """A VOI LUT that maps 0–255 to a falling 16-bit ramp."""
    table = np.linspace(65535, 0, 256).astype("<u2")
    sequence = item(LUTDescriptor=[256, 0, 16], LUTData=table.tolist())
    sequence[0]["LUTDescriptor"].VR, sequence[0]["LUTData"].VR = "US", "US"
    return sequence


LOW, HIGH = np.percentile(RAMP[RAMP >= 800], (0.5, 99.5))
signed = RAMP.astype(np.int16) - 2000
VARIANTS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "window": (RAMP, WINDOW, RAMP_IN_WINDOW),
    "monochrome1 is inverted after the window": (
        RAMP,
        {"WindowCenter": 500, "WindowWidth": 401, "PhotometricInterpretation": "MONOCHROME1"},
        1 - np.clip((RAMP - 499.5) / 400 + 0.5, 0, 1),
    ),
    "first of several windows": (RAMP, {"WindowCenter": [2048, 100], "WindowWidth": [4096, 50]}, RAMP_IN_WINDOW),
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
    "robust percentiles without a window": (
        RAMP,
        {},
        np.clip((RAMP - np.percentile(RAMP, 0.5)) / np.subtract(*np.percentile(RAMP, (99.5, 0.5))), 0, 1),
    ),
    "padding is black": (
        np.where(RAMP < 800, 65535, RAMP).astype(np.uint16),
        {"PixelPaddingValue": 65535, "bits": 16, "WindowCenter": 2048, "WindowWidth": 4096},
        np.where(RAMP < 800, 0, RAMP_IN_WINDOW),
    ),
    "padding is excluded from the percentiles": (
        np.where(RAMP < 800, 65535, RAMP).astype(np.uint16),
        {"PixelPaddingValue": 65500, "PixelPaddingRangeLimit": 65535, "bits": 16},
        np.where(
            RAMP < 800,
            0,
            np.clip((RAMP - LOW) / (HIGH - LOW), 0, 1),
        ),
    ),
    "padding of an inverted image is black": (
        np.where(RAMP < 800, 0, RAMP).astype(np.uint16),
        {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1", **WINDOW},
        np.where(RAMP < 800, 0, 1 - RAMP_IN_WINDOW),
    ),
    "padding that ends at zero": (
        signed,
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": 0, "bits": 16, "WindowCenter": 0, "WindowWidth": 4096},
        np.where(signed <= 0, 0, np.clip((signed + 0.5) / 4095 + 0.5, 0, 1)),
    ),
    "eight bits": (
        (RAMP // 16).astype(np.uint8),
        {"bits": 8, "WindowCenter": 128, "WindowWidth": 256},
        (RAMP // 16) / 255,
    ),
    "middle frame": (np.stack([RAMP * 0, RAMP, RAMP[::-1]]), WINDOW, RAMP_IN_WINDOW),
    "a window of width one is a threshold": (
        RAMP,
        {"WindowCenter": 1000, "WindowWidth": 1},
        (RAMP > 999.5).astype(float),
    ),
    "presentation LUT shape takes precedence over monochrome1": (
        RAMP,
        {**WINDOW, "PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
        RAMP_IN_WINDOW,
    ),
    "presentation LUT shape does not invert twice": (
        RAMP,
        {**WINDOW, "PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        1 - RAMP_IN_WINDOW,
    ),
    "unused high bits are dropped": (RAMP | 0x3000, WINDOW, RAMP_IN_WINDOW),
    "unused high bits of signed values are dropped": (
        ((RAMP.astype(np.int16) - 2048) & 0x0FFF) | 0x5000,
        {"WindowCenter": 0, "WindowWidth": 4096},
        np.clip((RAMP - 2048.0 + 0.5) / 4095 + 0.5, 0, 1),
    ),
    "unusual high bit": (RAMP << 4, {**WINDOW, "HighBit": 15}, RAMP_IN_WINDOW),
    "32 bits": (
        RAMP.astype(np.uint32) * 2**19,
        {"bits": 32, "WindowCenter": 2048 * 2.0**19, "WindowWidth": 4096 * 2.0**19},
        RAMP / 4096,
    ),
    "negative rescale slope": (
        RAMP,
        {"RescaleSlope": -1, "RescaleIntercept": 4080, "WindowCenter": 2048, "WindowWidth": 4096},
        np.clip((4080 - RAMP - 2047.5) / 4095 + 0.5, 0, 1),
    ),
    "negative rescale slope without a window": (
        RAMP,
        {"RescaleSlope": -2, "RescaleIntercept": 7},
        1 - np.clip((RAMP - np.percentile(RAMP, 0.5)) / np.subtract(*np.percentile(RAMP, (99.5, 0.5))), 0, 1),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_grey_levels_of_dicom_variants(name: str, tmp_path: Path) -> None:
    pixels, header, expected = VARIANTS[name]
    got, facts, _ = read(make_dicom(tmp_path / "x.dcm", pixels, **header))
    assert got.dtype == np.float32
    assert (facts.height, facts.width) == got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_voi_lut_takes_precedence_over_window(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP // 16, VOILUTSequence=voi_lut(), **WINDOW)
    np.testing.assert_allclose(read(path)[0], 1 - (RAMP // 16) / 255, atol=1e-4)


def test_enhanced_frames_use_their_own_window(tmp_path: Path) -> None:
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
    expected = np.asarray(Image.fromarray(colour).convert("L")) / 255  # Pillow rounds its luminance
    np.testing.assert_allclose(got, expected, atol=0.5 / 255 + 1e-6)


def test_palette_in_either_byte_order(tmp_path: Path) -> None:
    """A grey palette of 16-bit words inverts the stored index, in either byte order."""
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


def test_nan_becomes_black(tmp_path: Path) -> None:
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
    np.testing.assert_allclose(windows.window(values, center, width), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("liver_1frame.dcm", "segmentation"),
        ("rtdose.dcm", "radiotherapy object"),
        ("test-SR.dcm", "structured report"),
        ("DICOMDIR", "DICOMDIR"),
    ],
)
def test_objects_without_image_are_skipped(name: str, kind: str) -> None:
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


def test_absurd_size_is_refused(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, Rows=65535, Columns=65535, NumberOfFrames=9999)
    with pytest.raises(Rejected) as caught:
        read(path)
    assert caught.value.reason == "too_large"


def test_facts_hold_only_defined_terms(tmp_path: Path) -> None:
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
def test_ages_are_kept_as_bands(tmp_path: Path, age: str, band: str) -> None:
    assert read(make_dicom(tmp_path / "x.dcm", RAMP, PatientAge=age))[1].age == band


def test_dicom_without_preamble_is_recognised(tmp_path: Path) -> None:
    whole = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW)
    bare = tmp_path / "bare"
    dataset = pydicom.dcmread(whole)
    pydicom.dcmwrite(bare, Dataset(dataset), implicit_vr=True, little_endian=True)
    assert dicom.looks_like_dicom(bare.read_bytes()[:132])
    np.testing.assert_allclose(read(bare)[0], RAMP_IN_WINDOW, atol=2e-6)
    assert not dicom.looks_like_dicom(b"\x08\x00then something quite else" + bytes(132))


# ---------------------------------------------------------------------------------------------------------- settings

HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024, "Modality": "CT"}


@pytest.mark.parametrize(
    ("window", "center", "width"),
    [
        ("40/400", 40, 400), ("-600/1500.5", -600, 1500.5), ("lung", -600, 1500), ("bone", 400, 1800),
        ("brain", 40, 80), ("mediastinum", 40, 400),
    ],
)  # fmt: skip
def test_requested_window_is_in_hounsfield_units(tmp_path: Path, window: str, center: float, width: float) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **HOUNSFIELD, **WINDOW, VOILUTFunction="SIGMOID")
    expected = np.clip((RAMP - 1024.0 - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(read(path, window=window)[0], expected, atol=2e-6)


def test_named_windows_apply_to_ct_only(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW, Modality="MR")
    np.testing.assert_allclose(read(path, window="lung")[0], RAMP_IN_WINDOW, atol=2e-6)


def test_full_and_percentile_windows_ignore_padding(tmp_path: Path) -> None:
    padded = np.where(RAMP < 800, 0, RAMP).astype(np.uint16)
    header = {**WINDOW, "PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}
    path = make_dicom(tmp_path / "x.dcm", padded, **header)
    for window, low, high in (("full", 800, 4080), ("percentile", LOW, HIGH)):
        expected = np.where(RAMP < 800, 0, 1 - np.clip((RAMP - low) / (high - low), 0, 1))
        np.testing.assert_allclose(read(path, window=window)[0], expected, atol=2e-6)


@pytest.mark.parametrize("window", ["", "wide", "40", "40/0", "40/-5", "a/b", "40/400/1", "nan/1"])
def test_invalid_windows_are_refused(window: str) -> None:
    with pytest.raises(UsageError):
        Preprocessing(window=window)


@pytest.mark.parametrize("frames", ["", "last", "0", "-1", "1.5", "1-3", "12345678901"])
def test_invalid_frames_are_refused(frames: str) -> None:
    with pytest.raises(UsageError):
        Preprocessing(frames=frames)


@pytest.mark.parametrize(
    ("frames", "expected"), [("middle", [2]), ("first", [0]), ("all", [0, 1, 2, 3]), ("1", [0]), ("4", [3])]
)
def test_frames_are_selected(tmp_path: Path, frames: str, expected: list[int]) -> None:
    pixels = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1], RAMP.T])
    file = dicom.DicomFile(make_dicom(tmp_path / "x.dcm", pixels, **WINDOW).read_bytes(), Preprocessing(frames=frames))
    assert file.frames == expected
    for frame in expected:
        np.testing.assert_allclose(file.shown(frame).pixels, (pixels[frame] - 2047.5) / 4095 + 0.5, atol=2e-6)


def test_missing_frame_is_refused(tmp_path: Path) -> None:
    content = make_dicom(tmp_path / "x.dcm", np.stack([RAMP, RAMP])).read_bytes()
    with pytest.raises(Rejected) as caught:
        dicom.DicomFile(content, Preprocessing(frames="3"))
    assert caught.value.reason == "no_frame"
