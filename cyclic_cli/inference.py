"""A trained model at work on files: `cyclic reconstruct`.

Scans are read exactly as `prepare` reads them, fitted as the model's checkpoint says, and reconstructed one
batch at a time; memory does not grow with their number.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cyclic_cli import images, metrics, panels, registry, storage
from cyclic_cli.config import Preprocessing, build
from cyclic_cli.errors import CyclicError, InputError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.sources import Input, expand, printable
from cyclic_cli.text import base_name

PACKAGED_MODEL = Path(__file__).parent / "assets" / "default.safetensors"
FORMS = ("png", "npy")
BATCH = 16


class TorchModel:
    """A checkpoint, rebuilt with torch on the CPU or on CUDA."""

    def __init__(self, path: Path, device: str = "auto") -> None:
        """Raises CyclicError when the checkpoint is damaged, does not fit its architecture, or CUDA is not there."""
        import torch

        from cyclic_cli.distributed import resolve, use_available_threads

        use_available_threads()
        self._device = torch.device(resolve(device, "32")[0])
        checkpoint = storage.read_checkpoint(path)
        self.preprocessing: Preprocessing = checkpoint.preprocessing
        self.fingerprint = checkpoint.fingerprint
        architecture = registry.load("models", checkpoint.architecture["name"], "architecture")
        config = build(architecture.Config, checkpoint.architecture["config"], str(path))
        try:
            self._model = architecture.Model(config, tuple(checkpoint.architecture["image_shape"]))
            self._model.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
        except (ValueError, RuntimeError) as error:
            raise CyclicError(f"{path} does not fit the architecture it names.", "Train the model again.") from error
        self._model.to(self._device).eval()

    def reconstruct(self, fitted: np.ndarray) -> np.ndarray:
        """Images (N, C, H, W) uint8 or uint16 → reconstructions (N, C, H, W) float32 in [0, 1]."""
        import torch

        with torch.inference_mode():
            image = torch.from_numpy(images.as_float(fitted)).to(self._device)
            output: np.ndarray = self._model(image)["reconstruction"].float().clamp(0, 1).cpu().numpy()
        return output


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One scan, reconstructed. Errors are over the image area, without letterbox, of intensities in [0, 1]."""

    source: str
    output: str
    mse: float
    psnr: float | None  # dB; None where the reconstruction equals the scan
    ssim: float | None  # None where the image area is smaller than the window of SSIM


@dataclass
class ReconstructSummary:
    """The totals of `cyclic reconstruct`, complete when the last scan is done. inputs = used + skipped + rejected."""

    model: str
    inputs: int = 0
    used: int = 0
    skipped: int = 0
    rejected: int = 0


def reconstruct(
    sources: list[Path],
    model: TorchModel,
    out: Path,
    summary: ReconstructSummary,
    form: str = "png",
    overwrite: bool = False,
    paths: bool = True,
    report: Report = silent,
) -> Iterator[Reconstruction]:
    """Reconstruct scans and write each as a picture beside its original (png) or as an array (npy).

    Args:
        sources: Files, folders and patterns, as `prepare` takes them.
        model: What reconstructs.
        out: The folder of the outputs.
        summary: Counts up as scans are done.
        form: png (original, reconstruction, difference) or npy ((H, W) float32 in [0, 1], without letterbox).
        overwrite: Whether an output of that name may be replaced.
        paths: Name scans by their path; else by a running number.
        report: Gets Progress and Note events.

    Raises:
        CyclicError: an output exists, or cannot be written.
    """
    registry.check(form, FORMS, "output form")
    inputs = expand(sources, out)
    outputs = _output_names(inputs, out, form, paths)
    taken = [path for path in outputs if path.exists()]
    if taken and not overwrite:
        raise CyclicError(
            f"{len(taken)} outputs exist already, such as {taken[0]}.",
            "Add --overwrite or name another --out.",
        )
    for first in range(0, len(inputs), BATCH):
        chosen = range(first, min(first + BATCH, len(inputs)))
        names = {number: inputs[number].given if paths else str(number + 1) for number in chosen}
        read = dict(_read(inputs, names, model.preprocessing, summary, report))
        if read:
            fitted = np.stack([pixels for pixels, _ in read.values()])
            reconstructed = model.reconstruct(fitted)
            for number, original, decoded in zip(read, images.as_float(fitted), reconstructed, strict=True):
                area = read[number][1]
                yield _written(names[number], outputs[number], original[0][area], decoded[0][area], form)
                summary.used += 1
        report(Progress(chosen.stop, len(inputs), "scans"))


def _read(
    inputs: list[Input],
    names: dict[int, str],
    preprocessing: Preprocessing,
    summary: ReconstructSummary,
    report: Report,
) -> Iterator[tuple[int, tuple[np.ndarray, tuple[slice, slice]]]]:
    """The usable scans of a batch: number, fitted pixels (1, S, S), image area. The others are named and counted."""
    for number, name in names.items():
        summary.inputs += 1
        try:
            picture = images.read(inputs[number].read(), preprocessing)
        except InputError as error:
            rejected = hasattr(error, "reason")
            summary.rejected += rejected
            summary.skipped += not rejected
            report(Note(f"{name}: {error.message}", warning=True))
            continue
        area = images.image_area(picture.facts.height, picture.facts.width, preprocessing.size)
        yield number, (images.fit(picture, preprocessing), area)


def _written(source: str, output: Path, original: np.ndarray, decoded: np.ndarray, form: str) -> Reconstruction:
    """Write one output, and measure it: original and decoded (H, W) in [0, 1], without letterbox."""
    error, decibels = metrics.mse(original, decoded), metrics.psnr(original, decoded)
    similarity = metrics.ssim(original, decoded)
    result = Reconstruction(
        source=source, output=printable(output), mse=error,
        psnr=decibels if np.isfinite(decibels) else None, ssim=similarity if np.isfinite(similarity) else None,
    )  # fmt: skip
    if form == "png":
        storage.write_bytes(output, panels.comparison(original, decoded, result.mse, result.psnr, result.ssim))
    else:
        storage.write_array(output, decoded)
    return result


def _output_names(inputs: list[Input], out: Path, form: str, paths: bool) -> list[Path]:
    """One output path an input, no two the same: where scans share a name, their folders' names go before it."""
    bases = [base_name(Path(item.name)) for item in inputs]
    counts = Counter(bases)
    names: list[Path] = []
    taken: set[str] = set()
    for number, (item, base) in enumerate(zip(inputs, bases, strict=True), 1):
        if not paths:
            base = f"{number:06d}"
        elif counts[base] > 1:
            base = "-".join((*Path(item.source).parts[:-1], base))
        name, copy = f"{base}.{form}", 1
        while name in taken:  # the same folders under two sources
            copy += 1
            name = f"{base}-{copy}.{form}"
        taken.add(name)
        names.append(out / name)
    return names


def find_model(named: Path | None) -> tuple[Path, str]:
    """The checkpoint to use and, where it was not named, a word on which it is.

    Order: `--model`, `$CYCLIC_MODEL`, `runs/latest`, the model that comes with the package.
    """
    if named is not None:
        return storage.find_checkpoint(named), ""
    if os.environ.get("CYCLIC_MODEL"):
        return storage.find_checkpoint(Path(os.environ["CYCLIC_MODEL"])), ""
    latest = Path("runs/latest")
    if latest.is_dir():
        return storage.find_checkpoint(latest), f"model: runs/latest, which is {latest.resolve().name}"
    return PACKAGED_MODEL, "model: the one that comes with the package (chest radiographs and phantoms)"
