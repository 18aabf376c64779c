"""Tests of `cyclic prepare`: sources, reports, patients, duplicates, and equal bytes for any number of workers."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.makers import Ran, contents, fitted, make_dicom, make_png, smooth_image
from helpers.prepared import PUBLIC, index, table

from cyclic_cli.config import Preprocessing
from cyclic_cli.privacy.keys import SPLITS, Keyer
from cyclic_cli.storage.dataset import StoredDataset

Cyclic = Callable[..., Ran]


def test_counts_of_a_mixed_folder_add_up_and_unused_files_are_listed(cyclic: Cyclic) -> None:
    files = Path("files")
    make_png(files / "a.png", smooth_image(1))
    make_png(files / "b" / "deep.png", smooth_image(2).astype(np.uint16) * 257)
    make_dicom(files / "c" / "no-suffix", smooth_image(3), bits=8)
    make_png(files / "copy.png", smooth_image(1))
    make_dicom(files / "seg.dcm", smooth_image(4), bits=8, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    (files / "notes.txt").write_text("about nothing")
    (files / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (files / "empty.dcm").write_bytes(b"")
    make_png(files / "black.png", np.zeros((8, 8), np.uint8))
    ran = cyclic("prepare", files, Path("gone.png"), "--out", "ds", PUBLIC, "--size", 32, "--json")
    assert ran.code == 0
    summary = ran.json
    assert (summary["inputs"], summary["used"], summary["duplicates"], summary["skipped"], summary["rejected"]) == (
        10,
        3,
        1,
        1,
        5,
    )
    assert summary["inputs"] == summary["used"] + summary["duplicates"] + summary["skipped"] + summary["rejected"]
    assert summary["rejected_by_reason"] == {
        "blank": 1, "broken_pixels": 1, "empty": 1, "missing": 1, "text_without_image": 1,
    }  # fmt: skip
    lines = [json.loads(line) for line in Path("ds/rejected.jsonl").read_text().splitlines()]
    assert {line["source"]: line["reason"] for line in lines} == {
        "black.png": "blank", "broken.png": "broken_pixels", "empty.dcm": "empty",
        "gone.png": "missing", "notes.txt": "text_without_image", "seg.dcm": "segmentation",
    }  # fmt: skip
    assert sum(summary["splits"].values()) == summary["samples"] == 3


def test_stored_pixels_equal_those_of_the_reader(tiny_files: Path, tiny_dataset: Path) -> None:
    stored = StoredDataset(tiny_dataset)
    rows = index(tiny_dataset)
    assert len(rows) == 40
    for row in rows:
        expected = fitted(tiny_files / str(row["source"]), Preprocessing(size=32))
        got = stored.images(np.array([row["shard"]]), np.array([row["row"]]))[0]
        np.testing.assert_array_equal(got, expected)


def test_the_index_is_sorted_so_that_a_fraction_is_a_prefix(tiny_dataset: Path) -> None:
    rows = index(tiny_dataset)
    places = [(SPLITS.index(str(row["split"])), row["position"]) for row in rows]
    assert places == sorted(places)
    train = [row["position"] for row in rows if row["split"] == "train"]
    chosen = StoredDataset(tiny_dataset).records("train", 0.4)["position"].tolist()
    assert chosen == train[: len(chosen)]
    assert 0 < len(chosen) < len(train)


def test_the_output_does_not_depend_on_workers_or_the_order_of_sources(tiny_files: Path, cyclic: Cyclic) -> None:
    for number in range(100):  # more than one shard
        make_png(Path(f"files/{number:03}.png"), smooth_image(number, 20, 24))
    cyclic("prepare", "files", tiny_files, "--out", "one", PUBLIC, "--size", 32, "--workers", 1)
    cyclic("prepare", tiny_files, "files", "--out", "two", PUBLIC, "--size", 32, "--workers", 2)
    assert len(contents(Path("one"))) == 7 + 3
    assert contents(Path("one")) == contents(Path("two"))


def test_the_output_does_not_depend_on_the_order_of_a_folder_listing(
    cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        make_png(Path(f"files/{name}.png"), smooth_image(ord(name)))
    table(Path("files/reports.csv"), "path,text\na.png,x\n")
    table(Path("files/findings.csv"), "path,edema\na.png,1\n")
    walked = os.walk
    for out, backwards in (("one", False), ("two", True)):
        monkeypatch.setattr(
            os, "walk", lambda *a, r=backwards, **k: ((f, i, sorted(n, reverse=r)) for f, i, n in walked(*a, **k))
        )
        assert cyclic("prepare", "files", "--out", out, PUBLIC).code == 0
    assert contents(Path("one")) == contents(Path("two"))


def test_a_finished_dataset_is_recognised_and_never_overwritten(tiny_files: Path, cyclic: Cyclic) -> None:
    words = ("prepare", tiny_files, "--out", "ds", PUBLIC, "--size", 32, "--json")
    first = cyclic(*words).json
    before = contents(Path("ds"))
    again = cyclic(*words)
    assert {**again.json, "seconds": 0, "images_per_second": 0} == {**first, "seconds": 0, "images_per_second": 0}
    other = cyclic("prepare", tiny_files, "--out", "ds", PUBLIC, "--size", 64)
    assert other.code == 1
    assert "size was 32 and is now 64" in other.err
    assert contents(Path("ds")) == before
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    assert cyclic("prepare", tiny_files, "--out", "mine", PUBLIC).code == 1
    assert contents(Path("mine")) == {"thesis.tex": b"years of work"}


def test_pipes_broken_links_and_closed_folders_are_rejected(cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    os.mkfifo("files/pipe.dcm")
    Path("files/link.dcm").symlink_to("nowhere")
    Path("files/closed").mkdir()
    listed = os.scandir

    def refusing(path: str) -> object:  # the tests may run as root, who may read any folder
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["inputs"], summary["used"]) == (4, 1)
    assert summary["rejected_by_reason"] == {"missing": 1, "unreadable": 2}


def test_an_output_inside_its_source_is_skipped(tiny_files: Path, cyclic: Cyclic) -> None:
    shutil.copytree(tiny_files, ".", dirs_exist_ok=True)
    first = cyclic("prepare", ".", "--out", "dataset", PUBLIC, "--json").json
    assert first["inputs"] == 40
    again = cyclic("prepare", ".", "--out", "dataset", PUBLIC, "--json")
    assert (again.code, again.json["inputs"]) == (0, 40)


def test_the_error_lists_reasons_where_no_input_can_be_used(cyclic: Cyclic) -> None:
    Path("x.txt").write_text("words")
    ran = cyclic("prepare", "x.txt", "--out", "ds", PUBLIC)
    assert ran.code == 1
    assert "text_without_image (1)" in ran.err


def test_strict_sets_the_exit_code_where_inputs_were_left_out(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    assert cyclic("prepare", "files", "--out", "a", PUBLIC, "--strict").code == 0
    Path("files/b.png").write_bytes(b"")
    assert cyclic("prepare", "files", "--out", "b", PUBLIC, "--strict").code == 8
    assert cyclic("prepare", "files", "--out", "c", PUBLIC).code == 0


@pytest.mark.parametrize(("words", "separator"), [((), b"\n"), (("-0",), b"\0"), ((), b"\r\n")])
def test_a_list_on_stdin(cyclic: Cyclic, words: tuple[str, ...], separator: bytes) -> None:
    for number in range(3):
        make_png(Path(f"files/{number} and a blank.png"), smooth_image(number))
    paths = separator.join(str(path).encode() for path in sorted(Path("files").iterdir())) + separator
    ran = cyclic("prepare", "-", *words, "--out", "ds", PUBLIC, "--json", stdin=paths)
    assert (ran.json["inputs"], ran.json["used"]) == (3, 3)
    assert {row["source"] for row in index(Path("ds"))} == {f"files/{number} and a blank.png" for number in range(3)}


def test_a_quoted_pattern_and_no_paths(cyclic: Cyclic) -> None:
    for number in range(4):
        make_png(Path(f"files/{number}.png"), smooth_image(number))
    (Path("files") / "x.dat").write_bytes(b"no image")
    ran = cyclic("prepare", "files/*", "--out", "ds", PUBLIC, "--no-paths", "--json")
    assert ran.json["used"] == 4
    assert {row["source"] for row in index(Path("ds"))} == {None}
    assert "x.dat" not in Path("ds/rejected.jsonl").read_text()


# ------------------------------------------------------------------------------------------ reports and patients


def test_a_table_gives_text_patient_split_and_labels_and_other_columns_are_not_stored(cyclic: Cyclic) -> None:
    for name in "abcd":
        make_png(Path(f"files/{name}.png"), smooth_image(ord(name)))
    table(
        Path("files/reports.csv"),
        "path,patient_id,report_text,split,Cardiomegaly,physician\n"
        "a.png,p1,No effusion.,train,0,Dr Who\nb.png,p1,Large heart.,train,1,Dr Who\nc.png,p2,,valid,,Dr Who\n",
    )
    ran = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json")
    summary = ran.json
    assert (summary["inputs"], summary["report_files"], summary["paired"], summary["image_only"]) == (4, 1, 2, 2)
    assert (
        "reports.csv: image: path; text: report_text; patient: patient_id; split: split; labels: Cardiomegaly"
        in ran.err
    )
    assert "1 other columns are not read" in ran.err
    rows = {str(row["source"]): row for row in index(Path("ds"))}
    assert rows["a.png"]["text"] == "No effusion."
    assert (rows["a.png"]["cardiomegaly"], rows["b.png"]["cardiomegaly"], rows["c.png"]["cardiomegaly"]) == (0, 1, None)
    assert rows["a.png"]["patient"] == rows["b.png"]["patient"] != rows["c.png"]["patient"]
    assert (rows["a.png"]["split"], rows["c.png"]["split"]) == ("train", "val")
    assert b"Dr Who" not in Path("ds/index.parquet").read_bytes()


def test_json_lines_and_columns_named_by_options(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    lines = [{"bild": "files/a.png", "befund": "Kein Erguss.", "region": "Thorax", "name": "x"}]
    table(Path("t.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
    words = ("--image-column", "bild", "--text-column", "befund", "--label-column", "region")
    ran = cyclic("prepare", "files", "--reports", "t.jsonl", *words, "--out", "ds", PUBLIC, "--json")
    assert ran.json["paired"] == 1
    assert index(Path("ds"))[0]["region"] == "Thorax"
    wrong = cyclic("prepare", "files", "--reports", "t.jsonl", "--image-column", "bidl", "--out", "x", PUBLIC)
    assert wrong.code == 2
    assert "Did you mean 'bild'?" in wrong.err


def test_side_cars_of_the_image_and_of_the_study(cyclic: Cyclic) -> None:
    make_png(Path("files/s1/a.png"), smooth_image(1))
    make_dicom(Path("files/s1/1.2.3.4"), smooth_image(2), bits=8)
    Path("files/s1/report.txt").write_text("Both lungs are clear.")
    Path("files/s1/1.2.3.4.txt").write_text("Own words.")
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["inputs"], summary["paired"], summary["report_files"]) == (2, 2, 2)
    texts = {row["source"]: row["text"] for row in index(Path("ds"))}
    assert texts == {"s1/a.png": "Both lungs are clear.", "s1/1.2.3.4": "Own words."}


def test_reports_without_images_become_samples(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    (Path("files") / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    table(
        Path("files/reports.csv"),
        "path,patient,text\na.png,1,First.\nb.png,2,Of a broken image.\nc.png,3,Of no image.\n,4,Of nothing.\n",
    )
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["samples"], summary["paired"], summary["text_only"], summary["rejected"]) == (4, 1, 3, 1)
    assert {row["text"] for row in index(Path("ds")) if not row["has_image"]} == {
        "Of a broken image.", "Of no image.", "Of nothing.",
    }  # fmt: skip


def test_rows_may_name_images_by_the_source_folder_or_the_end_of_the_path(cyclic: Cyclic) -> None:
    for number, name in enumerate(["deep/amb/a/1.png", "deep/amb/b/1.png", "deep/amb/b/x/2.png"]):
        make_png(Path(name), smooth_image(number))
    table(Path("t.csv"), "path,text\na/1.png,One.\nb/1.png,Two.\nold/root/b/x/2.png,Moved.\nx/2.png,Three.\n")
    ran = cyclic("prepare", "deep/amb/a", "deep/amb/b", "--reports", "t.csv", "--out", "ds", PUBLIC)
    found = {row["source"]: row["text"] for row in index(Path("ds")) if row["has_image"]}
    assert found == {"a/1.png": "One.", "b/1.png": "Two.", "b/x/2.png": "Three."}
    assert "1 table rows name an image that is not among the inputs" in ran.err


def test_a_shared_report_of_a_folder_with_several_studies_is_not_used(cyclic: Cyclic) -> None:
    for patient in "AB":
        make_dicom(Path(f"flat/{patient}.dcm"), smooth_image(ord(patient)), bits=8, PatientID=patient)
    Path("flat/report.txt").write_text("Of A alone.")
    ran = cyclic("prepare", "flat", "--out", "ds", PUBLIC)
    assert {row["text"] for row in index(Path("ds"))} == {""}
    assert "1 report.txt files lie beside images of several patients" in ran.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,text,patient\na.png,No effusion, no pneumothorax,1\n", "line 2: more cells"),
        ('path,patient,text\na.png,1,"unterminated\nb.png,2,x\n', "line 3"),
        ("path,split\na.png,holdout\n", "reports.csv, line 2: unknown name of a split"),
        ("foo,bar\n1,2\n", "Columns: bar, foo"),
        ("", "no column of images"),
        ("path,text\n", "has a header row but no other rows"),
    ],
)
def test_a_table_that_would_be_misread_is_refused(cyclic: Cyclic, text: str, message: str) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    table(Path("files/reports.csv"), text)
    ran = cyclic("prepare", "files", "--out", "ds", PUBLIC)
    assert ran.code == 2
    assert message in ran.err
    assert "unterminated" not in ran.err
    assert not Path("ds").exists()


def test_labels_neither_replace_columns_of_the_index_nor_hold_identities(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    table(Path("files/reports.csv"), "path,patient,modality,text\na.png,77,CT,x\n")
    cyclic("prepare", "files", "--label-column", "modality", "--out", "ds", PUBLIC)
    row = index(Path("ds"))[0]
    assert (row["modality"], row["label_modality"]) == ("", "CT")
    for column in ("patient", "path", "text"):
        assert cyclic("prepare", "files", "--label-column", column, "--out", "x", PUBLIC).code == 2


def test_the_patient_pattern_is_applied_to_the_folders_of_listed_files(cyclic: Cyclic) -> None:
    paths = [
        make_png(Path(f"pacs/p{number // 2}/{number}.png"), smooth_image(number)).absolute() for number in range(4)
    ]
    listed = "".join(f"{path}\n" for path in paths)
    summary = cyclic("prepare", "-", "--patient-pattern", r"p\d", "--out", "ds", PUBLIC, "--json", stdin=listed).json
    assert summary["patients"] == 2
    assert {row["source"] for row in index(Path("ds"))} == {f"p{number // 2}/{number}.png" for number in range(4)}


def test_different_files_of_the_same_name_and_size_are_another_request(cyclic: Cyclic) -> None:
    for month, seed in (("jan", 1), ("feb", 2)):
        make_dicom(Path(f"{month}/in/1.dcm"), smooth_image(seed), bits=8, SOPInstanceUID=f"1.2.{seed}")
    assert Path("jan/in/1.dcm").stat().st_size == Path("feb/in/1.dcm").stat().st_size
    assert cyclic("prepare", "jan/in", "--out", "ds", PUBLIC).code == 0
    assert cyclic("prepare", "feb/in", "--out", "ds", PUBLIC).code == 1


def test_a_failed_run_does_not_block_its_output_folder(cyclic: Cyclic) -> None:
    assert cyclic("prepare", "missing", "--out", "ds", PUBLIC).code == 1
    assert not Path("ds").exists()
    assert "no file" in cyclic("prepare", Path("."), "--out", "ds", PUBLIC).err
    make_png(Path("files/a.png"), smooth_image(1))
    assert cyclic("prepare", "files", "--out", "ds", PUBLIC).code == 0


def test_file_names_that_are_not_text_and_hidden_files(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1)).rename(os.fsdecode(b"files/bad\xff.png"))
    Path("files/.DS_Store").write_bytes(b"x")
    ran = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json")
    assert (ran.json["inputs"], ran.json["used"]) == (1, 1)
    assert index(Path("ds"))[0]["source"] == r"bad\xff.png"


def test_a_long_strip_is_rejected(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    make_png(Path("files/strip.png"), np.arange(40000, dtype=np.uint16)[None].astype(np.uint8))
    assert cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json["rejected_by_reason"] == {"too_large": 1}


def test_contradicting_rows_reject_the_image(cyclic: Cyclic) -> None:
    for name in "ab":
        make_png(Path(f"files/{name}.png"), smooth_image(ord(name)))
    table(Path("files/reports.csv"), "path,text\na.png,Yes.\na.png,No.\nb.png,Same.\nb.png,Same.\n")
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert summary["rejected_by_reason"] == {"conflicting_rows": 1}
    assert summary["paired"] == 1
    assert summary["text_only"] == 0  # the rows do not say which text is correct


def test_a_report_is_never_matched_to_an_image_of_another_path(cyclic: Cyclic) -> None:
    """Where file names are equal in several folders and sources, the path decides; ambiguous rows are not matched."""
    for number, name in enumerate(["one/a/1.png", "one/b/1.png", "two/a/1.png", "two/c/only.png"]):
        make_png(Path(name), smooth_image(number))
    table(Path("one/reports.csv"), "path,patient,text\na/1.png,1,Of one a.\nz/1.png,9,Of nothing there.\n")
    table(Path("names.csv"), "file,patient,text\nonly.png,4,By its name.\n1.png,5,Of which?\nx/only.png,6,Elsewhere.\n")
    words = ("--reports", "one/reports.csv", "--reports", "names.csv")
    ran = cyclic("prepare", "one", "two", *words, "--out", "ds", PUBLIC)
    assert "1 table rows were matched to an image by the file name alone" in ran.err
    rows = index(Path("ds"))
    assert {(row["source"], row["text"]) for row in rows} == {
        ("one/a/1.png", "Of one a."), ("one/b/1.png", ""), ("two/a/1.png", ""), ("two/c/only.png", "By its name."),
        (None, "Of nothing there."), (None, "Of which?"), (None, "Elsewhere."),
    }  # fmt: skip
    shown = {
        row["text"]: StoredDataset(Path("ds")).images(np.array([row["shard"]]), np.array([row["row"]]))
        for row in rows
        if row["has_image"]
    }
    expected = fitted(Path("one/a/1.png"), Preprocessing())
    np.testing.assert_array_equal(shown["Of one a."][0], expected)


def test_tables_in_different_folders_are_joined_on_the_image(cyclic: Cyclic) -> None:
    make_png(Path("files/a.png"), smooth_image(1))
    for folder, text in (("t1", "path,text\na.png,Words.\n"), ("t2", "path,edema,patient\na.png,1,7\n")):
        Path(folder).mkdir()
        table(Path(folder) / "t.csv", text)
    cyclic("prepare", "files", "--reports", "t1/t.csv", "--reports", "t2/t.csv", "--out", "ds", PUBLIC)
    row = index(Path("ds"))[0]
    assert (row["text"], row["edema"], row["has_image"]) == ("Words.", 1, True)


def test_patients_with_equal_reports_are_not_merged(cyclic: Cyclic) -> None:
    Path("reports.csv").write_text("text,patient\n" + "".join(f"No effusion.,p{number % 20}\n" for number in range(40)))
    counts = cyclic("prepare", "reports.csv", "--already-deidentified", "--out", "d", "--json").json
    assert (counts["samples"], counts["patients"], counts["studies"]) == (20, 20, 20)


def test_the_text_of_a_duplicate_stays_with_its_patient(cyclic: Cyclic) -> None:
    """Otherwise a report could be in another split than its patient."""
    for number in range(30):
        make_dicom(
            Path(f"files/{number}-a.dcm"),
            smooth_image(number),
            bits=8,
            PatientID=f"P{number}",
            StudyInstanceUID=f"1.{number}",
        )
        make_dicom(
            Path(f"files/{number}-b.dcm"),
            smooth_image(number),
            bits=8,
            PatientID=f"P{number}",
            StudyInstanceUID=f"2.{number}",
        )
        for shot in "ab":
            Path(f"files/{number}-{shot}.txt").write_text(f"Study {shot} of {number}.")
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["used"], summary["duplicates"], summary["text_only"], summary["patients"]) == (30, 30, 30, 30)
    splits = {(row["patient"], row["split"]) for row in index(Path("ds"))}
    assert len(splits) == 30


def test_the_report_of_a_broken_image_stays_with_its_patient(cyclic: Cyclic) -> None:
    make_dicom(Path("files/a.dcm"), smooth_image(1), bits=8, PatientID="P1", StudyInstanceUID="1.1")
    broken = make_dicom(Path("files/b.dcm"), smooth_image(2), bits=8, PatientID="P1", StudyInstanceUID="1.2")
    broken.write_bytes(broken.read_bytes()[:-500])
    Path("files/b.txt").write_text("Of the broken image.")
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["patients"], summary["text_only"], summary["rejected_by_reason"]) == (1, 1, {"broken_pixels": 1})


def test_a_patient_in_two_given_splits_is_an_error(cyclic: Cyclic) -> None:
    for name in "ab":
        make_png(Path(f"files/{name}.png"), smooth_image(ord(name)))
    table(Path("files/reports.csv"), "path,patient,split\na.png,77123,train\nb.png,77123,test\n")
    ran = cyclic("prepare", "files", "--out", "ds", PUBLIC)
    assert ran.code == 1
    assert "two splits" in ran.err
    assert "77123" not in ran.err


def test_the_order_in_which_the_patient_is_looked_up(cyclic: Cyclic) -> None:
    """The table takes precedence over the header, then the path pattern, the study, and the file."""
    shots = [
        ("files/x_1/a.dcm", {"PatientID": "P1", "StudyInstanceUID": "1.1"}),
        ("files/x_2/b.dcm", {"PatientID": "P1", "StudyInstanceUID": "1.2"}),
        ("files/x_3/c.dcm", {"PatientID": "anon", "StudyInstanceUID": "1.3"}),
        ("files/x_3/d.dcm", {"PatientID": "0", "StudyInstanceUID": "1.4"}),
        ("files/e.dcm", {"PatientID": "", "StudyInstanceUID": "1.5"}),
        ("files/f.dcm", {"StudyInstanceUID": "1.5"}),
        ("files/g.dcm", {"PatientID": "P7"}),
    ]
    for number, (path, header) in enumerate(shots):
        make_dicom(Path(path), smooth_image(number), bits=8, **header)
    table(Path("t.csv"), "path,patient\nfiles/g.dcm,another\n")
    words = ("--reports", "t.csv", "--patient-pattern", r"x_(\d)", "--out", "ds", PUBLIC)
    ran = cyclic("prepare", "files", *words)
    assert "2 samples have no patient ID" in ran.err
    who = {str(row["source"])[-5]: row["patient"] for row in index(Path("ds"))}
    groups = {frozenset(name for name in who if who[name] == key) for key in who.values()}
    assert groups == {frozenset("ab"), frozenset("cd"), frozenset("ef"), frozenset("g")}


def test_no_patient_is_in_two_splits_and_new_data_does_not_change_splits(cyclic: Cyclic) -> None:
    for patient in range(60):
        for shot in range(2):
            make_dicom(
                Path(f"files/{patient}-{shot}.dcm"),
                smooth_image(1000 * shot + patient),
                bits=8,
                PatientID=f"P{patient}",
            )
    cyclic("prepare", "files", "--out", "all", PUBLIC, "--size", 16)
    for path in Path("files").glob("[1-3]*-1.dcm"):
        path.unlink()
    cyclic("prepare", "files", "--out", "some", PUBLIC, "--size", 16)
    splits = [
        {row["sample"]: (row["patient"], row["split"], row["position"]) for row in index(Path(name))}
        for name in ("all", "some")
    ]
    assert len({patient for patient, *_ in splits[0].values()}) == 60
    for found in splits:
        assert len({(patient, split) for patient, split, _ in found.values()}) == len(
            {patient for patient, *_ in found.values()}
        )
    assert len(splits[1]) < len(splits[0])
    assert all(splits[0][sample] == place for sample, place in splits[1].items())


def test_equal_pixels_of_two_patients_are_kept_once_under_the_first_key(cyclic: Cyclic) -> None:
    keys = {}
    for patient in "ABCD":
        make_dicom(Path(f"files/{patient}.dcm"), smooth_image(1), bits=8, PatientID=patient)
        keys[patient] = Keyer(b"").key("patient", patient)
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["used"], summary["duplicates"], summary["samples"]) == (1, 3, 1)
    assert index(Path("ds"))[0]["patient"] == min(keys.values())


def test_the_image_with_a_report_is_kept_among_equal_images_of_a_patient(cyclic: Cyclic) -> None:
    for name in "abc":
        make_dicom(Path(f"files/{name}.dcm"), smooth_image(1), bits=8, PatientID="A", SOPInstanceUID=f"1.{ord(name)}")
    Path("files/b.txt").write_text("Clear.")
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json
    assert (summary["paired"], summary["text_only"], summary["duplicates"]) == (1, 0, 2)
    assert index(Path("ds"))[0]["source"] == "b.dcm"


def test_equal_patient_numbers_of_two_issuers_are_two_patients(cyclic: Cyclic) -> None:
    for number, issuer in enumerate(["North", "South"]):
        make_dicom(Path(f"files/{issuer}.dcm"), smooth_image(number), bits=8, PatientID="7", IssuerOfPatientID=issuer)
    assert cyclic("prepare", "files", "--out", "ds", PUBLIC, "--json").json["patients"] == 2


# ------------------------------------------------------------------------------------------------------ privacy


def test_identities_do_not_occur_in_the_output(cyclic: Cyclic, tmp_path: Path) -> None:
    secretive = {
        "PatientName": "Zyxwvut^Qponm", "PatientID": "8675309442", "AccessionNumber": "ACC5551234",
        "InstitutionName": "Hospital of Nowhere", "ReferringPhysicianName": "Doctor^Strangelove",
        "StudyInstanceUID": "1.2.3.918273645", "PatientBirthDate": "19610412", "StudyDescription": "Qwertzuiop",
    }  # fmt: skip
    for number in range(4):
        make_dicom(Path(f"files/{number}.dcm"), smooth_image(number), bits=8, **secretive)
    make_dicom(Path("files/broken.dcm"), smooth_image(9), bits=8, **secretive)
    whole = Path("files/broken.dcm").read_bytes()
    Path("files/broken.dcm").write_bytes(whole[: len(whole) - 3000])
    ran = cyclic("prepare", "files", "--out", "ds")
    assert ran.code == 0
    written = b"".join(contents(Path("ds")).values()) + ran.out.encode() + ran.err.encode()
    written += "".join(str(row) for row in index(Path("ds"))).encode()
    for value in [
        "8675309442",
        "Zyxwvut",
        "Qponm",
        "ACC5551234",
        "Nowhere",
        "Strangelove",
        "918273645",
        "19610412",
        "Qwertz",
    ]:
        assert value.encode() not in written
    secret = next((tmp_path / "home").rglob("salt")).read_bytes()
    assert secret not in written


def test_patient_keys_depend_on_the_secret(cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dicom(Path("files/a.dcm"), smooth_image(1), bits=8, PatientID="P1")
    keys = []
    for salt in ("one", "one", "two"):
        monkeypatch.setenv("CYCLIC_SALT", salt)
        shutil.rmtree("ds", ignore_errors=True)
        cyclic("prepare", "files", "--out", "ds")
        keys.append(index(Path("ds"))[0]["patient"])
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("command", ["prepare", "demo"])
def test_a_full_disk_is_reported_and_the_work_can_be_continued(command: str, tiny_files: Path) -> None:
    """A limit on the file size makes writing fail as a full disk does."""
    words = {"prepare": ["prepare", str(tiny_files), PUBLIC], "demo": ["demo", "-n", "2"]}[command]
    start = [sys.executable, "-m", "cyclic_cli", *words, "--out", "out", "-q"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    ran = subprocess.run(start, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert ran.returncode == 1
    assert "cannot be written" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(Path("out").glob("*images*"))
    assert subprocess.run(start, capture_output=True, check=False).returncode == 0
