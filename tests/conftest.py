"""Makers of small inputs, and a `cyclic` that runs commands as a user would, in an empty folder of its own."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TERMINAL_WIDTH"] = "100"  # Typer's help is stable
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share two cores; bits depend on the count

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from typer.testing import CliRunner

from cyclic_cli import images
from cyclic_cli.cli import app
from cyclic_cli.config import PrepareConfig, Preprocessing, TrainConfig
from cyclic_cli.prepare import prepare


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's folders, data set or model."""
    for name in ("CYCLIC_DATASET", "CYCLIC_MODEL", "CYCLIC_SALT", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("CYCLIC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@dataclass
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def cyclic() -> Callable[..., Ran]:
    """`cyclic("train", "--arch", "conv")` in this process; a bug's traceback fails the test."""

    def run(*words: str | Path, stdin: str | bytes | None = None) -> Ran:
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def smooth_image(seed: int, height: int = 80, width: int = 64) -> np.ndarray:
    """A picture (H, W) uint8 with large soft shapes, another one for every seed."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    total = 0.3 * x + 0.2 * y
    for _ in range(4):
        cy, cx, size, strength = generator.uniform([0.2, 0.2, 0.05, 0.3], [0.8, 0.8, 0.3, 1.0])
        total = total + strength * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / size**2)
    total = (total - total.min()) / (total.max() - total.min())
    return np.rint(total * 255).astype(np.uint8)


def make_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def fitted(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """The sample (1, S, S) that a file's first selected frame becomes."""
    return images.fit(images.read(path.read_bytes(), preprocessing), preprocessing)


def make_dicom(
    path: Path, pixels: np.ndarray, bits: int = 12, syntax: str = "1.2.840.10008.1.2.1", **header: Any
) -> Path:
    """A minimal DICOM file. `pixels` (H, W), (frames, H, W) or (H, W, 3), integers; further attributes by keyword."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.MediaStorageSOPClassUID = header.pop("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = header.pop("SOPInstanceUID", f"2.25.{abs(hash(str(path)))}")
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = min(bits, dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for name, value in header.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


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


SIDES = ("left", "right", "upper", "lower", "no")
WORDINGS = ("There is {} disc.", "{} bright disc is seen.", "Impression: {} disc.", "Disc: {}. Lungs clear.")


def disc_image(seed: int, side: int) -> np.ndarray:
    """A soft picture (32, 32) uint8 with a bright disc at one of four places of `SIDES`, or without one."""
    y, x = np.mgrid[0:32, 0:32]
    centres = ((16, 8), (16, 24), (8, 16), (24, 16))
    picture = 0.5 * smooth_image(seed, 32, 32).astype(float)
    if side < len(centres):
        down, across = centres[side]
        picture += 120 * (np.hypot(y - down, x - across) < 5)
    return np.clip(picture, 0, 255).astype(np.uint8)


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
    from cyclic_cli.training import train  # here: most tests need no torch

    folder = tmp_path_factory.mktemp("runs") / "joint"
    settings: dict[str, Any] = {"arch": "linear", "model": {"latent": 32}, "embedding": 16, "epochs": 1}
    train(paired_dataset, folder, TrainConfig(objective="contrastive", objectives={"contrastive": 1}, **settings))
    return folder
