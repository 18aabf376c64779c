"""Decides whether a run may begin or continue in a folder, and restores its saved state."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
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
from cyclic_cli.pretrained.find import is_missing
from cyclic_cli.storage.checkpoint import Checkpoint, read_checkpoint
from cyclic_cli.storage.run import RunFolder
from cyclic_cli.training.closed_form import encoder_paths, open_encoders
from cyclic_cli.training.gradients import layout
from cyclic_cli.training.learner import Learner
from cyclic_cli.training.progress import RunProgress, changes, environment
from cyclic_cli.training.setup import Network
from cyclic_cli.training.sources import Sources

SOURCES = ("dataset", "also", "init_from", "encoders")  # entries of config.yaml that hold fingerprints
SHOWN = 8  # digits of an encoder's fingerprint

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


class NamedEncoders:
    """The pretrained encoders that the settings of a run name. They are read once, when somebody asks for them."""

    def __init__(self, config: TrainConfig, image_shape: tuple[int, int, int]) -> None:
        """`image_shape` (C, H, W) is that of the dataset."""
        self._config, self._image_shape = config, image_shape

    def fingerprints(self, before: dict[str, Any]) -> dict[str, list[str]]:
        """The entry `encoders` of `config.yaml` as it would be written now.

        A run keeps its encoders. So those that are gone from the paths that the run names are taken to be the same.

        Args:
            before: The settings of the run in the folder.

        Raises:
            CyclicError: An encoder cannot be used, or is missing at a path that the run does not name.
        """
        entry = {}
        for name, (found, missing, config) in self._found.items():
            known = before["encoders"].get(name, [])
            if missing:
                if encoder_paths(before["modalities"].get(name, {}).get("encoder")) != encoder_paths(config.encoder):
                    open_encoders(name, replace(config, encoder=missing), self._image_shape)  # says which is missing
                found = known if set(found) <= set(known) else found
            if found:
                entry[name] = found
        return entry

    @cached_property
    def _found(self) -> dict[str, tuple[list[str], tuple[str, ...], Any]]:
        """By modality, the fingerprints of the encoders that are at their paths, the other paths, and the settings."""
        entry = {}
        for name, table in self._config.modalities.items():
            config = Modality.of(name, table).config
            missing = tuple(filter(is_missing, encoder_paths(config.encoder)))
            there = tuple(path for path in encoder_paths(config.encoder) if path not in missing)
            opened = open_encoders(name, replace(config, encoder=there), self._image_shape)
            entry[name] = list(dict.fromkeys(one.facts.fingerprint for one in opened)), missing, config
        return entry


def refuse_other_run(folder: RunFolder, config: TrainConfig, sources: Sources, encoders: NamedEncoders) -> None:
    """Raise CyclicError, naming the differences, when a folder holds a run of other settings, data or encoders.

    Encoders are told by their fingerprints, wherever they lie. `encoders` are those of `config`.
    """
    before = _completed(read_run_file(folder.config))
    now = described(config, sources.fingerprints)
    if before.get("encoders"):
        now["encoders"] = encoders.fingerprints(before)
        before, now = _without_paths(before), _without_paths(now)
    names = [*now, *(name for name in SOURCES if name in before and name not in now)]
    different = [name for name in names if before.get(name) != now.get(name) and name not in OPERATION]
    if different:
        lines = [line for name in different for line in _differences(name, before.get(name), now.get(name))]
        shown = "; ".join(lines[:4])
        hint = "The length of a run cannot be changed; name" if different == ["epochs"] else "Name"
        raise CyclicError(f"The folder {folder.folder} holds another run ({shown}).", f"{hint} another one with --out.")


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.yaml` without the paths of encoders."""
    tables = {
        name: {key: value for key, value in table.items() if key != "encoder"}
        for name, table in settings["modalities"].items()
    }
    return settings | {"modalities": tables}


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of `config.yaml`, with the defaults of those that an earlier version did not have."""
    later = {name: getattr(TrainConfig, name) for name in ("refine", "cycle_rule", "paired_seed")}
    if settings.get("objective", TrainConfig.objective) in ("autoencode", "views"):  # no image–text model
        return later | {"start": TrainConfig.start} | settings
    tables = {name: asdict(Modality.of(name, table).config) for name, table in settings["modalities"].items()}
    return later | {"start": "data"} | settings | {"modalities": tables}


def _differences(name: str, before: Any, now: Any) -> Iterator[str]:
    """Where two values of `config.yaml` differ, for people. Tables are compared setting by setting."""
    if name not in SOURCES and isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            if before.get(key) != now.get(key):
                yield from _differences(f"{name}.{key}", before.get(key), now.get(key))
    else:
        yield f"{name}: {_shown(name, before)} there, {_shown(name, now)} here"


def _shown(name: str, value: Any) -> str:
    if name in SOURCES and not value:
        return "none"
    if name == "encoders":
        return ", ".join(f"{one} {' and '.join(key[:SHOWN] for key in keys)}" for one, keys in value.items())
    if name in SOURCES:
        return f"one with the fingerprint {value if isinstance(value, str) else ' and '.join(value)}"
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
