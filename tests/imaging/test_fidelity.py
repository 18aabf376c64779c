"""Grey levels equal those of DCMTK's viewer, decoders agree, and reduced decoding stays within its error bounds."""

import io
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from benchmarks.fidelity import compare
from helpers.makers import make_dicom, smooth_image
from PIL import Image
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import InputError
from cyclic_cli.imaging import readers
from cyclic_cli.imaging.dicom import decoding, strips
from cyclic_cli.phantom.dataset import write_demo

needs_dcmtk = pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="dcmtk is not installed")

# ---------------------------------------------------------------------------------------------------- DCMTK's viewer

NOT_COMPARED = {
    "17166": "blank: every pixel has the same value",
    "17196": "blank: every pixel has the same value",
    "JPEG2000-embedded-sequence-delimiter.dcm": "broken on purpose: the stream ends within its header",
    "MR_truncated.dcm": "broken on purpose: the pixel data are cut short",
    "liver_1frame.dcm": "a segmentation, not an image",
    "liver_expb_1frame.dcm": "a segmentation, not an image",
    "badVR.dcm": "a radiotherapy dose, not an image",
    "rtdose.dcm": "a radiotherapy dose, not an image",
    "rtdose_1frame.dcm": "a radiotherapy dose, not an image",
    "rtdose_expb.dcm": "a radiotherapy dose, not an image",
    "rtdose_expb_1frame.dcm": "a radiotherapy dose, not an image",
    "rtdose_rle.dcm": "a radiotherapy dose, not an image",
    "rtdose_rle_1frame.dcm": "a radiotherapy dose, not an image",
}


def bundled_images() -> list[Path]:
    """The files with pixel data that are installed with pydicom. Nothing is downloaded."""
    found = []
    for path in sorted(Path(DATA_ROOT).rglob("*")):
        content = path.read_bytes() if path.is_file() and path.suffix != ".py" else b""
        if b"\xe0\x7f\x10\x00" in content or b"\x7f\xe0\x00\x10" in content:  # the tag of pixel data
            try:
                readers.open_scan(content, Preprocessing(), allow_burned_in=True)
            except InputError:
                if path.name not in NOT_COMPARED:
                    continue  # a header without an image
            found.append(path)
    return found


@needs_dcmtk
@pytest.mark.parametrize(
    "path", [path for path in bundled_images() if path.name not in NOT_COMPARED], ids=lambda p: p.name
)
def test_grey_levels_equal_those_of_dcmtk(path: Path) -> None:
    assert compare(path).largest <= 1.01


def test_files_excluded_from_comparison_exist() -> None:
    assert set(NOT_COMPARED) <= {path.name for path in bundled_images()}


@pytest.fixture(scope="module")
def synthetic_radiographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("radiographs") / "demo"
    write_demo(folder, count=12)
    return sorted(folder.rglob("*.dcm"))


@needs_dcmtk
def test_synthetic_radiographs_equal_those_of_dcmtk(synthetic_radiographs: list[Path]) -> None:
    kinds = {
        pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in synthetic_radiographs
    }
    assert len(kinds) >= 2
    for path in synthetic_radiographs:
        assert compare(path).largest <= 1.01, path


@needs_dcmtk
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE", None])
def test_polarity_equals_that_of_dcmtk(tmp_path: Path, photometric: str, shape: str | None) -> None:
    header: dict[str, Any] = {"PhotometricInterpretation": photometric, "WindowCenter": 128, "WindowWidth": 256}
    if shape:
        header["PresentationLUTShape"] = shape
    assert compare(make_dicom(tmp_path / "x.dcm", smooth_image(3), bits=8, **header)).largest <= 1.01


TABLES = {  # bits, number of entries, first mapped value, whether two entries share a word
    "16 bits": (16, 4096, 0, False),
    "16 bits of signed values": (16, 4096, -2048, False),
    "12 bits": (12, 4096, 0, False),
    "8 bits in words": (8, 256, 0, False),
    "8 bits in bytes": (8, 256, 0, True),
    "8 bits in an odd number of bytes": (8, 255, 0, True),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(("syntax", "vr"), [("", "OW"), (".1", "OW"), (".1", "US"), (".2", "OW"), (".2", "US")])
def test_lookup_tables_in_either_byte_order(tmp_path: Path, syntax: str, sequence: str, table: str, vr: str) -> None:
    bits, entries, first, packed = TABLES[table]
    order = ">" if syntax == ".2" else "<"
    curve = (np.linspace(0, 1, entries) ** 2 * (2**bits - 1)).round().astype("<u2")
    words = np.resize(curve.astype("u1"), entries + entries % 2).view("<u2") if packed else curve
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [entries, first, bits])
    item.add_new("ModalityLUTType", "LO", "US")
    item.add_new("LUTData", vr, words.astype(order + "u2").tobytes() if vr == "OW" else words.tolist())
    values = np.resize(np.arange(entries), (64, 64) if entries > 256 else (16, 16))
    stored = (values + first).astype(order + ("i2" if first < 0 else "u2" if entries > 256 else "u1"))
    header: dict[str, Any] = {sequence: Sequence([item])}
    if sequence == "ModalityLUTSequence":
        header |= {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    path = make_dicom(
        tmp_path / "x.dcm", stored, bits=16 if entries > 256 else 8, syntax="1.2.840.10008.1.2" + syntax, **header
    )
    shown = readers.read(path.read_bytes(), Preprocessing(exact=True)).pixels
    np.testing.assert_allclose(shown, curve[values] / (2**bits - 1), atol=2e-6)
    if shutil.which("dcm2pnm"):
        assert compare(path).largest <= 1.01


# ---------------------------------------------------------------------------------------------------------- decoders

PIXELS = (smooth_image(7, 60, 80).astype(np.uint16) * 16 + np.random.default_rng(0).integers(0, 16, (60, 80))).astype(
    "<u2"
)
COLOUR = np.stack([smooth_image(number, 60, 80) for number in (1, 2, 3)], axis=-1)


def compressed(
    path: Path, pixels: np.ndarray, stream: Callable[[bytes], bytes] | bytes, syntax: str, **header: Any
) -> Path:
    """Write a file whose fragments hold `stream`, or the result of `stream` for the uncompressed pixels."""
    make_dicom(path, pixels, **header)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([stream(dataset.PixelData) if callable(stream) else stream])
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(path)
    return path


def stored(path: Path, frame: int = 0) -> np.ndarray:
    return decoding.decode(pydicom.dcmread(path), frame)


def dcmtk(command: str, *words: str, source: Path) -> Path:
    if shutil.which(command) is None:
        pytest.skip("dcmtk is not installed")
    out = source.with_suffix(".out.dcm")
    subprocess.run([command, *words, str(source), str(out)], check=True, capture_output=True)
    return out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("dcmcjpeg", ["+e1"]),  # lossless, process 14
        ("dcmcjpeg", ["+el"]),  # lossless, selection value 1
        ("dcmcjpls", ["+el"]),
        ("dcmcrle", []),
        ("dcmconv", ["+ti"]),
        ("dcmconv", ["+tb"]),
        ("dcmconv", ["+td"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
@pytest.mark.parametrize("pixels", [PIXELS, PIXELS.astype("<i2") - 2000, COLOUR], ids=["12 bits", "signed", "colour"])
def test_lossless_compression_by_dcmtk_is_decoded_exactly(
    tmp_path: Path, command: str, words: list[str], pixels: np.ndarray
) -> None:
    bits = {"u": 12, "i": 16}[pixels.dtype.kind]
    out = dcmtk(command, *words, source=make_dicom(tmp_path / "x.dcm", pixels, bits=bits))
    np.testing.assert_array_equal(stored(out), pixels)


@pytest.mark.parametrize("words", [["+eb"], ["+ee"], ["+ee", "12"], ["near"]], ids=" ".join)
def test_lossy_compression_by_dcmtk_is_decoded_as_by_dcmtk(tmp_path: Path, words: list[str]) -> None:
    deep = words[-1] in ("12", "near")
    source = make_dicom(tmp_path / "x.dcm", PIXELS if deep else smooth_image(7), bits=12 if deep else 8)
    if words == ["near"]:
        packed, unpack = dcmtk("dcmcjpls", "+en", "+md", "3", source=source), "dcmdjpls"
    else:
        packed, unpack = dcmtk("dcmcjpeg", words[0], *(["+be"] if deep else []), source=source), "dcmdjpeg"
    expected = pydicom.dcmread(dcmtk(unpack, source=packed)).pixel_array
    assert np.abs(expected.astype(int) - pydicom.dcmread(source).pixel_array).max() > 0
    np.testing.assert_allclose(stored(packed), expected, atol=1 if words == ["+eb"] else 0)


@pytest.mark.parametrize("pixels", [PIXELS, COLOUR], ids=["12 bits", "colour"])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202"])
def test_htj2k_is_decoded_by_every_decoder(tmp_path: Path, pixels: np.ndarray, syntax: str) -> None:
    """The stream is encoded by OpenJPH, which is independent of all decoders under test."""
    imagecodecs = pytest.importorskip("imagecodecs")
    stream = imagecodecs.htj2k_encode(pixels, reversible=True)
    header = {"PhotometricInterpretation": "YBR_RCT"} if pixels.ndim == 3 else {"bits": 16}
    path = compressed(tmp_path / "x.dcm", pixels, bytes(stream), syntax, **header)
    np.testing.assert_array_equal(stored(path), pixels)
    if pixels.ndim == 2:
        return
    for plugin in get_decoder(syntax).available_plugins:
        np.testing.assert_array_equal(decoding._attempt(get_decoder(syntax), pydicom.dcmread(path), 0, plugin), pixels)


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


@pytest.mark.parametrize(
    ("syntax", "pack"),
    [("1.2.840.10008.1.2.8.1", deflated), ("1.2.840.10008.1.2.1.98", bytes)],
    ids=["deflated", "plain"],
)
@pytest.mark.parametrize("pixels", [PIXELS, COLOUR, PIXELS.astype("<i2") - 2000], ids=["12 bits", "colour", "signed"])
def test_uncompressed_pixels_in_fragments(
    tmp_path: Path, syntax: str, pack: Callable[[bytes], bytes], pixels: np.ndarray
) -> None:
    path = compressed(tmp_path / "x.dcm", pixels, pack, "1.2.840.10008.1.2.1.98", bits=16)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1.98", syntax.encode().ljust(22, b"\0")))
    np.testing.assert_array_equal(stored(path), pixels)


def test_decoders_of_the_same_transfer_syntax_agree() -> None:
    """Every installed decoder gives the same values for the files of pydicom as the preferred decoder."""
    compared = 0
    for path in bundled_images():
        header = pydicom.dcmread(path, force=True)
        syntax = header.file_meta.get("TransferSyntaxUID")
        if path.name in NOT_COMPARED or not syntax or not syntax.is_encapsulated:
            continue
        decoder, expected = get_decoder(syntax), decoding.decode(header, 0)
        for plugin in decoder.available_plugins:
            try:
                got = decoding._attempt(decoder, pydicom.dcmread(path), 0, plugin)
            except InputError:
                continue  # some decoders support fewer streams than others
            compared += 1
            lossy = syntax in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91")  # decoders round differently
            np.testing.assert_allclose(got, expected, atol=2 if lossy else 0, err_msg=f"{path.name} {plugin}")
    assert compared > 40


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("offsets", [True, False])
def test_frames_are_found_among_fragments(tmp_path: Path, fragments: int, offsets: bool) -> None:
    frames = np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]])
    path = make_dicom(tmp_path / "x.dcm", frames)
    dataset = pydicom.dcmread(path)
    streams = []
    for pixels in frames:
        packed = io.BytesIO()
        Image.fromarray(pixels << 4).save(packed, "JPEG2000", no_jp2=True)
        streams.append(packed.getvalue())
    dataset.BitsStored, dataset.HighBit = 16, 15
    dataset.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=offsets)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    dataset.save_as(path)
    for number, pixels in enumerate(frames):
        np.testing.assert_array_equal(stored(path, number), pixels << 4)


# --------------------------------------------------------------------------------------------------- reduced decoding


def radiograph(seed: int, height: int, width: int, noise: float = 0.01, sharp: bool = True) -> np.ndarray:
    """A noisy 12-bit image; if `sharp`, with a dark border and a bright mark that have sharp edges."""
    picture = smooth_image(seed, height, width) / 255 * 0.7 + 0.15
    if sharp:
        picture[: height // 12] = picture[:, -width // 15 :] = 0.04
        picture[height // 5 : height // 4, width // 5 : width // 3] = 0.93
    picture += np.random.default_rng(seed).normal(0, noise, picture.shape)
    return np.rint(np.clip(picture, 0, 1) * 4095).astype(np.uint16)


def both(content: bytes, **settings: Any) -> tuple[readers.Picture, np.ndarray]:
    """The reduced image, and the difference between its sample and that of the full image in grey levels of 255."""
    reduced = readers.read(content, Preprocessing(**settings))
    whole = readers.read(content, Preprocessing(**settings, exact=True))
    assert whole.scale == 1
    fitted = [readers.fit(picture, Preprocessing(**settings, bits=16))[0] / 257.0 for picture in (reduced, whole)]
    return reduced, np.abs(fitted[0] - fitted[1])


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=92)
    return out.getvalue()


def jpeg_2000(pixels: np.ndarray, **settings: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG2000", no_jp2=True, **settings)
    return out.getvalue()


WHOLE_RANGE = {"WindowCenter": 2048, "WindowWidth": 4096}
SIZES = [(1211, 1001), (1003, 1212), (800, 800)]
CODECS: dict[str, Callable[[Path, np.ndarray], Path | bytes]] = {
    "a JPEG file": lambda path, pixels: jpeg((pixels >> 4).astype(np.uint8)),
    "a JPEG file in colour": lambda path, pixels: jpeg(np.stack([(pixels >> 4).astype(np.uint8)] * 3, -1)),
    "JPEG in DICOM": lambda path, pixels: compressed(
        path, (pixels >> 4).astype(np.uint8), jpeg((pixels >> 4).astype(np.uint8)), "1.2.840.10008.1.2.4.50",
        WindowCenter=128, WindowWidth=256,
    ),
    "JPEG 2000": lambda path, pixels: compressed(
        path, pixels << 4, jpeg_2000(pixels << 4), "1.2.840.10008.1.2.4.90", bits=16,
        WindowCenter=32768, WindowWidth=65536,
    ),
    "JPEG 2000 of 8 bits": lambda path, pixels: compressed(
        path, (pixels >> 4).astype(np.uint8), jpeg_2000((pixels >> 4).astype(np.uint8)), "1.2.840.10008.1.2.4.90",
        WindowCenter=128, WindowWidth=256,
    ),
    "JPEG 2000 with loss": lambda path, pixels: compressed(
        path, pixels << 4, jpeg_2000(pixels << 4, irreversible=True, quality_layers=[8]), "1.2.840.10008.1.2.4.91",
        bits=16, WindowCenter=32768, WindowWidth=65536,
    ),
}  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_reduced_decoding_stays_within_its_error_bounds(codec: str, shape: tuple[int, int], tmp_path: Path) -> None:
    made = CODECS[codec](tmp_path / "x.dcm", radiograph(5, *shape))
    reduced, difference = both(made.read_bytes() if isinstance(made, Path) else made, size=112)
    assert reduced.scale >= 2
    assert (reduced.edge > 0) == (codec in ("JPEG 2000", "JPEG 2000 with loss"))  # not with 8 bits
    assert (reduced.facts.height, reduced.facts.width) == shape
    assert difference.mean() <= 0.5
    assert np.percentile(difference, 99.9) <= 4


@pytest.mark.parametrize("kind", ["12 bits", "signed", "htj2k"])
@pytest.mark.parametrize("sharp", [True, False], ids=["sharp", "soft"])
def test_reduced_jpeg_2000_of_other_depths_stays_within_its_error_bounds(
    kind: str, sharp: bool, tmp_path: Path
) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    pixels, header, syntax = radiograph(6, 1003, 899, sharp=sharp), dict(WHOLE_RANGE), "1.2.840.10008.1.2.4.90"
    if kind == "signed":
        pixels, header = pixels.astype(np.int16) - 2000, {"WindowCenter": 48, "WindowWidth": 4096}
    if kind == "htj2k":
        stream, syntax = imagecodecs.htj2k_encode(pixels, reversible=True), "1.2.840.10008.1.2.4.201"
    else:
        stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, bitspersample=12)
    bits = 16 if kind == "htj2k" else 12
    path = compressed(tmp_path / "x.dcm", pixels, bytes(stream), syntax, bits=bits, **header)
    np.testing.assert_array_equal(stored(path), pixels)
    reduced, difference = both(path.read_bytes(), size=112)
    assert (reduced.scale, reduced.edge) == ((2, 0.25) if sharp else (4, 0.375))
    assert difference.mean() <= 0.5
    assert np.percentile(difference, 99.9) <= 4


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"])
@pytest.mark.parametrize(
    "header", [WHOLE_RANGE, {"WindowCenter": 1200, "WindowWidth": 700}, {}], ids=["all", "clipped", "none"]
)
def test_averaging_before_the_resize_stays_within_the_error_bounds(
    syntax: str, header: dict[str, Any], tmp_path: Path
) -> None:
    path = make_dicom(tmp_path / "x.dcm", radiograph(8, 1403, 1212), **header)
    if syntax.endswith(".5"):
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(path)
    reduced, difference = both(path.read_bytes(), size=112)
    assert reduced.scale == 4
    assert difference.mean() <= 0.5
    assert np.percentile(difference, 99.9) <= 4


def test_reduced_image_is_not_moved_or_stretched(tmp_path: Path) -> None:
    """The centre of a soft spot moves by less than a fiftieth of a pixel, for every codec."""
    y, x = np.mgrid[:1211, :1001]
    spot = np.rint(4000 * np.exp(-((y - 777.3) ** 2 + (x - 333.8) ** 2) / 60**2)).astype(np.uint16)
    for codec, make in CODECS.items():
        made = make(tmp_path / "x.dcm", spot)
        content = made.read_bytes() if isinstance(made, Path) else made
        places = []
        for exact in (False, True):
            settings = Preprocessing(size=112, bits=16, exact=exact)
            fitted = readers.fit(readers.read(content, settings), settings)[0].astype(float)
            fitted[fitted < fitted.max() / 50] = 0
            places.append([(axis * fitted).sum() / fitted.sum() for axis in np.mgrid[:112, :112]])
        np.testing.assert_allclose(places[0], places[1], atol=0.02, err_msg=codec)


@pytest.mark.parametrize(
    "header",
    [
        {"WindowCenter": 1200, "WindowWidth": 700},  # clips strongly
        {**WHOLE_RANGE, "PixelPaddingValue": 0},
        {**WHOLE_RANGE, "VOILUTFunction": "SIGMOID"},
        {},  # percentiles need the full image
    ],
    ids=["clipped", "padding", "sigmoid", "no window"],
)
def test_images_that_need_full_resolution_are_decoded_in_full(header: dict[str, Any], tmp_path: Path) -> None:
    pixels = radiograph(9, 1003, 899)
    header = {name: value * 16 if name.startswith("Window") else value for name, value in header.items()}
    path = compressed(
        tmp_path / "x.dcm", pixels << 4, jpeg_2000(pixels << 4), "1.2.840.10008.1.2.4.90", bits=16, **header
    )
    reduced, difference = both(path.read_bytes(), size=112)
    assert reduced.edge == 0
    assert difference.mean() <= 0.5
    assert np.percentile(difference, 99.9) <= 4


@pytest.mark.parametrize("share", [0.002, 0.005, 0.3])
@pytest.mark.parametrize("count", [2**18 + 1, 10**6])
def test_quantiles_of_many_values_equal_those_of_numpy(share: float, count: int) -> None:
    generator = np.random.default_rng(count)
    values = generator.normal(2000, 300, count).clip(0, 4095).astype(np.uint16)
    values[generator.random(count) < share] = 0
    values[generator.random(count) < share] = 4095
    for ordered in (values, np.sort(values), values.astype(np.float32)):
        assert strips.quantiles(ordered, 0.5, 99.5) == pytest.approx(np.percentile(ordered, (0.5, 99.5)))
