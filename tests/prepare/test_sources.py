"""Tests of zip archives and DICOMDIRs as sources; the tests of `cyclic prepare` cover the rest of `sources.py`."""

import json
import os
import random
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
from helpers.makers import Ran, contents, make_dicom, make_png, smooth_image
from helpers.prepared import PUBLIC, index
from pydicom.data import get_testdata_file

from cyclic_cli.errors import Rejected
from cyclic_cli.prepare.sources import walk

Cyclic = Callable[..., Ran]


def zipped(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(folder.rglob("*")):
            target.write(path, path.relative_to(folder).as_posix())
    return archive


def test_a_zipped_study_gives_the_same_samples_as_its_folder(cyclic: Cyclic) -> None:
    for number in range(3):
        make_dicom(Path(f"study/s{number}/1.2.{number}"), smooth_image(number), bits=8, PatientID=f"P{number}")
        Path(f"study/s{number}/report.txt").write_text(f"Report {number}.")
    make_png(Path("study/.hidden/x.png"), smooth_image(7))
    Path("export").mkdir()
    zipped(Path("export/study.zip"), Path("study"))
    before = contents(Path("export"))
    summary = cyclic("prepare", "export", "--out", "zipped", PUBLIC, "--json").json
    cyclic("prepare", "study", "--out", "plain", PUBLIC)
    assert (summary["inputs"], summary["used"], summary["paired"], summary["report_files"]) == (3, 3, 3, 3)
    assert contents(Path("export")) == before
    images = "images-00000.safetensors"
    assert Path("zipped", images).read_bytes() == Path("plain", images).read_bytes()
    keys = ("sample", "patient", "study", "split", "text", "content")
    rows = [[{key: row[key] for key in keys} for row in index(Path(name))] for name in ("zipped", "plain")]
    assert rows[0] == rows[1]
    assert {row["source"] for row in index(Path("zipped"))} == {f"study.zip/s{n}/1.2.{n}" for n in range(3)}


def test_damaged_encrypted_and_foreign_archives_are_rejected_by_name(cyclic: Cyclic) -> None:
    make_png(Path("files/good.png"), smooth_image(1))
    make_png(Path("inner/a.png"), smooth_image(2))
    make_png(Path("inner/b.png"), smooth_image(3))
    archive = zipped(Path("files/bad.zip"), Path("inner"))
    content = bytearray(archive.read_bytes())
    at = content.index(b"a.png") + 60
    content[at : at + 20] = os.urandom(20)
    archive.write_bytes(content)
    Path("files/cut.zip").write_bytes(bytes(content[:100]))
    at = content.rindex(b"PK\x01\x02")  # damages the central directory and leaves the end record intact
    Path("files/no_directory.zip").write_bytes(bytes(content[:at] + b"XX" + content[at + 2 :]))
    flagged = bytearray(zipped(Path("files/locked.zip"), Path("inner")).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # sets the flag for encryption
        at = flagged.find(mark)
        while at >= 0:
            flagged[at + offset] |= 1
            at = flagged.find(mark, at + 4)
    Path("files/locked.zip").write_bytes(flagged)
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["inputs"], summary["used"], summary["rejected"]) == (7, 2, 5)
    lines = [json.loads(line) for line in Path("ds/rejected.jsonl").read_text().splitlines()]
    assert {line["source"]: line["reason"] for line in lines} == {
        "bad.zip/a.png": "broken_archive", "cut.zip": "broken_archive",
        "no_directory.zip": "broken_archive",
        "locked.zip/a.png": "unreadable", "locked.zip/b.png": "unreadable",
    }  # fmt: skip


def test_all_files_of_one_name_in_an_archive_are_read(cyclic: Cyclic) -> None:
    with zipfile.ZipFile("twice.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(3):
            archive.write(make_png(Path(f"{number}.png"), smooth_image(number)), "a.png")
    summary = cyclic("prepare", "twice.zip", "--out", "ds", PUBLIC, "--json").json
    assert (summary["inputs"], summary["used"]) == (3, 3)
    assert {row["source"] for row in index(Path("ds"))} == {f"twice.zip/a.png{n}" for n in ("", " (2)", " (3)")}


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_archive_does_not_end_the_search(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[seed % 4]
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        for number in range(3):
            archive.write(make_png(tmp_path / f"{number}.png", smooth_image(number, 8, 8)), f"{number}.png")
    content = bytearray((tmp_path / "x.zip").read_bytes())
    begin = 0 if seed % 3 else content.index(b"PK\x01\x02")
    for _ in range(generator.randrange(1, 6)):
        content[generator.randrange(begin, len(content))] = generator.randrange(256)
    (tmp_path / "x.zip").write_bytes(content)
    for item in walk([tmp_path / "x.zip"], tmp_path / "out"):
        item.ends()
        with suppress(Rejected):
            item.read()


def test_a_file_of_an_archive_may_have_any_path(cyclic: Cyclic) -> None:
    """Nothing is unpacked, so a path with `..` cannot lead out of the archive."""
    make_png(Path("a.png"), smooth_image(1))
    Path("files").mkdir()
    with zipfile.ZipFile("files/odd.zip", "w") as target:
        target.write("a.png", "../../a.png")
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["inputs"], summary["used"]) == (1, 1)


def test_a_named_dicomdir_is_replaced_by_its_files(cyclic: Cyclic) -> None:
    directory = Path(get_testdata_file("DICOMDIR"))
    header = pydicom.dcmread(directory)
    listed = [record for record in header.DirectoryRecordSequence if "ReferencedFileID" in record]
    summary = cyclic("prepare", directory, "--out", "ds", PUBLIC, "--json").json
    assert summary["inputs"] == len(listed) > 20
    assert summary["used"] + summary["duplicates"] > 20
    assert summary["patients"] == len({r.PatientID for r in header.DirectoryRecordSequence if "PatientID" in r})


def test_a_dicomdir_cannot_refer_to_files_outside_its_folder(cyclic: Cyclic) -> None:
    make_dicom(Path("secret.dcm"), smooth_image(1), bits=8)
    make_dicom(Path("cd/image"), smooth_image(2), bits=8)
    header = pydicom.dcmread(get_testdata_file("DICOMDIR"))
    records = [record for record in header.DirectoryRecordSequence if "ReferencedFileID" in record][:3]
    for record, name in zip(records, (["..", "secret.dcm"], "/etc/passwd", ["IMAGE"]), strict=True):
        record.ReferencedFileID = name
    header.DirectoryRecordSequence = records
    header.save_as("cd/DICOMDIR")
    summary = cyclic("prepare", "cd/DICOMDIR", "--out", "ds", PUBLIC, "--json").json
    assert (summary["inputs"], summary["used"]) == (1, 1)


def test_a_damaged_dicomdir_is_rejected_alone(cyclic: Cyclic) -> None:
    make_png(Path("files/good.png"), smooth_image(1))
    Path("cd").mkdir()
    Path("cd/DICOMDIR").write_bytes(b"not a DICOMDIR")
    summary = cyclic("prepare", "files", "cd/DICOMDIR", "--out", "ds", PUBLIC, "--json").json
    assert (summary["inputs"], summary["used"], summary["rejected_by_reason"]) == (2, 1, {"unknown_format": 1})
    ran = cyclic("prepare", "cd/DICOMDIR", "--out", "other", PUBLIC)
    assert ran.code == 1
    assert "None of 1 inputs could be used" in ran.err


def test_a_file_name_that_is_too_long_for_the_file_system_is_rejected(cyclic: Cyclic) -> None:
    make_dicom(Path("cd/image"), smooth_image(2), bits=8)
    header = pydicom.dcmread(get_testdata_file("DICOMDIR"))
    records = [record for record in header.DirectoryRecordSequence if "ReferencedFileID" in record][:2]
    for record, name in zip(records, ("A" * 300, "IMAGE"), strict=True):
        record.ReferencedFileID = name
    header.DirectoryRecordSequence = records
    header.save_as("cd/DICOMDIR")
    summary = cyclic("prepare", "cd/DICOMDIR", "--out", "ds", PUBLIC, "--json").json
    assert (summary["inputs"], summary["used"], summary["rejected"]) == (2, 1, 1)
