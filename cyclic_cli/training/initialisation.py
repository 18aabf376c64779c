"""Initialises the model of a new run: from its training data, or from the weights of a checkpoint."""

import signal

import torch

from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Progress, Report
from cyclic_cli.storage.checkpoint import Checkpoint
from cyclic_cli.training.learner import Learner
from cyclic_cli.training.signals import stopped


def initialise(learner: Learner, initial: Checkpoint | None, report: Report, stop: list[int]) -> None:
    """Initialise the model from the weights `initial`, or without them from the training data.

    Raises:
        CyclicError: the weights do not fit the model.
        Stopped: a signal arrived in `stop` meanwhile.
    """
    if initial is not None:
        _load_weights(learner, initial)
        report(Note(f"initialising from the weights {initial.fingerprint}"))
        return
    report(Note(f"initialising {learner.initialisation}"))

    def tick(done: int, total: int, unit: str) -> None:
        if stop:
            raise stopped(signal.Signals(stop[0]), 0, learner.steps)
        report(Progress(done, total, unit))

    learner.initialise(tick)


def _load_weights(learner: Learner, checkpoint: Checkpoint) -> None:
    try:
        learner.module.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
    except RuntimeError as error:
        raise CyclicError(
            "The checkpoint of --init-from holds another model: its parts, or their sizes, differ.",
            "Use one that was trained with the same --arch, modalities and settings.",
        ) from error
