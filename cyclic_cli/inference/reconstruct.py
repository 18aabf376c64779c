"""Trained models at work on files: `cyclic reconstruct`.

Scans are read exactly as `prepare` reads them, fitted as the models' checkpoints say, and reconstructed one batch at a
time by every model, so that models are compared on the same pixels; memory does not grow with the number of scans.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli import registry
from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError, InputError, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.imaging import figures, readers
from cyclic_cli.imaging.figures import Decoded
from cyclic_cli.metrics import reconstruction as metrics
from cyclic_cli.prepare.sources import Input, expand, printable
from cyclic_cli.prepare.tables import base_name
from cyclic_cli.storage.checkpoint import find_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.files import write_array, write_bytes
from cyclic_cli.storage.run import RunFolder

if TYPE_CHECKING:
    from cyclic_cli.inference.onnx_model import OnnxModel
    from cyclic_cli.inference.torch_model import TorchModel

    Model = TorchModel | OnnxModel

PACKAGED_MODEL = Path(__file__).parents[1] / "assets" / "default.safetensors"
PACKAGED_EXPORT = PACKAGED_MODEL.with_suffix(".onnx")  # the same, for what needs no torch
FORMS = ("png", "npy")
BATCH = 16
SHEET_SCANS = 24  # rows of a contact sheet, at most


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One scan by one model. Errors are over the image area, without letterbox, of intensities in [0, 1]."""

    source: str
    output: str
    model: str
    mse: float
    psnr: float | None  # dB; None where the reconstruction equals the scan
    ssim: float | None  # None where the image area is smaller than the window of SSIM


@dataclass
class ReconstructSummary:
    """The totals of `cyclic reconstruct`, complete when the last scan is done. inputs = used + skipped + rejected.

    `models` has each model's `checkpoint`, and its `mse`, `psnr` and `ssim` as means over the scans that have them.
    """

    inputs: int = 0
    used: int = 0
    skipped: int = 0
    rejected: int = 0
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


class _Mean:
    """A mean that takes one value after another; None before the first."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self._total += value
            self._count += 1

    @property
    def value(self) -> float | None:
        return self._total / self._count if self._count else None


def reconstruct(
    sources: list[Path],
    models: "dict[str, Model]",
    out: Path,
    summary: ReconstructSummary,
    form: str = "png",
    overwrite: bool = False,
    paths: bool = True,
    sheet: Path | None = None,
    report: Report = silent,
) -> Iterator[Reconstruction]:
    """Reconstruct scans with each model, and write them as pictures beside their originals (png) or as arrays (npy).

    Args:
        sources: Files, folders and patterns, as `prepare` takes them.
        models: What reconstructs, by name, of one preprocessing (see `load_models`).
        out: The folder of the outputs.
        summary: Counts up as scans are done.
        form: png (a picture a scan: original, reconstructions, differences) or npy (an array a scan and model, (H, W)
            float32 in [0, 1], without letterbox; of several models in a folder each).
        overwrite: Whether an output of that name may be replaced.
        paths: Name scans by their path; else by a running number.
        sheet: Where to write one picture of the first 24 scans.
        report: Gets Progress and Note events.

    Raises:
        UsageError: the sheet is no `.png`.
        CyclicError: an output exists, or cannot be written.
    """
    registry.check(form, FORMS, "output form")
    for model in models.values():
        model.require(decoders=True)
    inputs = expand(sources, out)
    files = _output_names(inputs, form, paths)
    folders = {name: out / name if form == "npy" and len(models) > 1 else out for name in models}
    _check_outputs({folder / file for folder in folders.values() for file in files}, sheet, overwrite)
    means = {name: {figure: _Mean() for figure in ("mse", "psnr", "ssim")} for name in models}
    rows: list[np.ndarray] = []
    for first in range(0, len(inputs), BATCH):
        chosen = range(first, min(first + BATCH, len(inputs)))
        names = {number: inputs[number].given if paths else str(number + 1) for number in chosen}
        read = dict(read_scans(inputs, names, next(iter(models.values())).preprocessing, summary, report))
        for number, original, decoded in _decoded(read, models):
            outputs = {name: folder / files[number] for name, folder in folders.items()}
            _write(outputs, original, decoded, form)
            if sheet and len(rows) < SHEET_SCANS:
                rows.append(figures.sheet_row(f"scan {number + 1}", original, decoded))
            summary.used += 1
            for one in decoded:
                result = Reconstruction(
                    source=names[number], output=printable(outputs[one.model]),
                    model=one.model, mse=one.mse, psnr=one.psnr, ssim=one.ssim,
                )  # fmt: skip
                for figure, mean in means[one.model].items():
                    mean.add(getattr(result, figure))
                yield result
        report(Progress(chosen.stop, len(inputs), "scans"))
    summary.models = {
        name: {"checkpoint": str(models[name].path)} | {figure: mean.value for figure, mean in figures.items()}
        for name, figures in means.items()
    }
    if sheet and rows:
        write_bytes(sheet, figures.sheet(list(models), rows))
        if summary.used > len(rows):
            report(Note(f"{printable(sheet)} shows the first {len(rows)} of {summary.used} scans"))


def _check_outputs(outputs: set[Path], sheet: Path | None, overwrite: bool) -> None:
    if sheet and sheet.suffix.lower() != ".png":
        raise UsageError(f"The sheet {sheet} is no .png.", "Name it so, such as --sheet sheet.png.")
    taken = sorted(path for path in {*outputs, *([sheet] if sheet else [])} if path.exists())
    if taken and not overwrite:
        raise CyclicError(
            f"{len(taken)} outputs exist already, such as {taken[0]}.",
            "Add --overwrite, or name others with --out and --sheet.",
        )


def read_scans(
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
            picture = readers.read(inputs[number].read(), preprocessing)
        except InputError as error:
            rejected = hasattr(error, "reason")
            summary.rejected += rejected
            summary.skipped += not rejected
            report(Note(f"{name}: {error.message}", warning=True))
            continue
        area = readers.image_area(picture.facts.height, picture.facts.width, preprocessing.size)
        yield number, (readers.fit(picture, preprocessing), area)


def _decoded(
    read: dict[int, tuple[np.ndarray, tuple[slice, slice]]], models: "dict[str, Model]"
) -> Iterator[tuple[int, np.ndarray, list[Decoded]]]:
    """The scans of a batch: number, original (H, W) in [0, 1] without letterbox, what each model makes of it."""
    if not read:
        return
    fitted = np.stack([pixels for pixels, _ in read.values()])
    reconstructed = {name: model.reconstruct(fitted) for name, model in models.items()}
    for place, (number, (pixels, area)) in enumerate(read.items()):
        original = readers.as_float(pixels)[0][area]
        yield number, original, [_measured(name, original, of[place, 0][area]) for name, of in reconstructed.items()]


def _measured(model: str, original: np.ndarray, decoded: np.ndarray) -> Decoded:
    decibels, similarity = metrics.psnr(original, decoded), metrics.ssim(original, decoded)
    return Decoded(
        model=model, pixels=decoded, mse=metrics.mse(original, decoded),
        psnr=decibels if np.isfinite(decibels) else None, ssim=similarity if np.isfinite(similarity) else None,
    )  # fmt: skip


def _write(outputs: dict[str, Path], original: np.ndarray, decoded: list[Decoded], form: str) -> None:
    """Write the outputs of a scan: an array of each model, or one picture, which all models' outputs name."""
    if form == "npy":
        for one in decoded:
            write_array(outputs[one.model], one.pixels)
    else:
        write_bytes(outputs[decoded[0].model], figures.comparison(original, decoded))


def _output_names(inputs: list[Input], form: str, paths: bool) -> list[str]:
    """One file name an input, no two the same: where scans share a name, their folders' names go before it."""
    if not paths:
        return [f"{number:06d}.{form}" for number in range(1, len(inputs) + 1)]
    bases = [base_name(Path(item.name)) for item in inputs]
    return [f"{name}.{form}" for name in _distinct(bases, [Path(item.source).parts[:-1] for item in inputs])]


def _distinct(names: Sequence[str], folders: Sequence[Sequence[str]]) -> list[str]:
    """The names, no two the same: those that are shared get their folders before them, then a number behind."""
    counts = Counter(names)
    distinct: dict[str, None] = {}
    for name, above in zip(names, folders, strict=True):
        longer = "-".join((*above, name)) if counts[name] > 1 else name
        choice, copy = longer, 1
        while choice in distinct:  # the same folders under two sources
            copy += 1
            choice = f"{longer}-{copy}"
        distinct[choice] = None
    return list(distinct)


def load_model(named: Path | None, device: str = "auto", report: Report = silent) -> "Model":
    """A model by ONNX Runtime, of an `.onnx` file or a folder of them, or by torch, of a checkpoint.

    With none named it is `$CYCLIC_MODEL`, else `runs/latest`, else the one that comes with the package; a Note says so.

    Raises:
        CyclicError: it cannot be found or loaded.
    """
    path = find_checkpoint(named) if named else _find(PACKAGED_EXPORT, report)
    if path.suffix == ".onnx" or path.is_dir():
        from cyclic_cli.inference.onnx_model import OnnxModel

        return OnnxModel(path, device)
    from cyclic_cli.inference.torch_model import TorchModel

    return TorchModel(path, device)


def load_checkpoint(named: Path | None, device: str = "auto", report: Report = silent) -> "TorchModel":
    """A model for work that needs torch; with none named as `load_model` takes it.

    Raises:
        UsageError: it is an exported one.
        CyclicError: it cannot be found or loaded.
    """
    from cyclic_cli.inference.torch_model import TorchModel

    path = find_checkpoint(named) if named else _find(PACKAGED_MODEL, report)
    if path.suffix == ".onnx" or path.is_dir():
        raise UsageError(f"{path} is exported; this needs the checkpoint.", "Name a run folder or .safetensors file.")
    return TorchModel(path, device)


def load_models(named: list[Path], device: str = "auto", report: Report = silent) -> "dict[str, Model]":
    """Models by name: their run folder's, or the file's; with none named the one that `load_model` takes.

    Raises:
        UsageError: they see scans differently, so that nothing compares them.
        CyclicError: one cannot be found or loaded.
    """
    checkpoints = [find_checkpoint(path) for path in named] or [_find(PACKAGED_EXPORT, report)]
    places = [_named_after(path) for path in checkpoints]
    names = _distinct([place.name for place in places], [[place.parent.name] for place in places])
    models = {name: load_model(path, device) for name, path in zip(names, checkpoints, strict=True)}
    for model in models.values():
        model.require("image")
    (first, one), *others = models.items()
    for name, other in others:
        known, asked = asdict(one.preprocessing), asdict(other.preprocessing)
        differing = [f"{key} {known[key]} and {asked[key]}" for key in known if known[key] != asked[key]]
        if differing:
            raise UsageError(
                f"The models {first} and {name} see scans differently: {', '.join(differing)}.",
                "Compare models that were trained on one dataset.",
            )
    return models


def check_fits(stored: StoredDataset, model: "Model", report: Report = silent) -> None:
    """Raise UsageError when a model takes images of another size than a dataset has; say what else differs."""
    known, asked = asdict(stored.facts.preprocessing), asdict(model.preprocessing)
    if "image" in model.modalities and known["size"] != asked["size"]:
        raise UsageError(
            f"The dataset has images of {known['size']} pixels a side, the model takes {asked['size']}.",
            f"Prepare it with --size {asked['size']}.",
        )
    differing = [f"{name} {known[name]} and {asked[name]}" for name in known if known[name] != asked[name]]
    if differing:
        report(Note(f"dataset and model see images differently: {', '.join(differing)}", warning=True))


def _named_after(checkpoint: Path) -> Path:
    """The run folder of a checkpoint, or the file without its suffix where it lies in none."""
    in_run = RunFolder(checkpoint.parent).best == checkpoint
    return (checkpoint.parent if in_run else checkpoint.with_suffix("")).resolve()


def _find(packaged: Path, report: Report) -> Path:
    """The model to use where none is named; `packaged` where there is no other."""
    if os.environ.get("CYCLIC_MODEL"):
        return find_checkpoint(Path(os.environ["CYCLIC_MODEL"]))
    latest = Path("runs/latest")
    if latest.is_dir():
        report(Note(f"model: runs/latest, which is {latest.resolve().name}"))
        return find_checkpoint(latest)
    report(Note("model: the one that comes with the package (chest radiographs and phantoms)"))
    return packaged
