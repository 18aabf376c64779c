"""Tests of updates and of array jobs: both give the dataset that one run over all files gives."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.makers import Ran, contents, make_dicom, make_png, smooth_image
from helpers.prepared import PUBLIC, index, table
from PIL import Image

from cyclic_cli.storage.dataset import StoredDataset

Cyclic = Callable[..., Ran]
WORDS = (PUBLIC, "--size", 16, "--json")


def month(folder: str, numbers: range, extra: str = "") -> None:
    """Write DICOM files, two per patient, with a table of every third and a side-car text of every fifth."""
    rows = []
    for number in numbers:
        name = f"{number:03}.dcm"
        make_dicom(
            Path(folder, name), smooth_image(number, 40, 30), bits=8, PatientID=f"P{number // 2}",
            StudyInstanceUID=f"1.2.{number}", SOPInstanceUID=f"1.2.{number}.1", PatientName=f"Okonkwo{number}^Ada",
        )  # fmt: skip
        if number % 3 == 0:
            rows.append(f"{name},P{number // 2},Report {number} of Okonkwo{number}.,{number % 2}\n")
        if number % 5 == 0:
            Path(folder, f"{number:03}.txt").write_text(f"Side-car {number}.")
    table(Path(folder, "reports.csv"), "path,patient,text,edema\n" + "".join(rows) + extra)


def samples(folder: Path) -> list[dict[str, object]]:
    """The rows of the index, with the pixels instead of shard and row."""
    stored = StoredDataset(folder)
    rows = index(folder)
    for row in rows:
        if row["has_image"]:
            row["pixels"] = stored.images(np.array([row["shard"]]), np.array([row["row"]])).tobytes()
        del row["shard"], row["row"]
    return rows


def test_an_update_gives_the_index_of_a_run_over_all_files(cyclic: Cyclic) -> None:
    month("pacs/jan", range(40), "061.dcm,P30,A report that comes before its image.,\n")
    Path("pacs/jan/broken.dcm").write_bytes(b"\0" * 128 + b"DICM")
    first = cyclic("prepare", "pacs", "--out", "ds", "--reports", "pacs/jan/reports.csv", *WORDS).json
    shards = {path.name: path.stat().st_mtime_ns for path in Path("ds").glob("images-*")}
    month("pacs/feb", range(30, 100), ",P7,,\n")
    make_png(Path("pacs/jan/late.png"), smooth_image(500))
    tables = ("--reports", "pacs/jan/reports.csv", "--reports", "pacs/feb/reports.csv")
    updated = cyclic("prepare", "pacs", "--out", "ds", *tables, "--update", *WORDS)
    assert updated.code == 0, updated.err
    assert "of 71 inputs" not in updated.err
    whole = cyclic("prepare", "pacs", "--out", "whole", *tables, *WORDS)
    assert samples(Path("ds")) == samples(Path("whole"))
    same = (
        "inputs",
        "used",
        "duplicates",
        "skipped",
        "rejected",
        "samples",
        "patients",
        "paired",
        "text_only",
        "splits",
    )
    assert {key: updated.json[key] for key in same} == {key: whole.json[key] for key in same}
    assert first["inputs"] == 41 < updated.json["inputs"] == 112
    for name, time in shards.items():  # no shard was written again
        assert Path("ds", name).stat().st_mtime_ns == time
    before = {row["patient"]: row["split"] for row in index(Path("ds"))}
    assert len({(row["patient"], row["split"]) for row in index(Path("ds"))}) == len(before)


def test_an_update_may_name_the_new_folder_alone(cyclic: Cyclic) -> None:
    """New files may have the names of earlier files, and a report may come in an update before its image."""
    month("jan", range(20), "x/999.dcm,P999,Nobody's.,\n061.dcm,P30,A report that comes before its image.,\n")
    month("feb", range(55, 65))
    Path("feb/000.dcm").write_bytes(Path("feb/055.dcm").read_bytes())
    make_dicom(Path("feb/001.dcm"), smooth_image(901), bits=8, PatientID="Q1")
    before = cyclic("prepare", "jan", "--out", "ds", *WORDS).json
    after = cyclic("prepare", "feb", "--out", "ds", "--update", *WORDS).json
    assert (before["inputs"], after["inputs"]) == (20, 32)
    assert (after["duplicates"], after["rejected"]) == (1, 0)
    texts = {row["text"]: row["has_image"] for row in index(Path("ds"))}
    assert texts["A report that comes before its image."] is True
    assert texts["Nobody's."] is False
    again = cyclic("prepare", "feb", "--out", "ds", "--update", *WORDS)
    assert again.json["inputs"] == 32


def test_an_update_keeps_patients_in_their_splits_and_replaces_rejected_files(cyclic: Cyclic) -> None:
    month("files", range(60))
    whole = Path("files/007.dcm").read_bytes()
    Path("files/007.dcm").write_bytes(whole[:-300])
    first = cyclic("prepare", "files", "--out", "ds", *WORDS).json
    assert first["rejected"] == 1
    places = {row["sample"]: (row["patient"], row["split"], row["position"]) for row in index(Path("ds"))}
    Path("files/007.dcm").write_bytes(whole)
    second = cyclic("prepare", "files", "--out", "ds", "--update", *WORDS).json
    assert (second["inputs"], second["rejected"], second["used"]) == (60, 0, 60)
    now = {row["sample"]: (row["patient"], row["split"], row["position"]) for row in index(Path("ds"))}
    assert all(now[sample] == place for sample, place in places.items() if sample in now)
    fresh = cyclic("prepare", "files", "--out", "fresh", *WORDS)
    assert fresh.code == 0
    assert samples(Path("ds")) == samples(Path("fresh"))


def test_the_error_for_another_request_names_the_differences(cyclic: Cyclic) -> None:
    month("files", range(6))
    cyclic("prepare", "files", "--out", "ds", *WORDS)
    other = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--size", 32, "--window", "lung")
    assert other.code == 1
    assert "size was 16 and is now 32" in other.err
    assert "window was auto and is now lung" in other.err
    assert "--update" not in other.err  # --update would be refused too
    refused = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--size", 32, "--update")
    assert (refused.code, "size was 16 and is now 32" in refused.err) == (1, True)
    month("files", range(9))
    more = cyclic("prepare", "files", "--out", "ds", *WORDS).err
    assert "the number of inputs was 6 and is now 9" in more
    assert "--update" in more


def test_an_update_that_is_killed_before_its_end_continues(cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch) -> None:
    from cyclic_cli.storage import files

    month("files", range(10))
    cyclic("prepare", "files", "--out", "ds", *WORDS)
    month("files", range(30))
    cyclic("prepare", "files", "--out", "whole", *WORDS)
    replacing = files.replacing
    for name in ("index.parquet", "inputs.parquet", "reports.parquet", "duplicates.jsonl", "dataset.yaml"):

        def dying(path: Path, at: str = name) -> object:
            if path.name == at:
                raise KeyboardInterrupt
            return replacing(path)

        with monkeypatch.context() as patched:
            patched.setattr(files, "replacing", dying)
            assert cyclic("prepare", "files", "--out", "ds", "--update", *WORDS).code == 130
    assert cyclic("prepare", "files", "--out", "ds", "--update", *WORDS).code == 0
    assert samples(Path("ds")) == samples(Path("whole"))
    month("files", range(40))  # a later update works as well
    assert cyclic("prepare", "files", "--out", "ds", "--update", *WORDS).code == 0
    cyclic("prepare", "files", "--out", "more", *WORDS)
    assert samples(Path("ds")) == samples(Path("more"))
    assert len(list(StoredDataset(Path("ds")).reports())) == len(list(StoredDataset(Path("more")).reports()))


# ------------------------------------------------------------------------------------------------------- parts


def test_parts_and_a_merge_give_the_bytes_of_one_run(cyclic: Cyclic) -> None:
    month("files", range(200))
    cyclic("prepare", "files", "--out", "whole", *WORDS)
    for part in ("2/3", "3/3"):
        summary = cyclic("prepare", "files", "--out", "ds", "--part", part, *WORDS).json
        assert (summary["part"], summary["read"]) == (part, summary["inputs"])
    early = cyclic("prepare", "files", "--out", "ds", "--merge", *WORDS)
    assert early.code == 1
    assert "2 of 4 shards are not written" in early.err
    assert not Path("ds/dataset.yaml").exists()
    cyclic("prepare", "files", "--out", "ds", "--part", "1/3", *WORDS)
    assert cyclic("prepare", "files", "--out", "ds", "--part", "1/3", *WORDS).json["read"] == 0
    assert cyclic("prepare", "files", "--out", "ds", "--merge", *WORDS).code == 0
    assert contents(Path("ds")) == contents(Path("whole"))


def test_the_part_is_read_from_the_environment_of_a_slurm_array(
    cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    month("files", range(70))
    assert cyclic("prepare", "files", "--out", "ds", "--part", "slurm", *WORDS).code == 2
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "6")
    assert cyclic("prepare", "files", "--out", "ds", "--part", "slurm", *WORDS).json["part"] == "2/2"


@pytest.mark.parametrize("part", ["0/3", "4/3", "x", "1", "1/0"])
def test_an_invalid_part_is_refused(cyclic: Cyclic, part: str) -> None:
    assert cyclic("prepare", "files", "--part", part, *WORDS).code == 2


# -------------------------------------------------------------------------------------------------- duplicates


def test_an_image_of_two_patients_is_kept_once_and_both_files_are_listed(cyclic: Cyclic) -> None:
    for patient in "AB":
        make_dicom(Path(f"files/{patient}.dcm"), smooth_image(1), bits=8, PatientID=patient)
        Path(f"files/{patient}.txt").write_text(f"Words about {patient}.")
    summary = cyclic("prepare", "files", "--out", "ds", *WORDS).json
    assert (summary["used"], summary["duplicates"], summary["text_only"], summary["patients"]) == (1, 1, 1, 2)
    (line,) = [json.loads(line) for line in Path("ds/duplicates.jsonl").read_text().splitlines()]
    assert {line["source"], line["of"]} == {"A.dcm", "B.dcm"}
    assert (line["kind"], line["same_patient"]) == ("exact", False)


def test_near_duplicates_are_listed_and_kept(cyclic: Cyclic, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(12):
        make_png(Path(f"files/{number}.png"), smooth_image(number, 200, 160))
    Image.open("files/3.png").save("files/again.jpg", quality=70)
    Image.open("files/4.png").resize((80, 100)).save("files/small.png")
    summary = cyclic("prepare", "files", "--out", "ds", PUBLIC, "--size", 64, "--json").json
    assert (summary["used"], summary["near_duplicates"]) == (14, 2)
    pairs = [json.loads(line) for line in Path("ds/duplicates.jsonl").read_text().splitlines()]
    assert {frozenset((pair["source"], pair["of"])) for pair in pairs} == {
        frozenset(("3.png", "again.jpg")), frozenset(("4.png", "small.png")),
    }  # fmt: skip
    assert {pair["kind"] for pair in pairs} == {"near"}


def test_all_frames_of_a_file_become_samples(cyclic: Cyclic) -> None:
    frames = np.stack([smooth_image(number) for number in range(5)])
    make_dicom(Path("files/cine.dcm"), frames, bits=8, PatientID="A")
    make_dicom(Path("files/one.dcm"), smooth_image(9), bits=8, PatientID="B")
    summary = cyclic("prepare", "files", "--out", "ds", "--frames", "all", *WORDS).json
    assert (summary["inputs"], summary["used"], summary["samples"]) == (2, 2, 6)
    rows = [row for row in index(Path("ds")) if row["source"] == "cine.dcm"]
    assert sorted(row["frame"] for row in rows) == [0, 1, 2, 3, 4]
    assert len({row["sample"] for row in rows}) == 5
    assert pq.read_table("ds/index.parquet").num_rows == 6
    shutil.rmtree("ds")
    summary = cyclic("prepare", "files", "--out", "ds", "--frames", "4", *WORDS).json
    assert (summary["used"], summary["rejected"]) == (1, 1)


def test_a_dataset_whose_images_were_rendered_otherwise_is_not_updated(cyclic: Cyclic) -> None:
    month("pacs", range(6))
    assert cyclic("prepare", "pacs", "--out", "ds", *WORDS).code == 0
    facts = Path("ds/dataset.yaml")
    before = facts.read_text()
    assert before.count("rendering: 2") == 2  # of the images, and in the request
    facts.write_text(re.sub(r"\n *rendering: 2", "", before))  # as datasets of before
    month("pacs", range(8))
    said = cyclic("prepare", "pacs", "--out", "ds", "--update", *WORDS)
    assert said.code == 1
    assert "showed some files in another way" in said.err
    assert "another --out" in said.err
    assert StoredDataset(Path("ds")).facts.preprocessing.rendering == 1  # it is still read
    facts.write_text(before)
    assert cyclic("prepare", "pacs", "--out", "ds", "--update", *WORDS).code == 0


def test_guesses_are_counted_once_per_image_and_kept_by_updates(cyclic: Cyclic) -> None:
    for number in range(3):
        image = smooth_image(number, 40, 30).astype(np.uint16) * 16  # 12-bit values
        Path("files").mkdir(exist_ok=True)
        Image.fromarray(image).save(f"files/{number}.png")
    Path("files/again.png").write_bytes(Path("files/0.png").read_bytes())
    make_png(Path("files/plain.png"), smooth_image(9))
    said = cyclic("prepare", "files", "--out", "ds", *WORDS)
    assert (said.json["guessed"], said.json["duplicates"]) == ({"own_range": 3}, 1)
    shown = cyclic("prepare", "files", "--out", "other", *WORDS[:-1])
    assert "Guessed for 3 images: no stated range" in shown.err
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(40, 30)).save("files/new.png")
    assert cyclic("prepare", "files", "--out", "ds", "--update", *WORDS).json["guessed"] == {"own_range": 4}
