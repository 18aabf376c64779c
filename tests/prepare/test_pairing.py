"""Tests of pairing images with reports, of patients and of splits, in cases where a wrong pair or a leak is likely."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.makers import Ran, make_dicom, make_png, smooth_image
from helpers.prepared import PUBLIC, index, table
from pydicom.dataset import Dataset

from cyclic_cli.prepare.near_duplicates import near_duplicates
from cyclic_cli.storage.dataset import StoredDataset

Cyclic = Callable[..., Ran]


def patients_and_splits_of_studies(folder: Path) -> dict[str, set[object]]:
    found: dict[str, set[object]] = {}
    for row in index(folder):
        found.setdefault(str(row["study"]), set()).add((row["patient"], row["split"]))
    return found


def radiograph(path: str, seed: int, **header: str) -> None:
    make_dicom(Path(path), smooth_image(seed, 24, 20), bits=8, **header)


def test_one_person_under_several_keys_is_one_patient(cyclic: Cyclic) -> None:
    """Thirty patients each with a file without PatientID, with a table row for one image only, without an issuer."""
    rows = []
    for number in range(30):
        study = {"StudyInstanceUID": f"1.1.{number}"}
        radiograph(f"files/lost/{number}-a.dcm", 10 * number, PatientID=f"L{number}", **study)
        radiograph(f"files/lost/{number}-b.dcm", 10 * number + 1, **study)
        for shot in "ab":
            radiograph(
                f"files/tables/{number}-{shot}.dcm",
                5000 + 10 * number + ord(shot),
                PatientID=f"T{number}",
                StudyInstanceUID=f"1.2.{number}",
            )
        rows.append(f"tables/{number}-a.dcm,someone {number}\n")
        radiograph(
            f"files/issued/{number}-a.dcm",
            9000 + 10 * number,
            PatientID=f"I{number}",
            IssuerOfPatientID="North",
            StudyInstanceUID=f"1.3.{number}",
        )
        radiograph(
            f"files/issued/{number}-b.dcm",
            9000 + 10 * number + 1,
            PatientID=f"I{number}",
            StudyInstanceUID=f"1.3.{number}",
        )
    table(Path("files/reports.csv"), "path,patient\n" + "".join(rows))
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--size", 16, "--json").json
    assert (summary["samples"], summary["patients"], summary["studies"]) == (180, 90, 90)
    assert all(len(found) == 1 for found in patients_and_splits_of_studies(Path("ds")).values())


def test_a_folders_report_is_not_used_where_paths_or_tables_name_several_patients(cyclic: Cyclic) -> None:
    for name in ("p1-a.png", "p2-a.png"):
        make_png(Path("files", name), smooth_image(ord(name[1])))
    Path("files/report.txt").write_text("Only about p1.")
    ran = cyclic("prepare", "files", "--patient-pattern", r"p\d", "--out", "by-path", PUBLIC)
    assert "1 report.txt files lie beside images of several patients" in ran.err
    table(Path("t.csv"), "path,patient\nfiles/p1-a.png,1\nfiles/p2-a.png,2\n")
    cyclic("prepare", "files", "--reports", "t.csv", "--out", "by-table", PUBLIC)
    for folder in ("by-path", "by-table"):
        assert {row["text"] for row in index(Path(folder))} == {""}
    cyclic(
        "prepare", "files", "--out", "unknown", PUBLIC
    )  # without patients, the images of a folder count as one study
    assert {row["text"] for row in index(Path("unknown"))} == {"Only about p1."}


def test_an_accession_number_of_two_patients_matches_no_report(cyclic: Cyclic) -> None:
    for patient in "AB":
        radiograph(f"files/{patient}.dcm", ord(patient), PatientID=patient, AccessionNumber="1001")
    radiograph("files/C.dcm", 99, PatientID="C", AccessionNumber="1002")
    radiograph("files/D.dcm", 98, PatientID="D", AccessionNumber="1003")
    table(
        Path("files/reports.csv"),
        "accession,patient,text\n1001,A,Whose?\n1002,C,Of C.\n1003,Q,Of another hospital's patient.\n",
    )
    cyclic("prepare", "files", "--out", "ds", PUBLIC)
    texts = {row["source"]: row["text"] for row in index(Path("ds")) if row["has_image"]}
    assert texts == {"A.dcm": "", "B.dcm": "", "C.dcm": "Of C.", "D.dcm": ""}


def test_a_given_split_holds_for_the_patient_where_the_image_is_rejected(cyclic: Cyclic) -> None:
    rows = []
    for number in range(20):
        radiograph(f"files/{number}-a.dcm", number, PatientID=f"P{number}")
        radiograph(f"files/{number}-b.dcm", 50 + number, PatientID=f"P{number}")
        broken = Path(f"files/{number}-b.dcm")
        broken.write_bytes(broken.read_bytes()[:-100])
        rows.append(f"{number}-b.dcm,test\n")
    table(Path("files/reports.csv"), "path,split\n" + "".join(rows))
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["rejected"], summary["splits"]) == (20, {"train": 0, "val": 0, "test": 20})


def test_names_in_labels_are_removed(cyclic: Cyclic) -> None:
    radiograph("files/a.dcm", 1, PatientID="77123456", PatientName="Okonkwo^Zarathea")
    table(
        Path("files/reports.csv"),
        "path,text,fracture,finding,surname\n"
        "a.dcm,Clear.,told by Zarathea on 12/03/1958,Seen with Quimbleton,Quimbleton\n",
    )
    cyclic("prepare", "files", "--label-column", "finding", "--out", "ds", PUBLIC)
    row = index(Path("ds"))[0]
    assert (row["fracture"], row["finding"]) == ("told by ___ on ___", "Seen with ___")
    (stored,) = StoredDataset(Path("ds")).reports()
    assert "Zarathea" not in str(stored)
    assert "Quimbleton" not in str(stored)


def test_names_in_labels_of_many_images_of_one_patient_are_removed(cyclic: Cyclic) -> None:
    rows = []
    for number in range(5):
        radiograph(f"files/{number}.dcm", number, PatientID="ONE", PatientName=f"Okonkwo{'abcde'[number]}^Ada")
        rows.append(f"{number}.dcm,told by Okonkwoa and Okonkwoe\n")
    table(Path("files/reports.csv"), "path,fracture\n" + "".join(rows))
    cyclic("prepare", "files", "--out", "ds", PUBLIC)
    assert {row["fracture"] for row in index(Path("ds"))} == {"told by ___ and ___"}


def test_the_text_of_a_structured_report_is_not_written_before_names_are_removed(cyclic: Cyclic) -> None:
    """The physician is named in the header of the image only, not in the header of the report."""
    radiograph("files/image.dcm", 1, PatientID="P", StudyInstanceUID="1.5", ReferringPhysicianName="Okonkwo^Ada")
    header = pydicom.dcmread("files/image.dcm")
    item = Dataset()
    item.ValueType, item.TextValue = "TEXT", "No effusion. Discussed with Dr Okonkwo."
    for name in ("PixelData", "Rows", "Columns", "ReferringPhysicianName"):
        delattr(header, name)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.5.2"
    header.Modality, header.ValueType, header.ContentSequence = "SR", "CONTAINER", [item]
    header.save_as("files/report.dcm")
    cyclic("prepare", "files", "--out", "ds", PUBLIC, "--part", "1/1")
    written = b"".join(path.read_bytes() for path in Path("ds").rglob("*") if path.is_file())
    assert b"effusion" not in written
    assert b"Okonkwo" not in written
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--merge", "--json").json
    assert (summary["paired"], summary["skipped"]) == (1, 1)
    assert index(Path("ds"))[0]["text"] == "No effusion. Discussed with Dr ___."


def test_two_images_of_a_table_are_not_matched_to_one_file_by_its_name_without_suffix(cyclic: Cyclic) -> None:
    make_png(Path("files/x.png"), smooth_image(1)).rename("files/x.jpg")
    table(Path("t.csv"), "image,text\nx.png,One.\nx.dcm,Two.\n")
    cyclic("prepare", "files", "--reports", "t.csv", "--out", "ds", PUBLIC)
    assert {(row["has_image"], row["text"]) for row in index(Path("ds"))} == {
        (True, ""),
        (False, "One."),
        (False, "Two."),
    }


def test_contradicting_rows_of_a_missing_image_are_counted(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    table(Path("files/reports.csv"), "path,text\nz.png,Yes.\nz.png,No.\n")
    ran = cyclic("prepare", "files", "--out", "ds", PUBLIC)
    assert "1 images that are not among the inputs have contradicting table rows" in ran.err


def test_a_table_of_which_no_row_is_matched_gives_a_warning(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    table(Path("t.csv"), "path,text\nimages/a.png,Words.\n")
    ran = cyclic("prepare", "files", "--reports", "t.csv", "--out", "ds", PUBLIC)
    assert "no table row was matched to an image" in ran.err


def test_the_time_grows_linearly_with_the_files_of_one_patient(cyclic: Cyclic) -> None:
    seconds = []
    for count in (150, 600):
        for number in range(count):
            radiograph(
                f"{count}/{number}.dcm",
                number,
                PatientID="ONE",
                StudyInstanceUID=f"1.{number}",
                StudyID=f"S{number:05}",
            )
            Path(f"{count}/{number}.txt").write_text(f"Report {number} of a long stay, seen by somebody.")
        start = time.process_time()
        assert cyclic("prepare", count, "--out", f"ds{count}", PUBLIC, "--size", 16).code == 0
        seconds.append(time.process_time() - start)
    assert seconds[1] < 10 * seconds[0]  # it would be sixteen times if every report were compared with every header


def test_the_pairs_of_near_duplicates_are_bounded_among_many_equal_images() -> None:
    alike = np.random.default_rng(0).bytes(32).hex()
    pairs = near_duplicates((number, alike) for number in range(2000))
    assert 2000 - 1 <= len(pairs) <= 2000 * 8


# ------------------------------------------------------------------------------------------------------ updates


def test_an_update_needs_the_same_secret(cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, month in enumerate(("jan", "feb")):
        radiograph(f"{month}/{month}.dcm", number, PatientID="P")
    monkeypatch.setenv("CYCLIC_SALT", "ours")
    assert cyclic("prepare", "jan", "--out", "ds").code == 0
    monkeypatch.setenv("CYCLIC_SALT", "theirs")
    for words in (("--update",), ()):
        refused = cyclic("prepare", "feb", "--out", "ds", *words)
        assert refused.code == 1
        assert "the patient keys were made with another secret" in refused.err
    monkeypatch.setenv("CYCLIC_SALT", "ours")
    assert cyclic("prepare", "feb", "--out", "ds", "--update", "--json").json["patients"] == 1


def test_the_newest_of_contradicting_rows_takes_precedence_and_repeated_rows_are_read_once(cyclic: Cyclic) -> None:
    for number in range(6):
        make_png(Path(f"files/{number}.png"), smooth_image(number))
    rows = [f"{number}.png,P{number},Report {number} of Mr Okonkwo.,Okonkwo\n" for number in range(6)]
    head = "path,patient,text,surname\n"
    table(Path("files/reports.csv"), head + "".join(rows))
    words = ("prepare", "files", "--out", "ds", PUBLIC, "--json")
    cyclic(*words)
    rows[2] = "2.png,P2,Corrected.,Okonkwo\n"
    table(Path("files/reports.csv"), head + "".join(rows))
    make_png(Path("files/6.png"), smooth_image(6))
    summary = cyclic(*words, "--update").json
    assert (summary["used"], summary["paired"], summary["rejected"]) == (7, 6, 0)
    texts = {row["source"]: row["text"] for row in index(Path("ds"))}
    assert texts["2.png"] == "Corrected."
    assert texts["1.png"] == "Report 1 of Mr ___."
    assert len(list(StoredDataset(Path("ds")).reports())) == 7


def test_shards_are_kept_when_a_table_is_corrected(cyclic: Cyclic) -> None:
    for name in "ab":
        make_png(Path(f"files/{name}.png"), smooth_image(ord(name)))
    table(Path("files/reports.csv"), "path,patient,split\na.png,1,train\nb.png,1,test\n")
    ran = cyclic("prepare", "files", "--out", "ds", PUBLIC)
    assert ran.code == 1
    assert "reports.csv, line 2 and reports.csv, line 3" in ran.err
    shard = Path("ds/images-00000.safetensors").stat().st_mtime_ns
    table(Path("files/reports.csv"), "path,patient,split\na.png,1,train\nb.png,2,test\n")
    assert cyclic("prepare", "files", "--out", "ds", PUBLIC).code == 0
    assert Path("ds/images-00000.safetensors").stat().st_mtime_ns == shard


def test_the_first_rejected_input_is_named_where_no_input_can_be_used(cyclic: Cyclic) -> None:
    Path("cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert (
        "cut.png: the beginning of the PNG file is damaged or cut short"
        in cyclic("prepare", "cut.png", "--out", "ds", PUBLIC).err
    )
    assert "nowhere: there is no such file" in cyclic("prepare", "nowhere", "--out", "ds", PUBLIC).err
    assert cyclic("prepare", "", "--out", "ds", PUBLIC).code == 2


def test_duplicates_are_listed_with_their_frames(cyclic: Cyclic) -> None:
    frames = np.stack([smooth_image(1), smooth_image(2), smooth_image(1)])
    make_dicom(Path("files/cine.dcm"), frames, bits=8)
    summary = cyclic("prepare", "files", "--frames", "all", "--out", "ds", PUBLIC, "--json").json
    assert (summary["used"], summary["duplicates"], summary["samples"]) == (1, 0, 2)
    (line,) = [json.loads(line) for line in Path("ds/duplicates.jsonl").read_text().splitlines()]
    assert (line["source"], line["of"]) == ("cine.dcm", "cine.dcm")
    assert line["frame"] in (0, 2)
