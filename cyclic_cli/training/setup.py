"""Sets a run up: completes its settings, loads its data, and makes, initialises and prepares its model."""

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cyclic_cli import distributed
from cyclic_cli.config import TrainConfig
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Progress, Report
from cyclic_cli.storage.checkpoint import Checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training import alignment, autoencoding, captioning, self_supervised
from cyclic_cli.training.alignment import Alignment
from cyclic_cli.training.autoencoding import Autoencoding
from cyclic_cli.training.captioning import Captioning
from cyclic_cli.training.closed_form import ClosedFormAlignment
from cyclic_cli.training.gradients import Plan, prepare_model
from cyclic_cli.training.learner import Learner, Tick
from cyclic_cli.training.self_supervised import SelfSupervised
from cyclic_cli.training.signals import stopped
from cyclic_cli.training.sources import Sources


@dataclass(frozen=True)
class Network:
    """A model that is ready to train."""

    plan: Plan
    model: Any  # as Fabric wrapped it
    optimizer: Any


def complete_settings(config: TrainConfig, dataset: StoredDataset, initial: Checkpoint | None = None) -> TrainConfig:
    """All settings: None is replaced by the value of the recipe, and `auto` is resolved.

    Raises UsageError when the objective needs an `initial` checkpoint, and this one does not fit.
    """
    device, precision = distributed.resolve(config.device, config.precision)
    samples = int(dataset.facts.counts.get("splits", {}).get("train", 0) * config.fraction)
    if config.objective == "captioning":
        completed = captioning.filled_in(config, samples, initial)
    elif config.is_joint:
        completed = alignment.filled_in(config, samples)
    elif config.objective == "views":
        completed = self_supervised.filled_in(config, samples)
    else:
        completed = autoencoding.filled_in(config)
    return replace(completed, device=device, precision=precision)


def make_learner(ranks: Ranks, sources: Sources, config: TrainConfig, initial_encoders: Path | None = None) -> Learner:
    """Load the data and make the model.

    Args:
        ranks: The processes of the run.
        sources: Its datasets and its initial checkpoint.
        config: Complete settings.
        initial_encoders: The folder of the pretrained encoders of the initial checkpoint.

    Raises:
        UsageError: settings do not fit the objective.
    """
    if config.objective == "captioning":
        if sources.also:
            raise UsageError("--also is for runs that align images and texts.", "Leave it out.")
        assert sources.initial
        assert initial_encoders
        return Captioning(ranks, sources.dataset, config, sources.initial, initial_encoders)
    if config.is_joint:
        if sources.dataset.facts.fingerprint in {one.facts.fingerprint for one in sources.also}:
            raise UsageError("--also names the training dataset itself.", "Leave it out, or name another dataset.")
        learner = ClosedFormAlignment if config.start == "closed_form" else Alignment
        if sources.initial and learner is ClosedFormAlignment:
            raise UsageError("--init-from is for encoders trained from scratch.", "Name their --arch, or leave it out.")
        return learner(ranks, [sources.dataset, *sources.also], config)
    for_joint_models = {
        "--also": sources.also, "--paired-fraction": config.paired_fraction < 1, "--set refine": config.refine,
        "paired_seed": config.paired_seed, "cycle_rule": config.cycle_rule != TrainConfig.cycle_rule,
        **{f"--{name}-encoder": table.get("encoder") for name, table in config.modalities.items()},
    }  # fmt: skip
    for flag, is_given in for_joint_models.items():
        if is_given:
            raise UsageError(f"{flag} is for image–text models.", "Add --objective, such as --objective cyclic.")
    if config.objective == "views":
        return SelfSupervised(ranks, sources.dataset, config)
    if config.model.get("embedding") and not sources.initial:
        raise UsageError(
            "An autoencoder does not train the embedding network of model.embedding.",
            "Train it with --objective views, then add --init-from RUN.",
        )
    return Autoencoding(ranks, sources.dataset, config)


def set_up_network(ranks: Ranks, learner: Learner, config: TrainConfig) -> Network:
    """Give all processes the same weights, and wrap model and optimizer for devices and precision."""
    ranks.share_weights(learner.module)
    plan = learner.plan()
    model = ranks.fabric.setup_module(prepare_model(learner.module, plan))
    optimizer = ranks.fabric.setup_optimizers(
        torch.optim.AdamW(
            learner.parameter_groups(), lr=config.lr or 0.0, weight_decay=config.weight_decay or 0.0, fused=True
        )
    )
    learner.set_up(model, plan)
    return Network(plan, model, optimizer)


def initialise(ranks: Ranks, learner: Learner, initial: Checkpoint | None, report: Report, stop: list[int]) -> None:
    """Initialise the model from the weights `initial`, or without them from the training data.

    Raises:
        CyclicError: the weights do not fit the model.
        Stopped: a signal arrived in `stop` meanwhile.
    """
    if initial is not None and not isinstance(learner, Captioning):  # which takes a part of the weights itself
        ranks.agreed(lambda: _load_weights(learner, initial))
        report(Note(f"initialising from the weights {initial.fingerprint}"))
        return
    report(Note(f"initialising {learner.initialisation}"))

    learner.initialise(_tick(learner, report, stop), report)


def restore(learner: Learner, architecture: dict[str, Any], encoders: Path, report: Report, stop: list[int]) -> None:
    """Make the module that a saved state describes. Raises Stopped as `initialise` does."""
    learner.restore(architecture, encoders, _tick(learner, report, stop), report)


def _tick(learner: Learner, report: Report, stop: list[int]) -> Tick:
    def tick(done: int, total: int, unit: str) -> None:
        if stop:
            raise stopped(signal.Signals(stop[0]), 0, learner.steps)
        report(Progress(done, total, unit))

    return tick


def _load_weights(learner: Learner, checkpoint: Checkpoint) -> None:
    try:
        weights = {name: torch.from_numpy(value) for name, value in checkpoint.weights.items()}
        learner.module.get_submodule(learner.kept).load_state_dict(weights)
    except RuntimeError as error:
        raise CyclicError(
            "The checkpoint of --init-from holds another model: its parts, or their sizes, differ.",
            "Use one that was trained with the same --arch, modalities and settings.",
        ) from error
