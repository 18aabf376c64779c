"""Whether a run may begin or go on in a folder, and its saved state taken up again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.config import OPERATION, TrainConfig, as_plain, read_run_file
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report
from cyclic_cli.storage.checkpoint import Checkpoint
from cyclic_cli.storage.run import RunFolder
from cyclic_cli.training.checkpointing import RunProgress

SOURCES = ("dataset", "also", "init_from")  # by their fingerprints


def check_resume(folder: RunFolder, resume: str) -> None:
    """Refuse a run that exists, or one without state, as `--resume` says. Raises CyclicError."""
    registry.check(resume, ("never", "auto", "must"), "choice of --resume")
    if resume == "never" and folder.exists():
        raise CyclicError(
            f"The run {folder.folder} exists.",
            "Add --resume auto to continue it, or name another one with --out.",
        )
    if folder.is_foreign():
        raise CyclicError(f"{folder.folder} exists and is no run.", "Name another --out.")
    if resume == "must" and not folder.states():
        raise CyclicError(f"The run {folder.folder} has no saved state.", "Start it with --resume auto.")


def as_before(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """What the hardware chose at the start of a run holds for its whole length, on whatever it goes on."""
    before = read_run_file(folder.config) if folder.config.exists() else {}
    device, precision = (str(before.get(name, "auto")) for name in ("device", "precision"))
    return replace(
        config,
        device=device if config.device == "auto" else config.device,
        precision=precision if config.precision == "auto" else config.precision,
    )


def refuse_other_run(folder: RunFolder, config: TrainConfig, fingerprints: dict[str, Any]) -> None:
    """Raise CyclicError, with what differs, when a folder holds a run of other settings or data."""
    before = read_run_file(folder.config)
    now = described(config, fingerprints)
    names = [*now, *(name for name in SOURCES if name in before and name not in now)]
    different = [name for name in names if before.get(name) != now.get(name) and name not in OPERATION]
    if different:
        values = [[_shown(name, table.get(name)) for table in (before, now)] for name in different[:4]]
        shown = "; ".join(
            f"{name}: {there} there, {here} here" for name, (there, here) in zip(different, values, strict=False)
        )
        hint = "The length of a run cannot be changed; name" if different == ["epochs"] else "Name"
        raise CyclicError(f"The run {folder.folder} is another one ({shown}).", f"{hint} another one with --out.")


def _shown(name: str, value: Any) -> str:
    if name in SOURCES and value:
        return f"one with the fingerprint {value}"
    return "auto" if value is None else str(value)


def described(config: TrainConfig, fingerprints: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.yaml`: every setting, and the datasets by their fingerprints."""
    return {**as_plain(config), **fingerprints}


def newest_whole_state(folder: RunFolder, report: Report) -> Path | None:
    """The newest saved state that is not damaged; damaged ones are named. None where there never was one.

    Raises:
        CyclicError: all are damaged.
    """
    states = folder.states()
    for state in reversed(states):
        try:
            saved = folder.load_state(state)
            RunProgress(**saved[2])
        except (CyclicError, TypeError):
            report(Note(f"the saved state {state} is damaged, the one before it is taken", warning=True))
        else:
            return state
    if states:
        raise CyclicError(
            f"Every saved state of {folder.folder} is damaged.", "Name another --out, or remove the run to begin again."
        )
    return None


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, what differs between the environments of two attempts; empty when nothing does."""
    names = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name} {before[name]} → {now[name]}" for name in names)


def restore(
    ranks: Ranks, module: nn.Module, optimizer: Any, saved: tuple[Checkpoint, dict[str, np.ndarray], dict[str, Any]],
    form: torch.memory_format,
) -> RunProgress:  # fmt: skip
    """Take up a saved state in every process; tensors get the memory format of the model."""
    checkpoint, arrays, progress = saved
    ranks.load_weights(module, {name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
    torch.set_rng_state(torch.from_numpy(arrays.pop("random.torch")))
    state: dict[int, dict[str, Tensor]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition(".")
        tensor = torch.from_numpy(array.copy())
        state.setdefault(int(number), {})[name] = tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor
    ranks.load_moments(module, optimizer, state)
    return RunProgress(**progress)
