"""Colour, palettes, unusual bit depths and float pixels of DICOM files become the right grey levels."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import RAMP, RAMP_IN_WINDOW, WINDOW, read
from helpers.makers import make_dicom
from PIL import Image

COLOUR = np.stack([RAMP // 16, RAMP[::-1] // 16, RAMP.T // 16], axis=-1).astype(np.uint8)
GREY_OF_COLOUR = COLOUR @ np.array([0.299, 0.587, 0.114]) / 255


def ycbcr(colour: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(colour).convert("YCbCr"))


def test_colour_stored_by_plane(tmp_path: Path) -> None:
    planes = make_dicom(
        tmp_path / "x.dcm", COLOUR, bits=8, PlanarConfiguration=1, PixelData=np.moveaxis(COLOUR, -1, 0).tobytes()
    )
    np.testing.assert_allclose(read(planes)[0], GREY_OF_COLOUR, atol=1e-6)


def test_ybr_becomes_luminance(tmp_path: Path) -> None:
    smooth = np.repeat(COLOUR, 2, axis=1)  # so that neighbours share their chroma
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


def test_segmented_palette(tmp_path: Path) -> None:
    """Two segments are used: sixteen discrete entries, then a linear ramp to the maximum (PS3.3 C.7.9.2)."""
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
    np.testing.assert_allclose(read(path)[0], RAMP_IN_WINDOW, atol=2e-6)


@pytest.mark.parametrize("kind", ["Float", "DoubleFloat"])
@pytest.mark.parametrize(
    ("value", "limit", "padded"), [(-1e6, None, -1e6), (-1e6, 0, -3), (0, -1e6, -3), (np.nan, None, np.nan)]
)  # fmt: skip
def test_padding_of_floats_is_black(
    tmp_path: Path, kind: str, value: float, limit: float | None, padded: float
) -> None:
    """This holds with a window and with percentiles, both at full resolution and averaged."""
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


def test_attributes_missing_from_old_files_get_their_usual_value(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **WINDOW)
    header = pydicom.dcmread(path)
    del header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation, header.HighBit
    header.save_as(path)
    np.testing.assert_allclose(read(path)[0], RAMP_IN_WINDOW, atol=2e-6)
