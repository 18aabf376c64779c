"""DICOM as a viewer shows it: a table of flavours with known grey levels, and DCMTK as an independent viewer."""

import io
import re
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.makers import make_dicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_windowing
from pydicom.sequence import Sequence

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import InputError, Rejected, Skipped, UsageError
from cyclic_cli.imaging.dicom import reading as dicom
from cyclic_cli.imaging.dicom import rendering
from cyclic_cli.imaging.dicom.header import Facts, Identities


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
    "middle frame": (np.stack([RAMP * 0, RAMP, RAMP[::-1]]), WINDOW, linear),
    "a window of width one is a threshold": (
        RAMP,
        {"WindowCenter": 1000, "WindowWidth": 1},
        (RAMP > 999.5).astype(float),
    ),
    "a presentation shape says anew which end is white": (
        RAMP,
        {**WINDOW, "PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
        linear,
    ),
    "a presentation shape never inverts twice": (
        RAMP,
        {**WINDOW, "PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        1 - linear,
    ),
    "bits above those stored are no part of the value": (RAMP | 0x3000, WINDOW, linear),
    "bits above those stored of signed values are not either": (
        ((RAMP.astype(np.int16) - 2048) & 0x0FFF) | 0x5000,
        {"WindowCenter": 0, "WindowWidth": 4096},
        np.clip((RAMP - 2048.0 + 0.5) / 4095 + 0.5, 0, 1),
    ),
    "an old high bit": (RAMP << 4, {**WINDOW, "HighBit": 15}, linear),
    "32 bits": (
        RAMP.astype(np.uint32) * 2**19,
        {"bits": 32, "WindowCenter": 2048 * 2.0**19, "WindowWidth": 4096 * 2.0**19},
        RAMP / 4096,
    ),
    "a falling rescale": (
        RAMP,
        {"RescaleSlope": -1, "RescaleIntercept": 4080, "WindowCenter": 2048, "WindowWidth": 4096},
        np.clip((4080 - RAMP - 2047.5) / 4095 + 0.5, 0, 1),
    ),
    "a falling rescale without a window": (
        RAMP,
        {"RescaleSlope": -2, "RescaleIntercept": 7},
        1 - np.clip((RAMP - np.percentile(RAMP, 0.5)) / np.subtract(*np.percentile(RAMP, (99.5, 0.5))), 0, 1),
    ),
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


# ---------------------------------------------------------------------------------------------------------- settings

HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024, "Modality": "CT"}


@pytest.mark.parametrize(
    ("window", "center", "width"),
    [
        ("40/400", 40, 400), ("-600/1500.5", -600, 1500.5), ("lung", -600, 1500), ("bone", 400, 1800),
        ("brain", 40, 80), ("mediastinum", 40, 400),
    ],
)  # fmt: skip
def test_a_window_of_the_users_is_in_hounsfield_units(tmp_path: Path, window: str, center: float, width: float) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **HOUNSFIELD, **WINDOW, VOILUTFunction="SIGMOID")
    expected = np.clip((RAMP - 1024.0 - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(read(path, window=window)[0], expected, atol=2e-6)


def test_named_windows_are_for_ct_alone(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW, Modality="MR")
    np.testing.assert_allclose(read(path, window="lung")[0], linear, atol=2e-6)


def test_full_and_percentile_look_at_the_values_outside_padding(tmp_path: Path) -> None:
    padded = np.where(RAMP < 800, 0, RAMP).astype(np.uint16)
    header = {**WINDOW, "PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}
    path = make_dicom(tmp_path / "x.dcm", padded, **header)
    for window, low, high in (("full", 800, 4080), ("percentile", LOW, HIGH)):
        expected = np.where(RAMP < 800, 0, 1 - np.clip((RAMP - low) / (high - low), 0, 1))
        np.testing.assert_allclose(read(path, window=window)[0], expected, atol=2e-6)


@pytest.mark.parametrize("window", ["", "wide", "40", "40/0", "40/-5", "a/b", "40/400/1", "nan/1"])
def test_a_window_that_cannot_be_is_refused(window: str) -> None:
    with pytest.raises(UsageError):
        Preprocessing(window=window)


@pytest.mark.parametrize("frames", ["", "last", "0", "-1", "1.5", "1-3", "12345678901"])
def test_frames_that_cannot_be_are_refused(frames: str) -> None:
    with pytest.raises(UsageError):
        Preprocessing(frames=frames)


@pytest.mark.parametrize(
    ("frames", "expected"), [("middle", [2]), ("first", [0]), ("all", [0, 1, 2, 3]), ("1", [0]), ("4", [3])]
)
def test_frames_are_selected(tmp_path: Path, frames: str, expected: list[int]) -> None:
    pixels = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1], RAMP.T])
    film = dicom.Film(make_dicom(tmp_path / "x.dcm", pixels, **WINDOW).read_bytes(), Preprocessing(frames=frames))
    assert film.frames == expected
    for frame in expected:
        np.testing.assert_allclose(film.shown(frame).pixels, (pixels[frame] - 2047.5) / 4095 + 0.5, atol=2e-6)


def test_a_frame_that_is_not_there_is_refused(tmp_path: Path) -> None:
    content = make_dicom(tmp_path / "x.dcm", np.stack([RAMP, RAMP])).read_bytes()
    with pytest.raises(Rejected) as caught:
        dicom.Film(content, Preprocessing(frames="3"))
    assert caught.value.reason == "no_frame"


# ------------------------------------------------------------------------------------------------------------ colour

COLOUR = np.stack([RAMP // 16, RAMP[::-1] // 16, RAMP.T // 16], axis=-1).astype(np.uint8)
GREY_OF_COLOUR = COLOUR @ np.array([0.299, 0.587, 0.114]) / 255


def ycbcr(colour: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(colour).convert("YCbCr"))


def test_planes_of_colour_lie_apart_or_together(tmp_path: Path) -> None:
    planes = make_dicom(
        tmp_path / "x.dcm", COLOUR, bits=8, PlanarConfiguration=1, PixelData=np.moveaxis(COLOUR, -1, 0).tobytes()
    )
    np.testing.assert_allclose(read(planes)[0], GREY_OF_COLOUR, atol=1e-6)


def test_ybr_of_every_packing_becomes_luminance(tmp_path: Path) -> None:
    smooth = np.repeat(COLOUR, 2, axis=1)  # neighbours share their chroma
    ybr = ycbcr(smooth)
    halved = np.stack([ybr[:, 0::2, 0], ybr[:, 1::2, 0], ybr[:, 0::2, 1], ybr[:, 0::2, 2]], axis=-1)
    partial = np.array([[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]])
    narrow = np.rint(smooth @ partial.T + [16, 128, 128]).astype(np.uint8)
    halved_narrow = np.stack([narrow[:, 0::2, 0], narrow[:, 1::2, 0], narrow[:, 0::2, 1], narrow[:, 0::2, 2]], axis=-1)
    for photometric, content in (
        ("YBR_FULL", ybr), ("YBR_FULL_422", halved), ("YBR_PARTIAL_422", halved_narrow),
    ):  # fmt: skip
        path = make_dicom(
            tmp_path / "x.dcm", smooth, bits=8, PhotometricInterpretation=photometric, PixelData=content.tobytes()
        )
        got = read(path)[0]
        np.testing.assert_allclose(got, np.repeat(GREY_OF_COLOUR, 2, axis=1), atol=2.5 / 255, err_msg=photometric)


def test_a_palette_may_come_in_segments(tmp_path: Path) -> None:
    """Two segments: sixteen single entries, then a straight line to the top (PS3.3 C.7.9.2)."""
    words = np.array([0, 16, *range(0, 256, 16), 1, 240, 65535], "<u2").tobytes()
    table = np.concatenate([np.arange(0, 256, 16), 240 + (65535 - 240) / 240 * np.arange(1, 241)]) / 65535
    palette = {f"Segmented{colour}PaletteColorLookupTableData": words for colour in ("Red", "Green", "Blue")}
    palette |= {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16] for colour in ("Red", "Green", "Blue")}
    indices = (RAMP // 16).astype(np.uint8)
    path = make_dicom(tmp_path / "x.dcm", indices, bits=8, PhotometricInterpretation="PALETTE COLOR", **palette)
    np.testing.assert_allclose(read(path)[0], table[indices], atol=1.5 / 65535)


def test_one_bit_and_eight_bits_in_big_endian_words(tmp_path: Path) -> None:
    bits = (RAMP // 16 % 3 == 0).astype(np.uint8)
    path = make_dicom(tmp_path / "x.dcm", bits, bits=1, WindowCenter=0.5, WindowWidth=1, VOILUTFunction="LINEAR_EXACT")
    header = pydicom.dcmread(path)
    header.BitsAllocated = 1
    header.PixelData = np.packbits(bits, bitorder="little").tobytes()
    header.save_as(path)
    np.testing.assert_allclose(read(path)[0], bits, atol=1e-6)
    words = (RAMP // 16).astype(np.uint8)
    path = make_dicom(
        tmp_path / "y.dcm", words, bits=8, syntax="1.2.840.10008.1.2.2", WindowCenter=128, WindowWidth=256,
        PixelData=words.view("<u2").byteswap().tobytes(),
    )  # fmt: skip
    header = pydicom.dcmread(path)
    header["PixelData"].VR = "OW"
    header.save_as(path)
    np.testing.assert_allclose(read(path)[0], words / 255, atol=1e-6)


def test_doubles_are_rendered(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW)
    header = pydicom.dcmread(path)
    del header.PixelData, header.BitsStored, header.HighBit, header.PixelRepresentation
    header.DoubleFloatPixelData = RAMP.astype(np.float64).tobytes()
    header.BitsAllocated = 64
    header.save_as(path)
    np.testing.assert_allclose(read(path)[0], linear, atol=2e-6)


@pytest.mark.parametrize("kind", ["Float", "DoubleFloat"])
@pytest.mark.parametrize(
    ("value", "limit", "padded"), [(-1e6, None, -1e6), (-1e6, 0, -3), (0, -1e6, -3), (np.nan, None, np.nan)]
)  # fmt: skip
def test_padding_of_floats_is_black(
    tmp_path: Path, kind: str, value: float, limit: float | None, padded: float
) -> None:
    """With a window, and in the percentiles; each by itself and averaged."""
    values = np.linspace(1, 2, 4096).reshape(64, 64)
    values[:33] = padded
    path = make_dicom(tmp_path / "x.dcm", RAMP, Rows=64, Columns=64)
    header = pydicom.dcmread(path)
    del header.PixelData, header.BitsStored, header.HighBit, header.PixelRepresentation
    header.BitsAllocated = 32 if kind == "Float" else 64
    setattr(header, f"{kind}PixelData", values.astype(f"f{header.BitsAllocated // 8}").tobytes())
    setattr(header, f"{kind}PixelPaddingValue", value)
    if limit is not None:
        setattr(header, f"{kind}PixelPaddingRangeLimit", limit)
    low, high = np.percentile(values[33:], (0.5, 99.5))
    for window, expected in (("auto", (values - low) / (high - low)), ("0/11", (values + 0.5) / 10 + 0.5)):
        header.save_as(path)
        expected = np.where(np.arange(64)[:, None] < 33, 0, np.clip(expected, 0, 1))
        np.testing.assert_allclose(read(path, window=window, exact=True)[0], expected, atol=2e-6)
        means = expected.reshape(32, 2, 32, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(read(path, window=window, size=10)[0], means, atol=2e-6)


def test_what_old_files_leave_out_has_its_usual_value(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW)
    header = pydicom.dcmread(path)
    del header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation, header.HighBit
    header.save_as(path)
    np.testing.assert_allclose(read(path)[0], linear, atol=2e-6)


# ----------------------------------------------------------------------------------------------------------- refusals


def refusal(path: Path, **settings: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read(path, **settings)
    return caught.value


def as_stream(path: Path, stream: bytes, syntax: str, **header: Any) -> Path:
    """A file of `RAMP` whose pixel data are one fragment with `stream`."""
    dataset = pydicom.dcmread(make_dicom(path, RAMP, **header))
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535, "NumberOfFrames": 9999}, "too_large"),
        ({"Rows": 1, "Columns": 16385}, "too_large"),
        ({"Rows": 16384, "Columns": 16384}, "broken_pixels"),
        ({"NumberOfFrames": 9999}, "broken_pixels"),
        ({"NumberOfFrames": 2147483647}, "broken_pixels"),
        ({"Rows": 0}, "broken_header"),
        ({"BitsAllocated": 24, "BitsStored": 24}, "broken_pixels"),
    ],
    ids=str,
)
@pytest.mark.parametrize("frames", ["middle", "all"])
def test_absurd_headers_are_refused_at_once(tmp_path: Path, header: dict[str, Any], reason: str, frames: str) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **header)
    tracemalloc.start()
    assert refusal(path, frames=frames).reason == reason
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * 2**20


@pytest.mark.parametrize("frames", [9999, 2147483647])
def test_more_frames_than_fragments_can_hold_are_refused(tmp_path: Path, frames: int) -> None:
    path = as_stream(
        tmp_path / "x.dcm", b"\xff\x4f\xff\x51" + bytes(100), "1.2.840.10008.1.2.4.90", NumberOfFrames=frames
    )
    assert refusal(path, frames="all").reason == "broken_pixels"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"])
def test_a_stream_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path, syntax: str) -> None:
    out = io.BytesIO()
    picture = Image.fromarray((RAMP // 16).astype(np.uint8)).resize((300, 200))
    if syntax.endswith("80"):
        stream = b"\xff\xd8\xff\xf7\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00" + bytes(50)
    else:
        picture.save(out, "JPEG" if syntax.endswith("50") else "JPEG2000", no_jp2=True)
        stream = out.getvalue()
    error = refusal(as_stream(tmp_path / "x.dcm", stream, syntax, bits=8))
    assert (error.reason, "another size" in error.message) == ("broken_pixels", True)


CUT = ["JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm", "SC_rgb_jls_lossy_line.dcm", "JPGExtended.dcm",
       "CT_small.dcm", "image_dfl.dcm"]  # fmt: skip


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_short_is_refused(name: str, share: float, tmp_path: Path) -> None:
    content = bundled(name).read_bytes()
    if name == "CT_small.dcm":  # what follows its pixel data is no part of the image
        content = content[: content.index(b"\xe0\x7f\x10\x00") + 12 + 2 * 128 * 128]
    (tmp_path / "x.dcm").write_bytes(content[: int(len(content) * share)])
    assert refusal(tmp_path / "x.dcm").reason in ("broken_pixels", "no_pixels", "broken_header")


def test_every_decoder_says_why_it_failed(tmp_path: Path) -> None:
    error = refusal(as_stream(tmp_path / "x.dcm", b"\xff\x4f\xff\x51 Miller", "1.2.840.10008.1.2.4.90"))
    assert error.reason == "broken_pixels"
    assert {"pylibjpeg", "pillow", "gdcm"} <= set(re.findall(r"(\w+): \w+", error.message))
    assert "Miller" not in error.message


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.113619.5.2", "1.2.3"])
def test_a_syntax_without_a_decoder_has_its_reason(tmp_path: Path, syntax: str) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", syntax.encode().ljust(24, b"\0")[:20], 1))
    if len(syntax) > 20:
        as_stream(path, b"anything", syntax)
    assert refusal(path).reason == "no_decoder"


def test_burned_in_annotation_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW, BurnedInAnnotation="YES", PatientID="7")
    error = refusal(path)
    assert error.reason == "burned_in"
    assert error.identities.patient == ("7",)  # type: ignore[attr-defined]
    film = dicom.Film(path.read_bytes(), Preprocessing(), allow_burned_in=True)
    np.testing.assert_allclose(film.shown(0).pixels, linear, atol=2e-6)


def test_a_structured_report_brings_its_text_and_whom_it_names() -> None:
    with pytest.raises(Skipped) as caught:
        read(bundled("test-SR.dcm"))
    assert caught.value.text
    assert caught.value.identities.study  # type: ignore[attr-defined]


def test_an_error_knows_whom_the_header_names(tmp_path: Path) -> None:
    path = as_stream(tmp_path / "x.dcm", b"nothing", "1.2.840.10008.1.2.4.90", PatientID="7", StudyInstanceUID="1.2")
    identities = refusal(path).identities
    assert identities.patient == ("7",)  # type: ignore[attr-defined]
    assert identities.study == "1.2"  # type: ignore[attr-defined]


def test_libraries_complaints_stay_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("JPEG2000-embedded-sequence-delimiter.dcm", "badVR.dcm", "MR_truncated.dcm", "JPGExtended.dcm"):
        with suppress(InputError):
            read(bundled(name))
    assert capfd.readouterr() == ("", "")
