"""The examples run as documented. These tests are slow, and run on request."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cyclic_cli.phantom.dataset import write_demo

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", *map(str, words)], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_quickstart_writes_three_figures(tmp_path: Path) -> None:
    ran = run(EXAMPLES / "quickstart.sh", tmp_path / "quickstart")
    assert len(list((tmp_path / "quickstart" / "pictures").glob("*.png"))) == 3
    assert str(tmp_path / "quickstart" / "pictures") in ran.stdout


@pytest.mark.slow
def test_origin_prints_a_table_and_reuses_finished_parts(tmp_path: Path) -> None:
    write_demo(tmp_path / "phantoms", 120)
    command = (EXAMPLES / "origin.sh", tmp_path / "phantoms", "", tmp_path / "origin")
    first = run(*command)
    sheet = (tmp_path / "origin" / "sheet.png").stat()
    figures = json.loads((tmp_path / "origin" / "figures.json").read_text())["models"]
    assert list(figures) == ["linear-3", "linear-40", "conv-15"]
    assert figures["conv-15"]["mse"] < figures["linear-40"]["mse"] < figures["linear-3"]["mse"]
    assert all(f"{of['mse']:.5f}" in first.stdout for of in figures.values())
    again = run(*command)
    assert again.stdout == first.stdout
    assert (tmp_path / "origin" / "sheet.png").stat().st_mtime_ns == sheet.st_mtime_ns


@pytest.mark.slow
def test_few_pairs_writes_a_table_by_folds_and_reuses_finished_cells(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo", 150)
    demo, work = tmp_path / "demo", tmp_path / "few"
    command = (
        EXAMPLES / "few_pairs.sh", demo, demo / "reports.csv", demo / "findings.csv", "--image-column", "path",
        "--label-column", "nodule", "--label-column", "fracture", "--hit", "same_labels", "--size", 64, "--work", work,
        "--shares", 0.4, 1, "--fold-seeds", 1, "--draws", 5, 6, "--epochs", 1,
    )  # fmt: skip
    first = run(*command)
    rows = [line.split("|")[1].strip() for line in first.stdout.splitlines() if line.startswith("| ")]
    trained = ["contrastive", "cyclip", "contrastive, from scratch", "cyclip, from scratch"]
    assert rows == ["method", "aligned", "cyclic, always", "cyclic", *trained]
    assert (work / "table.md").read_text().strip() == first.stdout.strip()
    held: list[str] = []
    for fold in range(5):
        folder = work / f"seed-1-fold-{fold}"
        with (folder / "fold.csv").open() as file:
            listed = list(csv.DictReader(file))
        patients = [{row["patient"] for row in listed if row["split"] == split} for split in ("train", "test")]
        assert not patients[0] & patients[1]
        held += patients[1]
        results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        assert len(results) == 2 * 2 * 3 + 2 * 4  # two draws and two shares; one draw is trained
        whole = {row["method"]: row["r10"] for row in results if row["share"] == 1 and row["draw"] == 5}
        assert whole["aligned"] == whole["cyclic"] == whole["cyclic, always"]  # nothing is unpaired
    assert len(held) == len(set(held))
    done = {path: path.stat().st_mtime_ns for path in work.glob("*/results.jsonl")}
    assert run(*command).stdout == first.stdout
    assert done == {path: path.stat().st_mtime_ns for path in work.glob("*/results.jsonl")}


@pytest.mark.slow
def test_more_unpaired_prints_a_line_for_each_number_of_unpaired_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNT", "400")
    monkeypatch.setenv("DRAWS", "7")
    command = (EXAMPLES / "more_unpaired.sh", tmp_path / "work")
    first = run(*command)
    lines = [line.split("\t") for line in first.stdout.splitlines()]
    assert [line[0] for line in lines] == ["unpaired", "1 ×", "4 ×", "16 ×", "16 × and more"]
    assert all(0 < float(figure) <= 100 for line in lines[1:] for figure in line[2:] if figure)
    assert run(*command).stdout == first.stdout
