"""Headers that are unusual, contradictory or damaged: what they mean for the picture, and what is counted as a guess.

The expected grey levels are closed forms of the standard (PS3.3 C.11) computed here, or DCMTK's.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.dicom_files import RAMP, RAMP_IN_WINDOW, WINDOW
from helpers.makers import Ran, make_dicom, smooth_image
from PIL import Image
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import RLELossless

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import Rejected
from cyclic_cli.imaging import readers
from cyclic_cli.imaging.guesses import GUESSES

needs_dcmtk = pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="dcmtk is not installed")
EIGHT = (RAMP // 16).astype(np.uint8)
BLANK = np.zeros_like(RAMP)


def shown(path: Path, **settings: Any) -> readers.Picture:
    return readers.read(path.read_bytes(), Preprocessing(exact=True, **settings))


def written(path: Path, pixels: np.ndarray, raw: dict[str, bytes] | None = None, **header: Any) -> Path:
    """A DICOM file in which the attributes of `raw` have exactly these bytes."""
    make_dicom(path, pixels, **header)
    data = dcmread(path)
    for name, value in (raw or {}).items():
        value += b" " * (len(value) % 2)
        tag = Tag(name)
        vr = "IS" if name == "PixelAspectRatio" else "CS" if name.startswith(("VOI", "Photo", "Presentation")) else "DS"
        data._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    data.save_as(path)
    return path


def windowed(values: Any, center: float, width: float) -> np.ndarray:
    """LINEAR (PS3.3 C.11.2.1.2.1)."""
    return np.clip((np.asarray(values, float) - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def exactly(values: Any, center: float, width: float) -> np.ndarray:
    """LINEAR_EXACT (PS3.3 C.11.2.1.3.2)."""
    return np.clip((np.asarray(values, float) - center) / width + 0.5, 0, 1)


def sigmoid(values: Any, center: float, width: float) -> np.ndarray:
    """SIGMOID (PS3.3 C.11.2.1.3.1)."""
    return 1 / (1 + np.exp(-4 * (np.asarray(values, float) - center) / width))


def by_percentiles(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


# ------------------------------------------------------------------------------------------------ numbers and windows

NUMBERS: dict[str, tuple[dict[str, bytes], np.ndarray, tuple[str, ...]]] = {
    "decimal commas in a window": (
        {"WindowCenter": b"1024,5", "WindowWidth": b"1024,0"},
        windowed(RAMP, 1024.5, 1024),
        (),
    ),
    "decimal commas in a slope": (
        {"RescaleSlope": b"0,5", "RescaleIntercept": b"-10,5", "WindowCenter": b"500", "WindowWidth": b"600"},
        windowed(RAMP * 0.5 - 10.5, 500, 600),
        (),
    ),
    "a unit behind the number": (
        {"WindowCenter": b"1000 HU", "WindowWidth": b" 500HU"},
        windowed(RAMP, 1000, 500),
        (),
    ),
    "exponents": (
        {"WindowCenter": b"1E3", "WindowWidth": b"5,0e+02"},
        windowed(RAMP, 1000, 500),
        (),
    ),
    "an empty first window": (
        {"WindowCenter": b"\\2000", "WindowWidth": b"\\4000"},
        windowed(RAMP, 2000, 4000),
        (),
    ),
    "an empty last window": (
        {"WindowCenter": b"2000\\", "WindowWidth": b"4000\\"},
        windowed(RAMP, 2000, 4000),
        (),
    ),
    "a first window of negative width": (
        {"WindowCenter": b"100\\2000", "WindowWidth": b"-50\\4000"},
        windowed(RAMP, 2000, 4000),
        (),
    ),
    "only a window of negative width": (
        {"WindowCenter": b"-500", "WindowWidth": b"-1500"},
        by_percentiles(RAMP),
        ("window",),
    ),
    "a window of NaN": ({"WindowCenter": b"NaN", "WindowWidth": b"NaN"}, by_percentiles(RAMP), ("window",)),
    "a window of infinity": ({"WindowCenter": b"0", "WindowWidth": b"inf"}, by_percentiles(RAMP), ("window",)),
    "a window that overflows": ({"WindowCenter": b"0", "WindowWidth": b"1e400"}, by_percentiles(RAMP), ("window",)),
    "a width without a centre": ({"WindowWidth": b"400"}, by_percentiles(RAMP), ("window",)),
    "ambiguous separators": (
        {"WindowCenter": b"1.024,5", "WindowWidth": b"2000"},
        by_percentiles(RAMP),
        ("window",),
    ),
    "no window": ({"WindowCenter": b"", "WindowWidth": b""}, by_percentiles(RAMP), ()),
    "a window beyond all values": (
        {"WindowCenter": b"20000", "WindowWidth": b"100"},
        by_percentiles(RAMP),
        ("window",),
    ),
    "a window below all values": (
        {"WindowCenter": b"-20000", "WindowWidth": b"100"},
        by_percentiles(RAMP),
        ("window",),
    ),
    "a window so wide that it shows one level": (
        {"WindowCenter": b"0", "WindowWidth": b"1e9"},
        by_percentiles(RAMP),
        ("window",),
    ),
    "a slope of zero": (
        {"RescaleSlope": b"0", "RescaleIntercept": b"-1024", "WindowCenter": b"1024", "WindowWidth": b"4096"},
        RAMP_IN_WINDOW,
        ("modality",),
    ),
    "a slope of NaN": (
        {"RescaleSlope": b"NaN", "RescaleIntercept": b"0", "WindowCenter": b"2048", "WindowWidth": b"4096"},
        RAMP_IN_WINDOW,
        ("modality",),
    ),
    "an empty slope": (
        {"RescaleSlope": b"", "RescaleIntercept": b"0", "WindowCenter": b"2048", "WindowWidth": b"4096"},
        RAMP_IN_WINDOW,
        (),
    ),
    "a slope of zero and a window elsewhere": (
        {"RescaleSlope": b"0", "RescaleIntercept": b"0", "WindowCenter": b"-99", "WindowWidth": b"10"},
        by_percentiles(RAMP),
        ("modality", "window"),
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_windows_and_slopes(name: str, tmp_path: Path) -> None:
    raw, expected, guesses = NUMBERS[name]
    picture = shown(written(tmp_path / "x.dcm", RAMP, raw))
    np.testing.assert_allclose(picture.pixels, expected, atol=3e-6)
    assert picture.guesses == guesses


@needs_dcmtk
@pytest.mark.parametrize("slope", [b"0", b"0.0"])
def test_a_slope_of_zero_counts_as_none_as_in_dcmtk(slope: bytes, tmp_path: Path) -> None:
    raw = {"RescaleSlope": slope, "RescaleIntercept": b"0", "WindowCenter": b"2048", "WindowWidth": b"4096"}
    path = written(tmp_path / "x.dcm", RAMP, raw)
    assert np.abs(shown(path).pixels * 255 - dcmtk(path, "+Wi", "1")).max() <= 1.01


NARROW: dict[str, tuple[float, float, float, dict[str, Any], tuple[str, ...], bool]] = {
    # slope, centre, width, header, guesses, whether the window is LINEAR_EXACT
    "a window below 1": (1e-4, 0.2, 0.4, {}, ("narrow_window",), True),
    "a window below 1 with the function LINEAR": (
        1e-4,
        0.2,
        0.4,
        {"VOILUTFunction": "LINEAR"},
        ("narrow_window",),
        True,
    ),
    "slopes of 1e-8": (1.02609e-08, 2.1e-5, 4.2e-5, {}, ("narrow_window",), True),
    "a window of 1": (0.0005, 1, 1, {}, ("narrow_window",), True),
    "a window of 1.5": (0.001, 2.05, 1.5, {}, ("narrow_window",), True),
    "standardised uptake values": (0.002, 2.5, 5, {}, ("narrow_window",), True),
    "a window of 1.5 with the function LINEAR": (0.001, 2.05, 1.5, {"VOILUTFunction": "LINEAR"}, (), False),
    "a stated LINEAR_EXACT": (0.001, 2.05, 1.5, {"VOILUTFunction": "LINEAR_EXACT"}, (), True),
    "a wide window": (0.5, 1000, 800, {}, (), False),
}


@pytest.mark.parametrize("name", NARROW)
def test_windows_of_fractional_values(name: str, tmp_path: Path) -> None:
    slope, center, width, header, guesses, is_exact = NARROW[name]
    path = make_dicom(
        tmp_path / "x.dcm",
        RAMP,
        RescaleSlope=f"{slope:g}",
        RescaleIntercept="0",
        WindowCenter=f"{center:g}",
        WindowWidth=f"{width:g}",
        **header,
    )
    picture = shown(path)
    expected = (exactly if is_exact else windowed)(RAMP * slope, center, width)
    np.testing.assert_allclose(picture.pixels, expected, atol=1e-5)
    assert picture.guesses == guesses


def test_a_narrow_window_that_the_user_asks_for(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, RescaleSlope="0.0001", RescaleIntercept="0")
    np.testing.assert_allclose(shown(path, window="0.2/0.4").pixels, exactly(RAMP * 1e-4, 0.2, 0.4), atol=1e-5)


def test_a_window_that_the_user_asks_for_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="same grey level in the window that --window asks for") as caught:
        shown(make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW), window="20000/100")
    assert caught.value.reason == "blank"


def test_equal_pixels_are_blank_under_any_window(tmp_path: Path) -> None:
    for window in (WINDOW, {"WindowCenter": 20000, "WindowWidth": 100}):
        with pytest.raises(Rejected, match="every pixel has the same value"):
            shown(make_dicom(tmp_path / "x.dcm", BLANK + 7, **window))


def test_a_window_that_shows_nothing_but_padding(tmp_path: Path) -> None:
    """All pixels but the padding are white in this window."""
    pixels = np.where(RAMP < 800, 0, RAMP)
    path = make_dicom(tmp_path / "x.dcm", pixels, PixelPaddingValue=0, WindowCenter=-500, WindowWidth=10)
    low, high = np.percentile(RAMP[RAMP >= 800], (0.5, 99.5))
    picture = shown(path)
    expected = np.where(RAMP < 800, 0, np.clip((RAMP - low) / (high - low), 0, 1))
    np.testing.assert_allclose(picture.pixels, expected, atol=2e-6)
    assert picture.guesses == ("window",)


def test_a_window_that_shows_nothing_of_a_reduced_frame(tmp_path: Path) -> None:
    pixels = np.asarray(Image.fromarray(smooth_image(1, 40, 40)).resize((640, 640)))
    path = make_dicom(tmp_path / "x.dcm", pixels, bits=8)
    for settings in ({}, {"exact": True}):
        whole = readers.read(path.read_bytes(), Preprocessing(size=64, **settings))
        data = dcmread(path)
        data.WindowCenter, data.WindowWidth = 999, 10
        data.save_as(tmp_path / "y.dcm")
        other = readers.read((tmp_path / "y.dcm").read_bytes(), Preprocessing(size=64, **settings))
        np.testing.assert_array_equal(whole.pixels, other.pixels)


FUNCTIONS: dict[str, tuple[bytes, bool, tuple[str, ...]]] = {
    "once": (b"SIGMOID ", True, ()),
    "once for each window": (b"SIGMOID\\SIGMOID", True, ()),
    "empty before": (b"\\SIGMOID", True, ()),
    "lower case": (b"sigmoid ", True, ()),
    "ended by NUL": (b"SIGMOID\0", True, ()),
    "unknown": (b"LOGARITHMIC ", False, ("voi_function",)),
    "empty": (b"", False, ()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forms_of_the_voi_lut_function(name: str, tmp_path: Path) -> None:
    stated, is_sigmoid, guesses = FUNCTIONS[name]
    windows = {"WindowCenter": [2000, 1000], "WindowWidth": [1000, 300]}
    picture = shown(written(tmp_path / "x.dcm", RAMP, {"VOILUTFunction": stated}, **windows))
    np.testing.assert_allclose(picture.pixels, (sigmoid if is_sigmoid else windowed)(RAMP, 2000, 1000), atol=3e-6)
    assert picture.guesses == guesses


@pytest.mark.parametrize("stated", [b"monochrome1", b" MONOCHROME1", b"MONOCHROME1\0", b"Monochrome1 "])
def test_forms_of_the_photometric_interpretation(stated: bytes, tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.dcm", EIGHT, {"PhotometricInterpretation": stated}, bits=8, WindowCenter=128, WindowWidth=256
    )
    np.testing.assert_allclose(shown(path).pixels, 1 - EIGHT / 255, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ lookup tables


def table_item(descriptor: list[int] | None, data: Any, vr: str = "US", descriptor_vr: str = "US") -> Dataset:
    item = Dataset()
    if descriptor is not None:
        item.add_new("LUTDescriptor", descriptor_vr, descriptor)
    if data is not None:
        item.add_new("LUTData", vr, data)
    return item


FALLING = np.linspace(65535, 0, 256).round().astype("<u2")
GOOD = table_item([256, 0, 16], FALLING.tolist())
UNUSABLE = {
    "no attribute": Dataset(),
    "no data": table_item([256, 0, 16], None),
    "empty data": table_item([256, 0, 16], b"", "OW"),
    "no descriptor": table_item(None, FALLING.tolist()),
    "a short descriptor": table_item([256, 0], FALLING.tolist()),
}


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_tables_are_passed_over(name: str, sequence: str, tmp_path: Path) -> None:
    """The next item takes their place, and after all items the window or slope."""
    header = {"bits": 8, "WindowCenter": 32768, "WindowWidth": 65536} if sequence != "VOILUTSequence" else {"bits": 8}
    first = make_dicom(tmp_path / "x.dcm", EIGHT, **header, **{sequence: Sequence([UNUSABLE[name], GOOD])})
    np.testing.assert_allclose(shown(first).pixels, FALLING[EIGHT] / 65535, atol=1e-6)
    assert shown(first).guesses == ()
    none = make_dicom(
        tmp_path / "y.dcm", EIGHT, bits=8, WindowCenter=128, WindowWidth=256, **{sequence: Sequence([UNUSABLE[name]])}
    )
    np.testing.assert_allclose(shown(none).pixels, EIGHT / 255, atol=1e-6)
    assert shown(none).guesses == ("window" if sequence == "VOILUTSequence" else "modality",)


def test_an_unusable_table_without_a_window(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, VOILUTSequence=Sequence([Dataset()]))
    np.testing.assert_allclose(shown(path).pixels, by_percentiles(RAMP), atol=1e-6)
    assert shown(path).guesses == ("window",)


rising = np.arange(256, dtype="<u2")
TABLES = {  # item, stored pixels, expected grey levels
    "fewer entries than stated": (
        table_item([4096, 0, 16], FALLING.tolist()),
        EIGHT,
        FALLING[EIGHT] / 65535,
    ),
    "more entries than stated": (
        table_item([100, 0, 16], FALLING.tolist()),
        EIGHT,
        FALLING[np.minimum(EIGHT, 99)] / 65535,
    ),
    "entries of 12 bits that are said to have 8": (
        table_item([256, 0, 8], (rising * 16 + 15).tolist()),
        EIGHT,
        (EIGHT * 16.0 + 15) / 4095,
    ),
    "entries of 8 bits that are said to have 16": (table_item([256, 0, 16], rising.tolist()), EIGHT, EIGHT / 255),
    "no bits": (table_item([256, 0, 0], FALLING.tolist()), EIGHT, FALLING[EIGHT] / 65535),
    "a first value below 0 that is written without sign": (
        table_item([256, 65536 - 128, 16], FALLING.tolist()),
        EIGHT.astype(np.int16) - 128,
        FALLING[EIGHT] / 65535,
    ),
    "a first value above 32767 that is written with sign": (
        table_item([256, 40000 - 65536, 16], FALLING.tolist(), descriptor_vr="SS"),
        EIGHT.astype(np.uint16) + 40000,
        FALLING[EIGHT] / 65535,
    ),
    "a first value below 0 with sign, and no pixel below 0": (
        table_item([356, -100, 16], [*[65535] * 100, *FALLING.tolist()], descriptor_vr="SS"),
        EIGHT,
        FALLING[EIGHT] / 65535,
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_descriptors_with_wrong_counts_bits_and_signs(name: str, tmp_path: Path) -> None:
    item, pixels, expected = TABLES[name]
    path = make_dicom(tmp_path / "x.dcm", pixels, bits=8 * pixels.dtype.itemsize, VOILUTSequence=Sequence([item]))
    np.testing.assert_allclose(shown(path).pixels, expected, atol=2e-6)


def palette(first: int, bits: int, count: int, data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = {"bits": 8, "PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        header[f"{colour}PaletteColorLookupTableDescriptor"] = [count, first, bits]
        header[f"{colour}PaletteColorLookupTableData"] = data
    return header


PALETTES = {
    "16 bits": (palette(0, 16, 256, (rising * 257).astype("<u2").tobytes()), EIGHT / 255),
    "8-bit values in entries of 16 bits": (palette(0, 16, 256, rising.tobytes()), EIGHT / 255),
    "a first value and few entries": (
        palette(50, 8, 100, np.arange(100, dtype=np.uint8).tobytes()),
        np.clip(EIGHT - 50.0, 0, 99) / 255,
    ),
    "fewer entries than stated": (
        palette(0, 8, 256, np.arange(200, dtype=np.uint8).astype("<u2").tobytes()),
        np.minimum(EIGHT, 199) / 255,
    ),
}


@pytest.mark.parametrize("name", PALETTES)
def test_palettes(name: str, tmp_path: Path) -> None:
    header, expected = PALETTES[name]
    np.testing.assert_allclose(shown(make_dicom(tmp_path / "x.dcm", EIGHT, **header)).pixels, expected, atol=1e-6)


def test_every_frame_of_a_big_endian_palette_is_shown_alike(tmp_path: Path) -> None:
    header = palette(0, 16, 256, (rising * 257).astype(">u2").tobytes())
    path = make_dicom(tmp_path / "x.dcm", np.stack([EIGHT, EIGHT[::-1]]), syntax="1.2.840.10008.1.2.2", **header)
    scan = readers.open_scan(path.read_bytes(), Preprocessing(exact=True, frames="all"))
    for frame, expected in enumerate((EIGHT, EIGHT[::-1])):
        np.testing.assert_allclose(scan.picture(frame).pixels, expected / 255, atol=1e-6)


def test_a_palette_without_a_colour_is_rejected(tmp_path: Path) -> None:
    header = palette(0, 16, 256, (rising * 257).tobytes())
    del header["GreenPaletteColorLookupTableData"]
    with pytest.raises(Rejected, match="the palette lacks a colour"):
        shown(make_dicom(tmp_path / "x.dcm", EIGHT, **header))
    with pytest.raises(Rejected, match="the palette is missing or damaged"):
        shown(make_dicom(tmp_path / "x.dcm", EIGHT, bits=8, PhotometricInterpretation="PALETTE COLOR"))


# ------------------------------------------------------------------------------------------------------------ padding


def padded(path: Path, pixels: np.ndarray, value: int, vr: str, **header: Any) -> Path:
    make_dicom(path, pixels, **header)
    data = dcmread(path)
    data.add_new("PixelPaddingValue", vr, value)
    data.save_as(path)
    return path


def test_padding_beyond_bits_stored_is_told_from_white_pixels(tmp_path: Path) -> None:
    pixels = np.where(RAMP < 800, 65535, RAMP)
    pixels[-1, -1] = 4095  # equals the padding in its lower 12 bits
    path = padded(tmp_path / "x.dcm", pixels.astype(np.uint16), 65535, "US", **WINDOW)
    np.testing.assert_allclose(shown(path).pixels, np.where(RAMP < 800, 0, windowed(pixels, 2048, 4096)), atol=2e-6)


def test_padding_beyond_bits_stored_of_a_compressed_frame(tmp_path: Path) -> None:
    pixels = np.where(RAMP < 800, 65535, RAMP)
    pixels[-1, -1] = 4095
    path = make_dicom(tmp_path / "x.dcm", pixels.astype(np.uint16), bits=16, **WINDOW)
    data = dcmread(path)
    data.compress(RLELossless)
    data.BitsStored, data.HighBit = 12, 11
    data.add_new("PixelPaddingValue", "US", 65535)
    data.save_as(path)
    np.testing.assert_allclose(shown(path).pixels, np.where(RAMP < 800, 0, windowed(pixels, 2048, 4096)), atol=2e-6)


def test_padding_beyond_bits_stored_of_signed_values(tmp_path: Path) -> None:
    centred = RAMP.astype(np.int16) - 2048
    pixels = np.where(RAMP < 800, -32768, centred).astype(np.int16)
    path = padded(tmp_path / "x.dcm", pixels, -32768, "SS", WindowCenter=0, WindowWidth=4096)
    np.testing.assert_allclose(shown(path).pixels, np.where(RAMP < 800, 0, windowed(centred, 0, 4096)), atol=2e-6)


@pytest.mark.parametrize(("kind", "value", "vr"), [(np.int16, 63536, "US"), (np.uint16, -2000, "SS")])
def test_padding_with_the_sign_of_the_other_kind(kind: Any, value: int, vr: str, tmp_path: Path) -> None:
    pixels = np.where(RAMP < 800, -2000, RAMP).astype(kind)
    path = padded(tmp_path / "x.dcm", pixels, value, vr, bits=16, **WINDOW)
    np.testing.assert_allclose(shown(path).pixels, np.where(RAMP < 800, 0, RAMP_IN_WINDOW), atol=2e-6)


def test_padding_that_no_8_bit_pixel_can_have_masks_nothing(tmp_path: Path) -> None:
    path = padded(tmp_path / "x.dcm", EIGHT, 65535, "US", bits=8, WindowCenter=128, WindowWidth=256)
    np.testing.assert_allclose(shown(path).pixels, EIGHT / 255, atol=1e-6)


# -------------------------------------------------------------------------------------------------- pixels not square

SMOOTH = smooth_image(5, 64, 64)
GREY = {"bits": 8, "WindowCenter": 128, "WindowWidth": 256}


def dcmtk(path: Path, *words: str) -> np.ndarray:
    view = path.with_suffix(".pgm")
    subprocess.run(["dcm2pnm", *words, str(path), str(view)], check=True, capture_output=True)
    return np.asarray(Image.open(view)).astype(float)


def measures(spacing: list[float]) -> Sequence:
    item, group = Dataset(), Dataset()
    item.PixelSpacing = spacing
    group.PixelMeasuresSequence = Sequence([item])
    return Sequence([group])


SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int], float]] = {  # header, size, distance between rows
    "Pixel Spacing": ({"PixelSpacing": [2, 1]}, (128, 64), 1.0),
    "columns farther apart": ({"PixelSpacing": [0.5, 1]}, (64, 128), 0.5),
    "Imager Pixel Spacing": ({"ImagerPixelSpacing": [0.3, 0.2]}, (96, 64), 0.2),
    "Nominal Scanned Pixel Spacing": ({"NominalScannedPixelSpacing": [0.3, 0.2]}, (96, 64), 0.2),
    "Image Plane Pixel Spacing": ({"ImagePlanePixelSpacing": [0.2, 0.3]}, (64, 96), 0.2),
    "Pixel Aspect Ratio": ({"PixelAspectRatio": [2, 1]}, (128, 64), 0.0),
    "Pixel Aspect Ratio of wide pixels": ({"PixelAspectRatio": [3, 4]}, (64, 85), 0.0),
    "Pixel Spacing takes precedence": ({"PixelSpacing": [1, 1], "PixelAspectRatio": [2, 1]}, (64, 64), 1.0),
    "shared measures": ({"SharedFunctionalGroupsSequence": measures([2, 1])}, (128, 64), 1.0),
    "measures of the frame": (
        {
            "SharedFunctionalGroupsSequence": measures([1, 1]),
            "PerFrameFunctionalGroupsSequence": measures([1, 2]),
        },
        (64, 128),
        1.0,
    ),
    "within 1 %": ({"PixelSpacing": [1.005, 1]}, (64, 64), 1.005),
    "above 20 to 1": ({"PixelSpacing": [30, 1]}, (64, 64), 30.0),
    "zero": ({"PixelSpacing": [1, 0]}, (64, 64), 0.0),
    "negative": ({"PixelAspectRatio": [-2, 1]}, (64, 64), 0.0),
    "one number": ({"PixelSpacing": [2]}, (64, 64), 2.0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_of_pixels(name: str, tmp_path: Path) -> None:
    header, size, spacing = SHAPES[name]
    picture = shown(make_dicom(tmp_path / "x.dcm", SMOOTH, **GREY, **header))
    assert picture.pixels.shape == (picture.facts.height, picture.facts.width) == size
    assert picture.facts.pixel_spacing == pytest.approx(spacing)


def test_decimal_commas_in_spacings(tmp_path: Path) -> None:
    path = written(tmp_path / "x.dcm", SMOOTH, {"PixelSpacing": b"0,286\\0,143"}, **GREY)
    assert shown(path).facts.pixel_spacing == 0.143
    assert shown(path).pixels.shape == (128, 64)


def test_tall_pixels_are_interpolated_along_columns_alone(tmp_path: Path) -> None:
    """Row r of the file is centred on row 2 · r + 0.5 of the picture."""
    slope = np.repeat(np.arange(64, dtype=np.uint8)[:, None] * 4, 64, axis=1)
    got = shown(make_dicom(tmp_path / "x.dcm", slope, PixelSpacing=[2, 1], **GREY)).pixels * 255
    expected = np.clip((np.arange(128) - 0.5) / 2, 0, 63) * 4
    np.testing.assert_allclose(got, np.repeat(expected[:, None], 64, axis=1), atol=0.01)


@needs_dcmtk
@pytest.mark.parametrize("header", [{"PixelAspectRatio": [2, 1]}, {"PixelSpacing": [2, 1]}, {"PixelSpacing": [1, 3]}])
def test_square_pixels_equal_those_of_dcmtk(header: dict[str, Any], tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", SMOOTH, **GREY, **header)
    ours = shown(path).pixels * 255
    theirs = dcmtk(path, "+Wi", "1", "+a", "+Sxv", str(ours.shape[1]))
    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).mean() < 2.5  # DCMTK interpolates between the upper left corners of pixels


def test_samples_of_pixels_that_are_not_square(tmp_path: Path) -> None:
    """The reduced sample of tall pixels equals that of the same picture with square ones."""
    large = np.asarray(Image.fromarray(smooth_image(2, 100, 100)).resize((600, 600), Image.Resampling.BILINEAR))
    squashed = np.asarray(Image.fromarray(large).resize((600, 300), Image.Resampling.BOX))
    samples = []
    for number, (pixels, spacing) in enumerate([(large, [1, 1]), (squashed, [2, 1])]):
        path = make_dicom(tmp_path / f"{number}.dcm", pixels, PixelSpacing=spacing, **GREY)
        preprocessing = Preprocessing(size=64)
        samples.append(readers.fit(readers.read(path.read_bytes(), preprocessing), preprocessing)[0].astype(float))
    assert np.abs(samples[0] - samples[1]).max() <= 2


def test_the_longest_side_limits_the_square_pixels(tmp_path: Path) -> None:
    strip = np.resize(smooth_image(3, 64, 64), (1500, 16))
    picture = shown(make_dicom(tmp_path / "x.dcm", strip, PixelSpacing=[16, 1], **GREY))
    assert picture.pixels.shape == (16384, 11)


# ---------------------------------------------------------------------------------------------- blank middle frames


@pytest.mark.parametrize(("filled", "used"), [([0], 0), ([1, 3], 1), ([3, 4], 3), ([0, 4], 0), ([2, 3], 2), ([4], 4)])
def test_the_nearest_frame_takes_the_place_of_a_blank_middle_one(filled: list[int], used: int, tmp_path: Path) -> None:
    frames = np.stack([RAMP + number if number in filled else BLANK for number in range(5)]).astype(np.uint16)
    picture = shown(make_dicom(tmp_path / "x.dcm", frames, **WINDOW), frames="middle")
    assert picture.frame == used
    np.testing.assert_allclose(picture.pixels, windowed(RAMP + used, 2048, 4096), atol=2e-6)
    assert picture.guesses == (() if used == 2 else ("nearest_frame",))


def test_few_frames_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.stack([BLANK if number == 15 else RAMP for number in range(30)])
    scan = readers.open_scan(
        make_dicom(tmp_path / "x.dcm", frames, **WINDOW).read_bytes(), Preprocessing(frames="middle")
    )
    decoded: list[int] = []
    decode = readers.dicom.decode
    monkeypatch.setattr(readers.dicom, "decode", lambda header, frame: decoded.append(frame) or decode(header, frame))
    assert scan.picture(scan.frames[0]).frame == 14
    assert decoded == [15, 14]


@pytest.mark.parametrize("frames", ["first", "2", "all"])
def test_other_selections_of_frames_take_no_substitute(frames: str, tmp_path: Path) -> None:
    pixels = np.stack([BLANK, BLANK, RAMP])
    with pytest.raises(Rejected, match=r"every pixel of frame \d has the same value"):
        shown(make_dicom(tmp_path / "x.dcm", pixels, **WINDOW), frames=frames)


def test_frames_that_are_all_blank_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"every pixel of frame \d has the same value"):
        shown(make_dicom(tmp_path / "x.dcm", np.stack([BLANK] * 3), **WINDOW), frames="middle")


def test_blank_middle_pages_and_slices(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    pages = [Image.fromarray(page) for page in (SMOOTH, SMOOTH // 2, np.zeros_like(SMOOTH), np.zeros_like(SMOOTH))]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    volume = np.zeros((6, 5, 5), np.int16)
    volume[..., 1] = np.arange(30).reshape(6, 5)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "x.nii")
    for name in ("x.tif", "x.nii"):
        picture = shown(tmp_path / name, frames="middle")
        assert picture.frame == 1
        assert "nearest_frame" in picture.guesses


def test_prepare_records_the_frame_and_counts_the_guesses(tmp_path: Path, cyclic: Any) -> None:
    frames = np.stack([RAMP.repeat(4, 0).repeat(4, 1), BLANK.repeat(4, 0).repeat(4, 1)])
    make_dicom(tmp_path / "in" / "x.dcm", frames, **WINDOW)
    make_dicom(tmp_path / "in" / "y.dcm", frames[0], WindowCenter=-9000, WindowWidth=10)
    ran: Ran = cyclic(
        "prepare", tmp_path / "in", "--out", tmp_path / "ds", "--size", 32, "--already-deidentified", "--workers", 1
    )
    assert ran.code == 0, ran.err
    assert f"Guessed for 1 image: {GUESSES['nearest_frame']}." in ran.out + ran.err
    assert f"Guessed for 1 image: {GUESSES['window']}." in ran.out + ran.err
    assert {row["frame"] for row in pq.read_table(tmp_path / "ds" / "index.parquet").to_pylist()} == {0}


def test_a_window_that_shows_nothing_hides_no_other_one(tmp_path: Path) -> None:
    both = {"WindowCenter": ["60000", "2000"], "WindowWidth": ["10", "4000"]}
    picture = shown(make_dicom(tmp_path / "x.dcm", RAMP, **both))
    np.testing.assert_allclose(picture.pixels, windowed(RAMP, 2000, 4000), atol=1e-3)
    assert picture.guesses == ("window",)


@pytest.mark.parametrize("slope", [b"0", b"NaN"])
def test_a_window_of_rescaled_values_is_not_applied_to_others(tmp_path: Path, slope: bytes) -> None:
    path = written(
        tmp_path / "x.dcm", RAMP, {"RescaleSlope": slope, "RescaleIntercept": b"0"}, WindowCenter=0.4, WindowWidth=0.8
    )
    picture = shown(path)
    low, high = np.percentile(RAMP, [0.5, 99.5])
    np.testing.assert_allclose(picture.pixels, np.clip((RAMP - low) / (high - low), 0, 1), atol=2e-3)
    assert {"modality", "window"} <= set(picture.guesses)
