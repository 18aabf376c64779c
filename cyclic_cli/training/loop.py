"""The training loop: epochs of steps with validation, saved states in between, and stopping by a signal."""

import math
import signal
import time
from dataclasses import dataclass
from typing import NoReturn

from cyclic_cli.config import TrainConfig
from cyclic_cli.distributed import Ranks
from cyclic_cli.training.checkpointing import StateSaver
from cyclic_cli.training.clock import Clock
from cyclic_cli.training.learner import Learner
from cyclic_cli.training.progress import RunProgress
from cyclic_cli.training.run_log import RunLog
from cyclic_cli.training.setup import Network
from cyclic_cli.training.signals import stop_or_save, stopped
from cyclic_cli.training.steps import Stepper, not_finite


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Trains from the current progress to the last epoch."""

    ranks: Ranks
    config: TrainConfig
    learner: Learner
    network: Network
    progress: RunProgress
    clock: Clock
    stepper: Stepper
    log: RunLog
    saver: StateSaver
    stop: list[int]  # receives the stopping signals

    def run(self) -> None:
        """Train the epochs that are left.

        Raises:
            Stopped: a signal ended the run; its state is saved.
            CyclicError: a loss, a validation metric or a weight is not finite; or a state cannot be written.
        """
        self.learner.fold_ranks = self.progress.fold_ranks
        if self.learner.has_solution and self.progress.best_epoch is None:
            val = self._validate(0)
            self.progress.fold_ranks = self.learner.fold_ranks
            self._keep(val, is_best=True)
        saved_at = time.monotonic()
        for epoch in range(self.progress.epochs_done, self.config.epochs):
            self.clock.start()
            self.network.model.train()
            while self.progress.step < (epoch + 1) * self.learner.steps_per_epoch:
                self._step(epoch)
                is_due = time.monotonic() - saved_at >= 60 * self.config.checkpoint_minutes
                number, is_due = stop_or_save(self.ranks, self.stop, is_due)
                every = self.config.checkpoint_steps or self.learner.steps + 1
                if number or is_due or self.progress.step % every == 0:
                    self.saver.save()
                    saved_at = time.monotonic()
                if number:
                    self._end_by(number)
            self._end_epoch()
            saved_at = time.monotonic()
            number = self._received_signal()
            if number and epoch + 1 < self.config.epochs:
                self._end_by(number)

    def _step(self, epoch: int) -> None:
        result = self.stepper.step()
        self.clock.count(len(result.batch))
        if result.is_finite:
            self.log.step(epoch, result)
        else:
            self.log.skipped_step(epoch, result)
            self.stepper.check_skipped()

    def _end_epoch(self) -> None:
        """Validate, keep the model if it is the best so far, and save the state."""
        self.clock.stop()
        val = self._validate(self.progress.epochs_done + 1)
        self.clock.start()
        means = self.progress.end_epoch()
        self._keep(val, self._is_best(val), means)
        self.clock.stop()

    def _is_best(self, val: dict[str, float]) -> bool:
        """Whether the model is better than the best one so far. Without metrics, a solution is kept, else the last."""
        if not val or not self.progress.val:
            return not self.learner.has_solution
        return self.learner.is_better(val, self.progress.val)

    def _keep(self, val: dict[str, float], is_best: bool, means: dict[str, float] | None = None) -> None:
        """Log an epoch, or the initial solution if `means` is None, and save its state."""
        if is_best:
            self.progress.val, self.progress.best_epoch = val, self.progress.epochs_done
        self.log.epoch(means or {}, val, is_best)
        self.saver.save(is_best)
        self.log.report_epoch(val, is_best)

    def _validate(self, epochs: int) -> dict[str, float]:
        """The validation metrics after a number of epochs.

        A signal ends the run; its next attempt then repeats the validation.
        """
        self.learner.epochs_done = epochs
        val = self.learner.validate(
            lambda: self._received_signal() is not None, self.log.show if self.log.board else None
        )
        if val is None:
            number = self._received_signal()
            assert number
            self.saver.save()
            self._end_by(number)
        if not all(map(math.isfinite, val.values())):
            raise not_finite("The validation error", self.progress.step, self.config)
        return val

    def _received_signal(self) -> signal.Signals | None:
        """The stopping signal that any process received. All processes must call it."""
        return stop_or_save(self.ranks, self.stop, save=False)[0]

    def _end_by(self, number: signal.Signals) -> NoReturn:
        """Wait until the saved state is written, then end the run."""
        self.ranks.agreed(self.saver.wait)
        raise stopped(number, self.progress.step, self.learner.steps)
