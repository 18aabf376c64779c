"""Fixtures: an empty folder for every test, a `cyclic` that runs commands as a user would, and small datasets."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TERMINAL_WIDTH"] = "100"  # Typer's help is stable
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores; bits depend on the count

import pytest
from helpers.makers import SIDES, WORDINGS, Ran, disc_image, make_png, smooth_image
from typer.testing import CliRunner

from cyclic_cli.cli import app
from cyclic_cli.config import PrepareConfig, Preprocessing, TrainConfig
from cyclic_cli.prepare.task import prepare


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's folders, dataset or model."""
    for name in ("CYCLIC_DATASET", "CYCLIC_MODEL", "CYCLIC_SALT", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("CYCLIC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def cyclic() -> Callable[..., Ran]:
    """`cyclic("train", "--arch", "conv")` in this process; a bug's traceback fails the test."""

    def run(*words: str | Path, stdin: str | bytes | None = None) -> Ran:
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty PNG files of forty patients (by folder), with a report for every second one."""
    folder = tmp_path_factory.mktemp("tiny") / "files"
    for number in range(40):
        make_png(folder / f"p{number:02d}" / "scan.png", smooth_image(number))
        if number % 2 == 0:
            (folder / f"p{number:02d}" / "scan.txt").write_text(f"Report number {number % 5}.")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_files: Path) -> Path:
    """`tiny_files` prepared at 32 pixels."""
    out = tiny_files.parent / "dataset"
    config = PrepareConfig(
        preprocessing=Preprocessing(size=32), patient_pattern=r"p\d+", already_deidentified=True, split=(0.6, 0.2, 0.2)
    )
    prepare([tiny_files], out, config)
    return out


@pytest.fixture(scope="session")
def paired_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 images of as many patients with a report that says where the disc is, ten without one, at 32 pixels."""
    folder = tmp_path_factory.mktemp("paired") / "files"
    rows = ["path,patient,text,disc"]
    for number in range(160):
        side = number % 5
        make_png(folder / f"{number:03d}.png", disc_image(number, side))
        text = WORDINGS[number * 7 % 4].format(SIDES[side]).capitalize() if number < 150 else ""
        rows.append(f"{number:03d}.png,p{number:03d},{text},{float(side != 4)}")
    (folder / "reports.csv").write_text("\n".join(rows) + "\n")
    config = PrepareConfig(
        preprocessing=Preprocessing(size=32), already_deidentified=True, split=(0.7, 0.3, 0), label_columns=("disc",)
    )
    prepare([folder], folder.parent / "dataset", config, [folder / "reports.csv"])
    return folder.parent / "dataset"


@pytest.fixture(scope="session")
def joint_run(paired_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint model of `paired_dataset`, trained for a moment."""
    from cyclic_cli.training.task import train  # here: most tests need no torch

    folder = tmp_path_factory.mktemp("runs") / "joint"
    settings: dict[str, Any] = {"arch": "linear", "model": {"latent": 32}, "embedding": 16, "epochs": 1}
    train(paired_dataset, folder, TrainConfig(objective="contrastive", objectives={"contrastive": 1}, **settings))
    return folder
