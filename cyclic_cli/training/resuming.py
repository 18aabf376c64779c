"""Decides whether a run may begin or continue in a folder, and restores its saved state."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.config import OPERATION, TrainConfig, as_plain, read_run_file
from cyclic_cli.data.mixture import Modality
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report
from cyclic_cli.storage.checkpoint import Checkpoint, read_checkpoint
from cyclic_cli.storage.run import RunFolder
from cyclic_cli.training.closed_form import open_encoders
from cyclic_cli.training.gradients import layout
from cyclic_cli.training.learner import Learner
from cyclic_cli.training.progress import RunProgress, changes, environment
from cyclic_cli.training.setup import Network
from cyclic_cli.training.sources import Sources

SOURCES = ("dataset", "also", "init_from", "encoders")  # entries of config.yaml that hold fingerprints

# ------------------------------------------------------------------------------------- may it begin or continue?


def check_resume(folder: RunFolder, resume: str) -> None:
    """Raise CyclicError when `--resume` does not allow what the folder holds: an existing run, or one without state."""
    registry.check(resume, ("never", "auto", "must"), "choice of --resume")
    if resume == "never" and folder.exists():
        raise CyclicError(
            f"The run {folder.folder} exists.",
            "Add --resume auto to continue it, or name another one with --out.",
        )
    if folder.is_foreign():
        raise CyclicError(f"{folder.folder} exists and is not a run.", "Name another --out.")
    if resume == "must" and not folder.states():
        raise CyclicError(f"The run {folder.folder} has no saved state.", "Start it with --resume auto.")


def as_before(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """The settings of a resumed run, with `auto` resolved as in its first attempt, whatever the hardware is now."""
    before = read_run_file(folder.config) if folder.config.exists() else {}
    device, precision = (str(before.get(name, "auto")) for name in ("device", "precision"))
    return replace(
        config,
        device=device if config.device == "auto" else config.device,
        precision=precision if config.precision == "auto" else config.precision,
    )


def refuse_other_run(folder: RunFolder, config: TrainConfig, sources: Sources) -> None:
    """Raise CyclicError, naming the differences, when a folder holds a run of other settings, data or encoders."""
    before = _completed(read_run_file(folder.config))
    now = described(config, sources.fingerprints | _encoders(before.get("encoders"), config, sources))
    names = [*now, *(name for name in SOURCES if name in before and name not in now)]
    different = [name for name in names if before.get(name) != now.get(name) and name not in OPERATION]
    if different:
        shown = "; ".join(
            f"{name}: {_shown(name, before.get(name))} there, {_shown(name, now.get(name))} here"
            for name in different[:4]
        )
        hint = "The length of a run cannot be changed; name" if different == ["epochs"] else "Name"
        raise CyclicError(f"The folder {folder.folder} holds another run ({shown}).", f"{hint} another one with --out.")


def _encoders(before: Any, config: TrainConfig, sources: Sources) -> dict[str, Any]:
    """The entry `encoders` of `config.yaml` as it would be written now.

    A run keeps its encoders. So those that can no longer be opened at their paths are taken to be the same.

    Args:
        before: The entry of the run in the folder; None: it has no pretrained encoders.
    """
    if not before:
        return {}
    found = {}
    for name, table in config.modalities.items():
        try:
            opened = open_encoders(name, Modality.of(name, table).config, sources.dataset.image_shape)
        except CyclicError:
            found[name] = before.get(name, [])
        else:
            found[name] = [one.facts.fingerprint for one in opened]
    return {"encoders": {name: some for name, some in found.items() if some}}


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of `config.yaml`, with the defaults of those that an earlier version did not have."""
    if settings.get("objective", TrainConfig.objective) in ("autoencode", "views"):  # no image–text model
        return {"start": TrainConfig.start} | settings
    tables = {name: asdict(Modality.of(name, table).config) for name, table in settings["modalities"].items()}
    return {"start": "data"} | settings | {"modalities": tables}


def _shown(name: str, value: Any) -> str:
    if name in SOURCES and value:
        return f"one with the fingerprint {value}"
    return "auto" if value is None else str(value)


def described(config: TrainConfig, fingerprints: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.yaml`: every setting, and the fingerprints of the sources."""
    return {**as_plain(config), **fingerprints}


# ------------------------------------------------------------------------------------------ restore a saved state


def newest_whole_state(folder: RunFolder, report: Report) -> Path | None:
    """The newest saved state that is not damaged, after a warning for each damaged one. None without saved states.

    Raises:
        CyclicError: all are damaged.
    """
    states = folder.states()
    for state in reversed(states):
        try:
            saved = folder.load_state(state)
            RunProgress(**saved[2])
        except (CyclicError, TypeError):
            report(Note(f"the saved state {state} is damaged, the one before it is used", warning=True))
        else:
            return state
    if states:
        raise CyclicError(
            f"Every saved state of {folder.folder} is damaged.", "Name another --out, or remove the run to begin again."
        )
    return None


def resume_state(
    ranks: Ranks, folder: RunFolder, state: Path, learner: Learner, network: Network, report: Report
) -> tuple[RunProgress, bool]:
    """Continue from a saved state: weights, optimizer, random numbers, progress, and the metrics up to it.

    Returns:
        The progress, and whether the environment differs from that of the attempt before.
    """
    saved, plan = folder.load_state(state), network.plan
    progress = restore(ranks, learner.module, network.optimizer, saved, layout(plan))
    report(Note(f"resuming at step {progress.step} of {learner.steps}"))
    differences = changes(progress.environment, environment(plan))
    if differences:
        progress.changed = True
        report(Note(f"results may differ from those of an uninterrupted run by rounding: {differences}"))
    progress.environment = environment(plan)
    progress.attempt += 1
    if ranks.is_main:
        folder.cut_metrics(progress.metrics_size)
        _check_best(folder, progress, report)
    return progress, bool(differences)


def restore(
    ranks: Ranks, module: nn.Module, optimizer: Any, saved: tuple[Checkpoint, dict[str, np.ndarray], dict[str, Any]],
    memory_format: torch.memory_format,
) -> RunProgress:  # fmt: skip
    """Load a saved state in every process. Tensors of four dimensions get the memory format of the model."""
    checkpoint, arrays, progress = saved
    ranks.load_weights(module, {name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
    torch.set_rng_state(torch.from_numpy(arrays.pop("random.torch")))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition(".")
        tensor = torch.from_numpy(array.copy())
        tensor = tensor.contiguous(memory_format=memory_format) if tensor.dim() == 4 else tensor
        moments.setdefault(int(number), {})[name] = tensor
    ranks.load_moments(module, optimizer, moments)
    return RunProgress(**progress)


def _check_best(folder: RunFolder, progress: RunProgress, report: Report) -> None:
    """Forget a best checkpoint whose file is missing or damaged. The next epoch then gives the best one."""
    if not progress.epochs_done:
        return
    try:
        read_checkpoint(folder.best)
    except CyclicError:
        folder.best.unlink(missing_ok=True)
        report(Note(f"{folder.best} is damaged or missing; a later checkpoint replaces it", warning=True))
        progress.val = {}
