"""Zip archives and DICOMDIRs, read where they lie; the rest of `sources.py` is tested by `prepare`."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pydicom
from conftest import Ran, contents, make_dicom, make_png, smooth_image
from pydicom.data import get_testdata_file
from test_prepare import PUBLIC, index

Cyclic = Callable[..., Ran]


def zipped(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(folder.rglob("*")):
            target.write(path, path.relative_to(folder).as_posix())
    return archive


def test_a_zipped_study_gives_what_its_folder_gives(cyclic: Cyclic) -> None:
    for number in range(3):
        make_dicom(Path(f"study/s{number}/1.2.{number}"), smooth_image(number), bits=8, PatientID=f"P{number}")
        Path(f"study/s{number}/report.txt").write_text(f"Words of {number}.")
    make_png(Path("study/.hidden/x.png"), smooth_image(7))
    Path("export").mkdir()
    zipped(Path("export/study.zip"), Path("study"))
    before = contents(Path("export"))
    said = cyclic("prepare", "export", "--out", "zipped", PUBLIC, "--json").json
    cyclic("prepare", "study", "--out", "plain", PUBLIC)
    assert (said["inputs"], said["used"], said["paired"], said["report_files"]) == (3, 3, 3, 3)
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
    flagged = bytearray(zipped(Path("files/locked.zip"), Path("inner")).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag that says encrypted
        at = flagged.find(mark)
        while at >= 0:
            flagged[at + offset] |= 1
            at = flagged.find(mark, at + 4)
    Path("files/locked.zip").write_bytes(flagged)
    said = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (said["inputs"], said["used"], said["rejected"]) == (6, 2, 4)
    lines = [json.loads(line) for line in Path("ds/rejected.jsonl").read_text().splitlines()]
    assert {line["source"]: line["reason"] for line in lines} == {
        "bad.zip/a.png": "broken_archive", "cut.zip": "unknown_format",
        "locked.zip/a.png": "unreadable", "locked.zip/b.png": "unreadable",
    }  # fmt: skip


def test_a_dicomdir_that_is_named_stands_for_its_files(cyclic: Cyclic) -> None:
    directory = Path(get_testdata_file("DICOMDIR"))
    header = pydicom.dcmread(directory)
    listed = [record for record in header.DirectoryRecordSequence if "ReferencedFileID" in record]
    said = cyclic("prepare", directory, "--out", "ds", PUBLIC, "--json").json
    assert said["inputs"] == len(listed) > 20
    assert said["used"] + said["duplicates"] > 20
    assert said["patients"] == len({r.PatientID for r in header.DirectoryRecordSequence if "PatientID" in r})


def test_a_dicomdir_leads_nowhere_else(cyclic: Cyclic) -> None:
    make_dicom(Path("secret.dcm"), smooth_image(1), bits=8)
    make_dicom(Path("cd/image"), smooth_image(2), bits=8)
    header = pydicom.dcmread(get_testdata_file("DICOMDIR"))
    records = [record for record in header.DirectoryRecordSequence if "ReferencedFileID" in record][:3]
    for record, name in zip(records, (["..", "secret.dcm"], "/etc/passwd", ["IMAGE"]), strict=True):
        record.ReferencedFileID = name
    header.DirectoryRecordSequence = records
    header.save_as("cd/DICOMDIR")
    said = cyclic("prepare", "cd/DICOMDIR", "--out", "ds", PUBLIC, "--json").json
    assert (said["inputs"], said["used"]) == (1, 1)
    Path("cd/DICOMDIR").write_bytes(b"nothing of the kind")
    ran = cyclic("prepare", "cd/DICOMDIR", "--out", "other", PUBLIC)
    assert ran.code == 1
    assert "Name the folder" in ran.err
