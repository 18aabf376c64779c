"""`cyclic reconstruct`: reconstruct scans with one or several models, and measure the error of each.

Scans are read as `prepare` reads them, with the preprocessing of the models' checkpoints. Every model reconstructs the
same batch of pixels before the next one is read, so that memory use does not grow with the number of scans.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli import registry
from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError, InputError, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.imaging import figures, readers
from cyclic_cli.imaging.figures import Decoded
from cyclic_cli.imaging.guesses import count_guesses
from cyclic_cli.inference.names import distinct
from cyclic_cli.metrics.reconstruction import mse, psnr, ssim
from cyclic_cli.prepare.sources import Input, expand, printable
from cyclic_cli.prepare.texts import base_name
from cyclic_cli.storage.files import write_array, write_bytes

if TYPE_CHECKING:
    from cyclic_cli.inference.load import Model

FORMS = ("png", "npy")
BATCH = 16
SHEET_SCANS = 24  # rows of a contact sheet, at most


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One scan, reconstructed by one model.

    Errors are of intensities in [0, 1], over the image area without letterbox.
    """

    source: str
    output: str
    model: str
    mse: float
    psnr: float | None  # dB; None where the reconstruction equals the scan
    ssim: float | None  # None where the image area is smaller than the window of SSIM


@dataclass
class ReconstructSummary:
    """Totals of `cyclic reconstruct`, complete after the last scan. inputs = used + skipped + rejected.

    `models` holds for each model its `checkpoint`, and `mse`, `psnr` and `ssim` as means over the scans where they are
    defined.
    """

    inputs: int = 0
    used: int = 0
    skipped: int = 0
    rejected: int = 0
    guessed: dict[str, int] = field(default_factory=dict)  # scans by the key of `guesses.GUESSES`
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


class _Mean:
    """A running mean; None before the first value."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self._total += value
            self._count += 1

    @property
    def value(self) -> float | None:
        return self._total / self._count if self._count else None


def reconstruct_scans(
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
    """Reconstruct scans with each model, and write pictures that show originals too (png), or arrays (npy).

    Args:
        sources: Files, folders and patterns, as `prepare` takes them.
        models: The models by name, all with the same preprocessing (see `load_models`).
        out: The folder of the outputs.
        summary: Its totals grow with the scans.
        form: png (per scan one picture: original, reconstructions, differences) or npy (per scan and model one array
            (H, W) float32 in [0, 1], without letterbox; with several models in a folder for each).
        overwrite: Whether existing outputs may be replaced.
        paths: Whether scans are named by their path; else by a running number.
        sheet: Where to write one picture of the first 24 scans.
        report: Gets Progress and Note events.

    Raises:
        UsageError: the sheet is not a `.png` file.
        CyclicError: a model has no decoder; an output exists, or cannot be written.
    """
    registry.check(form, FORMS, "output form")
    for model in models.values():
        model.require(decoders=True)
    inputs = expand(sources, out)
    outputs = _Outputs(inputs, list(models), out, form, paths)
    outputs.check_free(sheet, overwrite)
    means = {name: {figure: _Mean() for figure in ("mse", "psnr", "ssim")} for name in models}
    sheet_rows: list[np.ndarray] = []
    for first in range(0, len(inputs), BATCH):
        chosen = range(first, min(first + BATCH, len(inputs)))
        names = {number: inputs[number].given if paths else str(number + 1) for number in chosen}
        scans = dict(read_scans(inputs, names, next(iter(models.values())).preprocessing, summary, report))
        for number, original, decoded in _decoded(scans, models):
            files = outputs.write(number, original, decoded)
            if sheet and len(sheet_rows) < SHEET_SCANS:
                sheet_rows.append(figures.sheet_row(f"scan {number + 1}", original, decoded))
            summary.used += 1
            for result in _results(names[number], files, decoded):
                for figure, mean in means[result.model].items():
                    mean.add(getattr(result, figure))
                yield result
        report(Progress(chosen.stop, len(inputs), "scans"))
    summary.models = {
        name: {"checkpoint": str(models[name].path)} | {figure: mean.value for figure, mean in of_model.items()}
        for name, of_model in means.items()
    }
    if sheet and sheet_rows:
        write_bytes(sheet, figures.sheet(list(models), sheet_rows))
        if summary.used > len(sheet_rows):
            report(Note(f"{printable(sheet)} shows the first {len(sheet_rows)} of {summary.used} scans"))


class _Outputs:
    """The output files: one picture per scan (png), or one array per scan and model (npy)."""

    def __init__(self, inputs: list[Input], models: list[str], out: Path, form: str, paths: bool) -> None:
        self._form = form
        self._names = _output_names(inputs, form, paths)
        self._folders = {name: out / name if form == "npy" and len(models) > 1 else out for name in models}

    def check_free(self, sheet: Path | None, overwrite: bool) -> None:
        """Raise an error when an output exists, or the contact sheet is not a PNG."""
        if sheet and sheet.suffix.lower() != ".png":
            raise UsageError(f"The sheet {sheet} is not a .png file.", "Name it with .png, such as --sheet sheet.png.")
        files = {folder / name for folder in self._folders.values() for name in self._names}
        taken = sorted(path for path in {*files, *([sheet] if sheet else [])} if path.exists())
        if taken and not overwrite:
            raise CyclicError(
                f"{len(taken)} outputs exist already, such as {taken[0]}.",
                "Add --overwrite, or name others with --out and --sheet.",
            )

    def write(self, number: int, original: np.ndarray, decoded: list[Decoded]) -> dict[str, Path]:
        """Write the outputs of a scan, and return the file of each model; as png they share one picture."""
        files = {name: folder / self._names[number] for name, folder in self._folders.items()}
        if self._form == "npy":
            for one in decoded:
                write_array(files[one.model], one.pixels)
        else:
            write_bytes(files[decoded[0].model], figures.comparison(original, decoded))
        return files


def _output_names(inputs: list[Input], form: str, paths: bool) -> list[str]:
    """A distinct file name for each input: inputs of the same name get the names of their folders in front."""
    if not paths:
        return [f"{number:06d}.{form}" for number in range(1, len(inputs) + 1)]
    bases = [base_name(Path(item.name)) for item in inputs]
    return [f"{name}.{form}" for name in distinct(bases, [Path(item.source).parts[:-1] for item in inputs])]


def read_scans(
    inputs: list[Input],
    names: dict[int, str],
    preprocessing: Preprocessing,
    summary: ReconstructSummary,
    report: Report,
) -> Iterator[tuple[int, tuple[np.ndarray, tuple[slice, slice]]]]:
    """Read the scans of a batch: for each usable one its number, fitted pixels (1, S, S) and image area.

    The other inputs are counted, and reported with the reason.
    """
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
        count_guesses(summary.guessed, picture.guesses)
        area = readers.image_area(picture.facts.height, picture.facts.width, preprocessing.size)
        yield number, (readers.fit(picture, preprocessing), area)


def _decoded(
    scans: dict[int, tuple[np.ndarray, tuple[slice, slice]]], models: "dict[str, Model]"
) -> Iterator[tuple[int, np.ndarray, list[Decoded]]]:
    """For each scan of a batch its number, its original (H, W) in [0, 1] without letterbox, and all reconstructions."""
    if not scans:
        return
    fitted = np.stack([pixels for pixels, _ in scans.values()])
    reconstructed = {name: model.reconstruct(fitted) for name, model in models.items()}
    for place, (number, (pixels, area)) in enumerate(scans.items()):
        original = readers.as_float(pixels)[0][area]
        yield number, original, [_measured(name, original, of[place, 0][area]) for name, of in reconstructed.items()]


def _measured(model: str, original: np.ndarray, decoded: np.ndarray) -> Decoded:
    decibels, similarity = psnr(original, decoded), ssim(original, decoded)
    return Decoded(
        model=model, pixels=decoded, mse=mse(original, decoded),
        psnr=decibels if np.isfinite(decibels) else None, ssim=similarity if np.isfinite(similarity) else None,
    )  # fmt: skip


def _results(source: str, files: dict[str, Path], decoded: list[Decoded]) -> Iterator[Reconstruction]:
    for one in decoded:
        yield Reconstruction(
            source=source, output=printable(files[one.model]), model=one.model,
            mse=one.mse, psnr=one.psnr, ssim=one.ssim,
        )  # fmt: skip
