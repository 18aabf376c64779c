"""The examples run as documented. These tests are slow, and run on request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cyclic_cli.config import PRESETS
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
def test_few_pairs_writes_a_table_and_a_plot_and_reuses_finished_runs(paired_dataset: Path, tmp_path: Path) -> None:
    command = (
        EXAMPLES / "few_pairs.sh", paired_dataset, "--split", "val", "--work", tmp_path / "few", "--fractions", 0.5, 1,
        "--seeds", 2, "--steps", 2, "--set", "arch=linear", "--set", "model.latent=32", "--set", "batch_size=32",
    )  # fmt: skip
    first = run(*command)
    rows = [line.split("|")[1].strip() for line in first.stdout.splitlines() if line.startswith("| c")]
    assert rows[:5] == [
        "contrastive", "contrastive from autoencoders", "cyclip", "cyclic", "cyclic without cycle terms",
    ]  # fmt: skip
    assert (tmp_path / "few" / "few_pairs.png").stat().st_size > 10_000
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "few").glob("*seed*.json")}
    others = len(PRESETS["cyclic"]) - 1  # without `walk`, since it is the only cycle term
    assert len(done) == 2 + 2 * 2 * (5 + others)
    assert run(*command).stdout == first.stdout
    assert done == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "few").glob("*seed*.json")}
