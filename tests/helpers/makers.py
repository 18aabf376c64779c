"""Small inputs for tests, and the results of commands."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset

from cyclic_cli.config import Preprocessing
from cyclic_cli.imaging import readers
from cyclic_cli.storage.checkpoint import Checkpoint


@dataclass
class Ran:
    """The result of a finished command: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def smooth_image(seed: int, height: int = 80, width: int = 64) -> np.ndarray:
    """An image (H, W) uint8 of smooth shapes; each seed gives another image."""
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
    """The preprocessed first frame (1, S, S) of a file."""
    return readers.fit(readers.read(path.read_bytes(), preprocessing), preprocessing)


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


SIDES = ("left", "right", "upper", "lower", "no")
WORDINGS = ("There is {} disc.", "{} bright disc is seen.", "Impression: {} disc.", "Disc: {}. Lungs clear.")


def disc_image(seed: int, side: int) -> np.ndarray:
    """A smooth image (32, 32) uint8 with a bright disc at the place with index `side` in `SIDES`; 4 means no disc."""
    y, x = np.mgrid[0:32, 0:32]
    centres = ((16, 8), (16, 24), (8, 16), (24, 16))
    picture = 0.5 * smooth_image(seed, 32, 32).astype(float)
    if side < len(centres):
        down, across = centres[side]
        picture += 120 * (np.hypot(y - down, x - across) < 5)
    return np.clip(picture, 0, 255).astype(np.uint8)


def tiny_checkpoint(weight: float = 1.0) -> Checkpoint:
    """A checkpoint with a single tensor `w` (2, 3), whose values are all `weight`."""
    return Checkpoint(
        weights={"w": np.full((2, 3), weight, np.float32)},
        architecture={"name": "conv", "config": {}, "image_shape": [1, 32, 32]},
        preprocessing=Preprocessing(size=32),
        provenance={"step": 7},
    )
