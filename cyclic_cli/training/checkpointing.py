"""Saves the state of a run: takes it between two steps, and writes it in a separate thread.

A step waits only while weights and optimizer are copied. Writes happen one at a time, in order. A signal, or the end of
the run, waits for the last one.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cyclic_cli.config import RECORDED, TrainConfig, as_plain
from cyclic_cli.distributed import Ranks
from cyclic_cli.storage.checkpoint import Checkpoint, write_checkpoint
from cyclic_cli.storage.run import RunFolder
from cyclic_cli.training.learner import Learner
from cyclic_cli.training.progress import RunProgress
from cyclic_cli.training.run_log import RunLog
from cyclic_cli.training.sources import Sources
from cyclic_cli.training.steps import not_finite


class StateSaver:
    """Saves states of a run, and its best model. All processes take part; the first one writes."""

    def __init__(
        self, ranks: Ranks, folder: RunFolder, sources: Sources, config: TrainConfig, learner: Learner, optimizer: Any,
        progress: RunProgress, log: RunLog,
    ) -> None:  # fmt: skip
        self.ranks, self.folder, self.sources, self.config = ranks, folder, sources, config
        self.learner, self.optimizer, self.progress, self.log = learner, optimizer, progress, log
        self.writer = Writer()

    def save(self, best: bool = False) -> None:
        """Copy the state as it is now, and start writing it. If `best`, also write `model.safetensors`.

        Raises:
            CyclicError: a weight is not finite; or the write before this one failed.
        """
        self.progress.metrics_size = self.folder.metrics_size()
        checkpoint, arrays = self._checkpoint(), optimizer_arrays(self.ranks, self.learner.module, self.optimizer)
        if not self.ranks.is_main:
            return
        self.log.flush()
        arrays["random.torch"] = torch.get_rng_state().numpy()
        progress = asdict(self.progress)

        def write() -> None:
            if best:
                write_checkpoint(self.folder.best, _kept(checkpoint, self.learner.kept))
                self.folder.point_latest()
            self.folder.save_state(progress["step"], checkpoint, arrays, progress)

        self.writer.submit(write)

    def wait(self) -> None:
        """Wait for the last write. Raises CyclicError when it failed."""
        self.writer.wait()

    def finish(self) -> None:
        """Wait for the last write. Write the current model as the best one if that file is missing."""
        self.ranks.agreed(self.wait)
        if self.ranks.agreed(lambda: not self.folder.best.exists()):
            self.save(best=True)
            self.ranks.agreed(self.wait)

    def close(self) -> None:
        """Wait for the last write, and end the thread."""
        self.writer.close()

    def _checkpoint(self) -> Checkpoint:
        """The model as it is now, with its provenance."""
        weights = {name: value.float().numpy() for name, value in self.ranks.weights(self.learner.module).items()}
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise not_finite("A weight", self.progress.step, self.config)
        settings = as_plain(self.config) | self.learner.portable_settings
        return Checkpoint(
            weights=weights,
            architecture=self.learner.architecture,
            preprocessing=self.sources.dataset.facts.preprocessing,
            provenance={
                "environment": self.progress.environment,
                "environment_changed": self.progress.changed,
                "settings": {name: value for name, value in settings.items() if name in RECORDED},
                **self.sources.fingerprints,
                "train_samples": self.learner.samples,
                "train_patients": self.learner.patients,
                "step": self.progress.step,
                "epoch": self.progress.step / self.learner.steps_per_epoch,
                "val": self.progress.val,
            },
        )


def _kept(checkpoint: Checkpoint, submodule: str) -> Checkpoint:
    """The checkpoint of a submodule of a model; of the whole model if the name is empty."""
    prefix = f"{submodule}." if submodule else ""
    kept = {name.removeprefix(prefix): value for name, value in checkpoint.weights.items() if name.startswith(prefix)}
    return replace(checkpoint, weights=kept)


class Writer:
    """Runs writing functions one after the other in a separate thread."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "state")
        self.writing: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Begin to write, once an earlier write has ended. Raises the error of that one."""
        self.wait()
        self.writing = self.thread.submit(write)

    def wait(self) -> None:
        """Wait for the last write. Raises its error."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def close(self) -> None:
        """End the thread when its last write is done."""
        self.thread.shutdown()


def optimizer_arrays(ranks: Ranks, module: nn.Module, optimizer: Any) -> dict[str, np.ndarray]:
    """The optimizer's state as arrays named like `3.exp_avg`, in the first process. All processes take part."""
    return {
        f"{number}.{name}": value.numpy()
        for number, values in ranks.moments(module, optimizer).items()
        for name, value in values.items()
    }
