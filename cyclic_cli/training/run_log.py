"""Records a run: events for the console, lines of `metrics.jsonl`, and curves for TensorBoard."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from cyclic_cli.distributed import Ranks
from cyclic_cli.events import Epoch, Note, Report, Step
from cyclic_cli.storage.run import RunFolder
from cyclic_cli.training.clock import Clock
from cyclic_cli.training.gradients import Plan
from cyclic_cli.training.learner import Learner
from cyclic_cli.training.progress import RunProgress
from cyclic_cli.training.steps import StepResult, named_samples
from cyclic_cli.training.tensorboard import TensorBoard

LOG_EVERY = 10  # steps between two lines of metrics
SHOWN = 8  # validation images that TensorBoard shows


class RunLog:
    """The records of one attempt. All processes use it; only the first one writes files."""

    def __init__(
        self, ranks: Ranks, folder: RunFolder, learner: Learner, progress: RunProgress, clock: Clock, epochs: int,
        report: Report,
    ) -> None:  # fmt: skip
        self.ranks, self.folder, self.learner, self.progress = ranks, folder, learner, progress
        self.clock, self.epochs, self.report = clock, epochs, report
        self.board: TensorBoard | None = None

    def open_board(self) -> None:
        """Begin the event files of TensorBoard, or continue them after the current step."""
        self.board = TensorBoard(self.folder.folder / "tensorboard", self.progress.step)

    def hardware(self, plan: Plan) -> None:
        """Record the plan of this attempt (kind `hardware`)."""
        self._add("hardware", asdict(plan))

    def step(self, epoch: int, result: StepResult) -> None:
        """Record a step. `epoch` counts from 0."""
        step, rate, learner = self.progress.step, self.clock.rate(), self.learner
        losses, lr = result.losses, result.lr
        self.report(Step(step, learner.steps, epoch + 1, self.epochs, losses, lr, rate, learner.batch_size))
        if step % LOG_EVERY == 0 or step == learner.steps:
            row = {"step": step, "epoch": epoch + 1, "losses": losses, "lr": lr, "images_per_second": round(rate, 1)}
            norms = learner.gradient_norms()
            self._add("step", row | ({"gradient_norms": norms} if norms else {}))

    def skipped_step(self, epoch: int, result: StepResult) -> None:
        """Record a step that was left out because its loss was not finite."""
        step, keys = self.progress.step, self.learner.keys(result.batch)
        self.report(Note(f"step {step} is skipped, its loss is not finite: {named_samples(keys)}", warning=True))
        self._add("skipped", {"step": step, "epoch": epoch + 1, "samples": keys})

    def epoch(self, means: dict[str, float], val: dict[str, float], best: bool) -> None:
        """Record an epoch: the means of its losses, its validation, and whether it is the best so far."""
        row = {"step": self.progress.step, "epoch": self.progress.epochs_done, "train": means, "val": val, "best": best}
        self._add("epoch", {**row, "seconds": round(self.clock.elapsed, 2)})

    def report_epoch(self, val: dict[str, float], best: bool) -> None:
        """Report an epoch to the console, after its state is copied."""
        self.report(Epoch(self.progress.epochs_done, self.epochs, val, best))

    def show(self, images: Tensor, reconstructions: Tensor) -> None:
        """Draw some validation images and their reconstructions in TensorBoard."""
        assert self.board
        self.board.show(images[:SHOWN], reconstructions[:SHOWN], self.progress.step)

    def flush(self) -> None:
        """Write the curves to disk, so that a resumed run repeats only the points after its saved state."""
        if self.board:
            self.board.flush()

    def close(self) -> None:
        if self.board:
            self.board.close()

    def _add(self, kind: str, row: dict[str, Any]) -> None:
        if self.ranks.is_main:
            self.folder.append_metrics({"kind": kind, "attempt": self.progress.attempt, **row})
            if self.board:
                self.board.add(kind, row)
