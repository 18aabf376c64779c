"""DICOM files whose encoding, fragments or streams are not what the header says.

References: the pixels that were written (a closed form), DCMTK where a codec is not exact, and pydicom's writer.
"""

import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from helpers.makers import make_dicom
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom import decoding
from cyclic_cli.imaging.dicom.decoding import decode
from cyclic_cli.imaging.dicom.parsing import parse
from cyclic_cli.imaging.dicom.reading import DicomFile, Shown

PIXELS = (np.add.outer(np.arange(32) * 3, np.arange(40) * 2) + 30).astype(np.uint8)
FRAMES = [PIXELS, PIXELS + 20, PIXELS + 40]
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **({"quality": 95} | options))
    return stream.getvalue()


def item(content: bytes) -> bytes:
    content += b"\0" * (len(content) % 2)
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content


def table(*offsets: int) -> bytes:
    return item(struct.pack(f"<{len(offsets)}I", *offsets))


def stated(content: bytes, syntax: str) -> bytes:
    """The file with another transfer syntax in its file meta information, and nothing else changed."""
    at = content.index(b"\x02\x00\x10\x00UI")
    (length,) = struct.unpack_from("<H", content, at + 6)
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    group = struct.pack("<I", struct.unpack_from("<I", content, 140)[0] - length + len(new))
    return (
        content[:140] + group + content[144 : at + 6] + struct.pack("<H", len(new)) + new + content[at + 8 + length :]
    )


def with_items(
    folder: Path, items: bytes, syntax: str = JPEGBaseline8Bit, pixels: Any = PIXELS, **header: Any
) -> bytes:
    path = make_dicom(folder / "x.dcm", pixels, **{**WINDOW, **header})
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = items
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.save_as(path)
    return path.read_bytes()


def show(content: bytes, frames: str = "middle") -> Shown:
    file = DicomFile(content, Preprocessing(exact=True, frames=frames))
    return file.shown(file.frames[0])


def assert_shows(content: bytes, pixels: np.ndarray, within: float = 1.5) -> None:
    np.testing.assert_allclose(255 * show(content).pixels, pixels, atol=within)


@pytest.mark.parametrize("said", SYNTAXES)
@pytest.mark.parametrize("written", SYNTAXES)
@pytest.mark.parametrize("bits", [8, 16])
def test_the_dataset_tells_its_encoding(tmp_path: Path, written: str, said: str, bits: int) -> None:
    pixels = PIXELS.astype(np.uint8 if bits == 8 else np.uint16)
    data = dcmread(make_dicom(tmp_path / "x.dcm", pixels, bits=bits, **WINDOW))
    data.add_new(0x00081140, "SQ", [dcmread(make_dicom(tmp_path / "y.dcm", PIXELS))[:0x00100000]])
    fresh = Dataset()
    fresh.update(data)
    fresh.file_meta = data.file_meta
    fresh.file_meta.TransferSyntaxUID = written
    big = written == ExplicitVRBigEndian
    fresh.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    stream = io.BytesIO()
    fresh.save_as(
        stream, enforce_file_format=True, implicit_vr=written == ImplicitVRLittleEndian, little_endian=not big
    )
    assert_shows(stated(stream.getvalue(), said), PIXELS, 1e-3)


@pytest.mark.parametrize("said", ["", RLELossless, JPEGBaseline8Bit])
def test_plain_pixels_of_the_right_length_are_plain(tmp_path: Path, said: str) -> None:
    content = make_dicom(tmp_path / "x.dcm", PIXELS, **WINDOW).read_bytes()
    assert_shows(stated(content, said), PIXELS, 1e-3)


@pytest.mark.parametrize("said", ["", ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_a_stream_tells_its_transfer_syntax(tmp_path: Path, said: str) -> None:
    assert_shows(stated(with_items(tmp_path, encapsulate([jpeg(PIXELS)])), said), PIXELS)


def test_file_meta_information_given_twice(tmp_path: Path) -> None:
    content = make_dicom(tmp_path / "x.dcm", PIXELS, **WINDOW).read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    assert_shows(content[:start] + content, PIXELS, 1e-3)
    assert_shows(content[:start] + content[132:], PIXELS, 1e-3)


STREAMS = [jpeg(frame) for frame in FRAMES]
HALVES = [part for stream in STREAMS for part in (stream[:300], stream[300:])]
ITEMS = b"".join(map(item, STREAMS))


@pytest.mark.parametrize(
    ("items", "count", "shown"),
    [
        (table() + b"".join(map(item, HALVES)), 3, 1),
        (table(0, 0, 0) + ITEMS, 3, 1),
        (table(8, 700, 1400) + ITEMS, 3, 1),
        (table(0) + ITEMS, 3, 1),
        (table(0, 308, 616) + b"".join(map(item, HALVES)), 3, 1),
        (ITEMS, 3, 1),
        (table() + ITEMS + item(b""), 3, 1),
        (table() + ITEMS, 1, 0),
        (table() + ITEMS, 5, 1),
        (table() + b"".join(item(stream[:-2]) for stream in STREAMS), 3, 1),
    ],
    ids=str,
)
def test_frames_are_found_by_their_streams(tmp_path: Path, items: bytes, count: int, shown: int) -> None:
    content = with_items(tmp_path, items, NumberOfFrames=count)
    assert_shows(content, FRAMES[shown])
    assert show(content).guesses == (("frame_count",) if count == 5 else ())


def test_a_wrong_extended_offset_table(tmp_path: Path) -> None:
    lengths = struct.pack("<3Q", 1, 1, 1)
    content = with_items(
        tmp_path,
        table() + ITEMS,
        NumberOfFrames=3,
        ExtendedOffsetTable=struct.pack("<3Q", 5, 6, 7),
        ExtendedOffsetTableLengths=lengths,
    )
    assert_shows(content, FRAMES[1])


def test_files_that_end_within_the_compressed_pixels(tmp_path: Path) -> None:
    one, three = (
        with_items(tmp_path, table() + items, NumberOfFrames=count)
        for items, count in ((item(STREAMS[0]), 1), (ITEMS, 3))
    )
    assert_shows(one[:-8], FRAMES[0])  # without the delimiter
    assert show(one[:-8]).guesses == ()
    assert show(one[:-12]).guesses == ("cut_stream",)
    assert show(three[:-200]).guesses == ("frame_count",)
    assert_shows(three[:-200], FRAMES[1])
    with pytest.raises(Rejected, match="cut short"):
        show(one[:-300])


def test_native_frames_that_are_whole_are_used(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "x.dcm", PIXELS, **WINDOW)
    data = dcmread(path)
    data.PixelData, data.NumberOfFrames = np.stack(FRAMES).tobytes(), 3
    data.save_as(path)
    content = path.read_bytes()
    assert show(content[:-40]).guesses == ("frame_count",)
    assert_shows(content[:-40], FRAMES[1], 1e-3)
    with pytest.raises(Rejected, match="cut short"):
        show(content[: -2 * PIXELS.size - 40])
    with pytest.raises(Rejected, match="cut short before them"):
        show(content[: content.index(b"\xe0\x7f\x10\x00")])


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"])
def test_progressive_jpeg(tmp_path: Path, syntax: str) -> None:
    stream = jpeg(PIXELS, progressive=True)
    assert_shows(with_items(tmp_path, encapsulate([stream]), syntax), np.asarray(Image.open(io.BytesIO(stream))), 1)


def test_a_stream_of_8_bits_in_a_container_of_16(tmp_path: Path) -> None:
    content = with_items(tmp_path, encapsulate([jpeg(PIXELS)]), pixels=PIXELS.astype(np.uint16), bits=12)
    assert_shows(content, PIXELS)
    assert show(content).guesses == ("stored_bits",)


COLOUR = np.stack([PIXELS, 250 - PIXELS, np.full_like(PIXELS, 90)], axis=-1)


def dcmtk_colour(folder: Path, content: bytes) -> np.ndarray:
    (folder / "c.dcm").write_bytes(content)
    subprocess.run(["dcmj2pnm", "--conv-guess", "+op", folder / "c.dcm", folder / "c.ppm"], check=True)
    return np.asarray(Image.open(folder / "c.ppm"))


@pytest.mark.skipif(shutil.which("dcmj2pnm") is None, reason="needs DCMTK")
@pytest.mark.parametrize("said", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_a_jpeg_tells_its_colour_space(tmp_path: Path, said: str, subsampling: str) -> None:
    content = with_items(
        tmp_path, encapsulate([jpeg(COLOUR, subsampling=subsampling)]), pixels=COLOUR, PhotometricInterpretation=said
    )
    right = with_items(
        tmp_path,
        encapsulate([jpeg(COLOUR, subsampling=subsampling)]),
        pixels=COLOUR,
        PhotometricInterpretation="YBR_FULL_422",
    )
    np.testing.assert_allclose(decode(parse(content)[0], 0), dcmtk_colour(tmp_path, right), atol=3)


@pytest.mark.parametrize("transform", [0, 1])
@pytest.mark.parametrize("said", ["RGB", "YBR_FULL_422"])
def test_the_marker_of_adobe_tells_the_colour_space(tmp_path: Path, said: str, transform: int) -> None:
    stored = COLOUR if transform == 0 else np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    stream = imagecodecs.jpeg8_encode(stored, level=98, colorspace="RGB", outcolorspace="RGB", subsampling="444")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    bare = stream[:2] + adobe + without_segments(stream).replace(b"\x03R", b"\x03\x01", 1)
    bare = bare.replace(b"G\x11", b"\x02\x11", 1).replace(b"B\x11", b"\x03\x11", 1)
    bare = bare.replace(b"\xff\xda\x00\x0c\x03R\x00G\x00B\x00", b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00", 1)
    content = with_items(tmp_path, encapsulate([bare]), pixels=COLOUR, PhotometricInterpretation=said)
    np.testing.assert_allclose(decode(parse(content)[0], 0), COLOUR, atol=6)


def without_segments(stream: bytes) -> bytes:
    """The stream behind its first marker, without APP0 and APP14."""
    at = 2
    while stream[at + 1] in (0xE0, 0xEE):
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return stream[at:]


@pytest.mark.parametrize("said", ["YBR_FULL", "YBR_RCT", "RGB"])
def test_a_colour_transform_within_jpeg_2000(tmp_path: Path, said: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(COLOUR).save(stream, "JPEG2000", no_jp2=True, irreversible=False, mct=1)
    content = with_items(
        tmp_path, encapsulate([stream.getvalue()]), JPEG2000Lossless, pixels=COLOUR, PhotometricInterpretation=said
    )
    np.testing.assert_array_equal(decode(parse(content)[0], 0), COLOUR)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.6, 0.9])
def test_a_file_cut_within_an_element_of_its_header_says_so(tmp_path: Path, place: float) -> None:
    header = {"StudyDescription": "d" * 4000, "ImageComments": "c" * 4000}
    content = make_dicom(tmp_path / "x.dcm", PIXELS, **WINDOW, **header).read_bytes()
    end = content.index(b"\xe0\x7f\x10\x00")
    for begin in (content.index(b"d" * 4000), content.index(b"c" * 4000)):
        with pytest.raises(Rejected, match="ends within its header"):
            DicomFile(content[: begin + int(4000 * place)], Preprocessing())
    with pytest.raises(Rejected, match="cut short before them"):
        DicomFile(content[:end], Preprocessing())
    with pytest.raises(Rejected, match="ends where they begin"):
        DicomFile(content[: end + 12], Preprocessing())


def test_no_text_of_the_header_is_in_a_rejection(tmp_path: Path) -> None:
    for name in ("Okonkwo^Ada 1950", "1.2.3.Okonkwo"):
        content = with_items(tmp_path, item(b"") + item(b"\1" * 40) + item(b"\2" * 40))
        with pytest.raises(Rejected) as said:
            show(stated(content, name))
        assert "Okonkwo" not in said.value.message


def test_a_jpeg_2000_file_states_its_colour_transform_too(tmp_path: Path) -> None:
    colour = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(colour).save(stream, "JPEG2000", irreversible=False, mct=1)  # a JP2 file, not a codestream
    assert stream.getvalue()[4:8] == b"jP  "
    header = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 0}
    content = with_items(tmp_path, item(b"") + item(stream.getvalue()), JPEG2000Lossless, colour, **header)
    assert_shows(content, colour @ np.array([0.299, 0.587, 0.114]), 1.0)


def test_a_missing_pad_byte_loses_no_frame(tmp_path: Path) -> None:
    streams = [jpeg(frame) for frame in FRAMES]
    last = streams[-1] + b"\0" * (1 - len(streams[-1]) % 2)  # of odd length
    items = table() + b"".join(map(item, streams[:-1])) + item(last)
    content = with_items(tmp_path, items, NumberOfFrames=3)
    content = content[: content.index(last) + len(last)]  # without pad byte and delimiter
    file = DicomFile(content, Preprocessing(exact=True, frames="all"))
    assert file.frames == [0, 1, 2]
    for frame, pixels in enumerate(FRAMES):
        np.testing.assert_allclose(255 * file.shown(frame).pixels, pixels, atol=3)


def test_fragments_of_many_frames_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    found = decoding.frames_of
    monkeypatch.setattr(decoding, "frames_of", lambda *words: calls.append(1) or found(*words))
    items = table() + b"".join(item(jpeg(frame)) for frame in FRAMES)
    file = DicomFile(with_items(tmp_path, items, NumberOfFrames=3), Preprocessing(frames="all"))
    for frame in file.frames:
        file.shown(frame)
    assert len(calls) == 1


def test_plain_pixels_in_one_fragment_under_a_compressed_syntax(tmp_path: Path) -> None:
    assert_shows(with_items(tmp_path, item(b"") + item(PIXELS.tobytes())), PIXELS, 1e-3)


@pytest.mark.parametrize("said", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("written", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_dataset_is_deflated_or_not_whatever_is_said(tmp_path: Path, written: str, said: str) -> None:
    data = dcmread(make_dicom(tmp_path / "x.dcm", PIXELS, **WINDOW))
    data.file_meta.TransferSyntaxUID = written
    data.save_as(tmp_path / "y.dcm")
    assert_shows(stated((tmp_path / "y.dcm").read_bytes(), said), PIXELS, 1e-3)


def test_a_window_in_the_unit_of_the_container_does_not_blacken_a_stream_of_8_bits(tmp_path: Path) -> None:
    deep = PIXELS.astype(np.uint16)
    for bits in (12, 16):
        wide = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
        content = with_items(tmp_path, table() + item(jpeg(PIXELS)), pixels=deep, bits=bits, **wide)
        picture = show(content)
        assert set(picture.guesses) == {"stored_bits", "window"}
        assert picture.pixels.max() - picture.pixels.min() > 0.9
