"""DICOM files that cannot be used are refused with a reason, and without output of the decoders."""

import io
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import RAMP, RAMP_IN_WINDOW, WINDOW, bundled, read
from helpers.makers import make_dicom
from PIL import Image
from pydicom.encaps import encapsulate

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import InputError, Rejected, Skipped
from cyclic_cli.imaging.dicom import reading as dicom


def refusal(path: Path, **settings: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read(path, **settings)
    return caught.value


def as_stream(path: Path, stream: bytes, syntax: str, **header: Any) -> Path:
    """Write a file of `RAMP` whose pixel data are one fragment that holds `stream`."""
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
def test_absurd_headers_are_refused_early(tmp_path: Path, header: dict[str, Any], reason: str, frames: str) -> None:
    path = make_dicom(tmp_path / "x.dcm", RAMP, **header)
    tracemalloc.start()
    assert refusal(path, frames=frames).reason == reason
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10 * 2**20


@pytest.mark.parametrize("frames", [9999, 2147483647])
def test_more_frames_than_the_fragments_can_hold_are_refused(tmp_path: Path, frames: int) -> None:
    path = as_stream(
        tmp_path / "x.dcm", b"\xff\x4f\xff\x51" + bytes(100), "1.2.840.10008.1.2.4.90", NumberOfFrames=frames
    )
    assert refusal(path, frames="all").reason == "broken_pixels"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"])
def test_stream_that_differs_in_size_is_refused(tmp_path: Path, syntax: str) -> None:
    out = io.BytesIO()
    picture = Image.fromarray((RAMP // 16).astype(np.uint8)).resize((300, 200))
    if syntax.endswith("80"):
        stream = b"\xff\xd8\xff\xf7\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00" + bytes(50)
    else:
        picture.save(out, "JPEG" if syntax.endswith("50") else "JPEG2000", no_jp2=True)
        stream = out.getvalue()
    error = refusal(as_stream(tmp_path / "x.dcm", stream, syntax, bits=8))
    assert (error.reason, "differs in size" in error.message) == ("broken_pixels", True)


CUT = ["JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm", "SC_rgb_jls_lossy_line.dcm", "JPGExtended.dcm",
       "CT_small.dcm", "image_dfl.dcm"]  # fmt: skip


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("name", CUT)
def test_truncated_files_are_refused(name: str, share: float, tmp_path: Path) -> None:
    content = bundled(name).read_bytes()
    if name == "CT_small.dcm":  # drop the padding after the pixel data
        content = content[: content.index(b"\xe0\x7f\x10\x00") + 12 + 2 * 128 * 128]
    (tmp_path / "x.dcm").write_bytes(content[: int(len(content) * share)])
    assert refusal(tmp_path / "x.dcm").reason in ("broken_pixels", "no_pixels", "broken_header")


def test_error_says_in_words_that_no_decoder_reads_a_stream(tmp_path: Path) -> None:
    error = refusal(as_stream(tmp_path / "x.dcm", b"\xff\x4f\xff\x51 Miller", "1.2.840.10008.1.2.4.90"))
    assert error.reason == "broken_pixels"
    assert error.message == "the compressed pixel data are damaged: no decoder can decode them"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.113619.5.2", "1.2.3"])
def test_transfer_syntax_without_decoder_is_refused(tmp_path: Path, syntax: str) -> None:
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
    file = dicom.DicomFile(path.read_bytes(), Preprocessing(), allow_burned_in=True)
    np.testing.assert_allclose(file.shown(0).pixels, RAMP_IN_WINDOW, atol=2e-6)


def test_skipped_structured_report_has_text_and_identities() -> None:
    with pytest.raises(Skipped) as caught:
        read(bundled("test-SR.dcm"))
    assert caught.value.text
    assert caught.value.identities.study  # type: ignore[attr-defined]


def test_errors_carry_the_identities_in_the_header(tmp_path: Path) -> None:
    path = as_stream(tmp_path / "x.dcm", b"nothing", "1.2.840.10008.1.2.4.90", PatientID="7", StudyInstanceUID="1.2")
    identities = refusal(path).identities
    assert identities.patient == ("7",)  # type: ignore[attr-defined]
    assert identities.study == "1.2"  # type: ignore[attr-defined]


def test_decoder_warnings_are_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("JPEG2000-embedded-sequence-delimiter.dcm", "badVR.dcm", "MR_truncated.dcm", "JPGExtended.dcm"):
        with suppress(InputError):
            read(bundled(name))
    assert capfd.readouterr() == ("", "")
