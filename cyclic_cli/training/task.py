"""`cyclic train`: trains a model on a dataset and keeps it in a run folder.

    build      what is learned (an autoencoder, or modalities aligned), started from the data; the optimizer
    resume     the newest saved state, when there is one and it is asked for
    loop       epochs of steps; state is saved every few minutes, after every epoch and before a signal ends it
    validate   after every epoch; the best checkpoint so far is the run's model
    finish     the summary; `runs/latest` names the run from its first checkpoint on

What is unusual: a stopped and resumed run ends with the bits of a run that was never stopped. So the learning
rate is a function of the step, the order of an epoch one of (seed, epoch), a sample's noise one of (seed, epoch,
sample), and `metrics.jsonl` is cut back to the state that is resumed. Several processes divide every batch and do
together what one would do alone; only the first talks and writes.
"""

import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from cyclic_cli import distributed
from cyclic_cli.config import RECORDED, TrainConfig, as_plain
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Epoch, Note, Progress, Report, Step, silent
from cyclic_cli.storage.checkpoint import Checkpoint, find_checkpoint, read_checkpoint, write_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.files import write_yaml
from cyclic_cli.storage.run import RunFolder
from cyclic_cli.training import alignment, autoencoding
from cyclic_cli.training.alignment import Alignment
from cyclic_cli.training.autoencoding import Autoencoding
from cyclic_cli.training.checkpointing import RunProgress, Writer, environment, optimizer_arrays
from cyclic_cli.training.gradients import layout, prepare_model
from cyclic_cli.training.resuming import (  # fmt: skip
    as_before,
    changes,
    check_resume,
    described,
    newest_whole_state,
    refuse_other_run,
    restore,
)
from cyclic_cli.training.signals import agreed_wishes, stop_signals, stopped
from cyclic_cli.training.tensorboard import TensorBoard, require_tensorboard

LOG_EVERY = 10  # steps between two lines of metrics
NAMED = 16  # samples of a batch that an error names
SKIPS = 20  # batches without a finite loss, one after the other: not their samples are at fault, but the weights
SHOWN = 8  # validation images that TensorBoard shows


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What `cyclic train` did."""

    run: str
    checkpoint: str
    arch: str
    objective: str
    fraction: float
    paired_fraction: float | None  # None: the objective uses no pairs
    epochs: int
    steps: int
    steps_executed: int  # by this attempt
    seed: int
    train_samples: int
    val: dict[str, float]  # of the best checkpoint; empty without validation data
    images_per_second: float
    seconds: float
    resumed: bool
    resumed_from_step: int | None


def train(
    dataset: Path,
    run: Path,
    config: TrainConfig,
    resume: str = "never",
    report: Report = silent,
    also: Sequence[Path] = (),
    init_from: Path | None = None,
) -> TrainSummary:
    """Train a model, or go on where a run was stopped.

    Args:
        dataset: A dataset's folder.
        run: The run's folder.
        config: What decides the run.
        resume: never (the run must not exist), auto (continue where there is state, else start), must.
        report: Gets Step, Epoch and Note events.
        also: Further datasets, whose images and reports a joint run takes as values without a partner.
        init_from: A checkpoint of the same model, whose weights the run begins with.

    Raises:
        CyclicError: the run exists, has no state to resume, or was another run; there is no training data; the
            loss is no longer finite.
        Stopped: a signal ended the run after its state was saved.
    """
    folder = RunFolder(run)
    sources = Sources(
        StoredDataset(dataset),
        tuple(StoredDataset(folder) for folder in also),
        read_checkpoint(find_checkpoint(init_from)) if init_from else None,
    )
    config = _filled_in(as_before(config, folder) if resume != "never" else config, sources.dataset)
    with stop_signals() as stop, ExitStack() as held:
        ranks = distributed.launch(config.device, config.precision, config.devices, config.strategy)
        report = report if ranks.is_main else silent

        def begun() -> TrainSummary | None:
            """Take the folder; or return the summary of a run that is finished."""
            for is_ours in (False, True):  # looked at twice: another may have worked on it until it was ours
                check_resume(folder, resume)
                if resume != "never" and folder.config.exists() and (folder.states() or folder.best.exists()):
                    refuse_other_run(folder, config, sources.fingerprints)
                    if folder.summary.exists():
                        report(Note(f"{run} is finished already, nothing to do"))
                        return _finished(folder)
                if not is_ours:
                    held.enter_context(folder.lease())
            return None

        finished = ranks.agreed(begun)
        return finished or _Training(ranks, sources, folder, config, report).run(stop)


def default_run_name(config: TrainConfig) -> str:
    """A run's folder name from what tells runs apart most; the same command line finds the same run again."""
    if config.is_joint:
        return f"{config.objective}-{config.fraction:g}-paired{config.paired_fraction:g}-seed{config.seed}"
    return f"{config.arch}-{config.fraction:g}-seed{config.seed}"


def _filled_in(config: TrainConfig, dataset: StoredDataset) -> TrainConfig:
    """The settings with all that was left open filled in, from recipes and from what `auto` means."""
    device, precision = distributed.resolve(config.device, config.precision)
    samples = int(dataset.facts.counts.get("splits", {}).get("train", 0) * config.fraction)
    filled = alignment.filled_in(config, samples) if config.is_joint else autoencoding.filled_in(config)
    return replace(filled, device=device, precision=precision)


def _finished(folder: RunFolder) -> TrainSummary:
    paths = {"run": str(folder.folder), "checkpoint": str(folder.best)}
    try:
        return TrainSummary(**{**folder.read_summary(), **paths, "steps_executed": 0})
    except TypeError:
        raise CyclicError(
            f"{folder.summary} is damaged.", "Remove it; the run then ends again from its state."
        ) from None


@dataclass(frozen=True)
class Sources:
    """What a run begins with."""

    dataset: StoredDataset
    also: tuple[StoredDataset, ...] = ()
    start: Checkpoint | None = None

    @property
    def fingerprints(self) -> dict[str, Any]:
        """What tells these from others, without a path."""
        found: dict[str, Any] = {"dataset": self.dataset.facts.fingerprint}
        if self.also:
            found["also"] = [dataset.facts.fingerprint for dataset in self.also]
        if self.start:
            found["init_from"] = self.start.fingerprint
        return found


def _learner(ranks: Ranks, sources: Sources, config: TrainConfig) -> Autoencoding | Alignment:
    if config.is_joint:
        if sources.dataset.facts.fingerprint in {one.facts.fingerprint for one in sources.also}:
            raise UsageError("--also names the training dataset itself.", "Leave it out, or name another.")
        return Alignment(ranks, [sources.dataset, *sources.also], config)
    for asked, flag in ((sources.also, "--also"), (config.paired_fraction < 1, "--paired-fraction")):
        if asked:
            raise UsageError(f"{flag} is for joint objectives.", "Add --objective, such as --objective cyclic.")
    return Autoencoding(ranks, sources.dataset, config)


class _Clock:
    """Seconds of the training loop, without the first step and without validation."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self.first = 0.0  # images a second of the first step, for runs of one
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.monotonic()

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
        self._since = None

    def running(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._since if self._since is not None else 0.0

    def rate(self) -> float:
        running = self.running()
        return self.images / (self.seconds + running) if self.images else self.first


class _Training:
    """One attempt at a run."""

    def __init__(self, ranks: Ranks, sources: Sources, folder: RunFolder, config: TrainConfig, report: Report) -> None:
        self.began = time.monotonic()
        self.ranks, self.fabric = ranks, ranks.fabric
        self.sources, self.folder, self.config, self.report = sources, folder, config, report
        self.learner = _learner(ranks, sources, config)
        self.steps = self.learner.steps_per_epoch * config.epochs
        self.progress = RunProgress()
        self.clock = _Clock()
        self.write = Writer()
        self.board: TensorBoard | None = None
        if config.tensorboard:
            require_tensorboard()

    # ------------------------------------------------------------------------------------------------- run

    def run(self, stop: list[int]) -> TrainSummary:
        self._build(stop)
        resumed_from = self._resume()
        executed = -self.progress.step
        self.ranks.agreed(lambda: self._begin(resumed_from is None))
        try:
            with self.ranks.together():
                self._loop(stop)
                self.ranks.agreed(self.write.wait)
                if self.ranks.agreed(lambda: not self.folder.best.exists()):  # it was lost after the last epoch
                    self._save_state(best=True)
                    self.ranks.agreed(self.write.wait)
        finally:
            self.learner.close()
            self.write.close()
            if self.board:
                self.board.close()
        summary = TrainSummary(
            run=str(self.folder.folder), checkpoint=str(self.folder.best), arch=self.config.arch,
            objective=self.config.objective, fraction=self.config.fraction,
            paired_fraction=self.config.paired_fraction if self.config.is_joint else None,
            epochs=self.config.epochs, steps=self.steps, steps_executed=executed + self.progress.step,
            seed=self.config.seed, train_samples=self.learner.samples, val=self.progress.val,
            images_per_second=round(self.clock.rate(), 1), seconds=round(time.monotonic() - self.began, 2),
            resumed=resumed_from is not None, resumed_from_step=resumed_from,
        )  # fmt: skip
        without_paths = {name: value for name, value in asdict(summary).items() if name not in ("run", "checkpoint")}
        if self.ranks.is_main:
            self.folder.write_summary(without_paths)
        return summary

    def _begin(self, anew: bool) -> None:
        if self.config.tensorboard:
            self.board = TensorBoard(self.folder.folder / "tensorboard", self.progress.step)
        if anew:
            write_yaml(self.folder.config, described(self.config, self.sources.fingerprints))
            self.folder.metrics.unlink(missing_ok=True)
            self._add_metrics("hardware", asdict(self.plan))

    def _build(self, stop: list[int]) -> None:
        module = self.learner.module
        self.state = self.ranks.agreed(lambda: newest_whole_state(self.folder, self.report))
        if self.state is None:  # a resumed run takes its weights from there
            self.ranks.agreed(lambda: self._initialise(stop))
        self.ranks.share_weights(module)
        self.plan = self.learner.plan()
        self.model = self.fabric.setup_module(prepare_model(module, self.plan))
        self.optimizer = self.fabric.setup_optimizers(
            torch.optim.AdamW(
                self.learner.parameter_groups(), lr=self.config.lr or 0.0,
                weight_decay=self.config.weight_decay or 0.0, fused=True,
            )
        )  # fmt: skip
        self.learner.set_up(self.model, self.plan)
        self.progress.environment = environment(self.plan)

    def _initialise(self, stop: list[int]) -> None:
        """Start the model from training samples, or another's weights. Raises Stopped when a signal ends that."""
        if self.sources.start is not None:
            self._take_over(self.sources.start)
            return
        self.report(Note(f"starting {self.learner.initialisation}"))

        def tick(done: int, total: int, unit: str) -> None:
            if stop:
                raise stopped(signal.Signals(stop[0]), 0, self.steps)
            self.report(Progress(done, total, unit))

        self.learner.initialise(tick)

    def _take_over(self, checkpoint: Checkpoint) -> None:
        """Begin with the weights of a checkpoint. Raises CyclicError when they are those of another model."""
        try:
            self.learner.module.load_state_dict(
                {name: torch.from_numpy(value) for name, value in checkpoint.weights.items()}
            )
        except RuntimeError as error:
            raise CyclicError(
                "The model to start from has other parts, or parts of other sizes.",
                "Train it with the same --arch, modalities and settings.",
            ) from error
        self.report(Note(f"starting from the weights {checkpoint.fingerprint}"))

    def _resume(self) -> int | None:
        """Take up the newest saved state, and return its step."""
        if self.state is None:
            return None
        saved = self.folder.load_state(self.state)
        self.progress = restore(self.ranks, self.learner.module, self.optimizer, saved, layout(self.plan))
        self.report(Note(f"resuming at step {self.progress.step} of {self.steps}"))
        differences = changes(self.progress.environment, environment(self.plan))
        if differences:
            self.progress.changed = True
            self.report(Note(f"the results may differ in rounding from those of a run in one go: {differences}"))
        self.progress.environment = environment(self.plan)
        self.progress.attempt += 1
        if self.ranks.is_main:
            self.folder.cut_metrics(self.progress.metrics_size)
            self._check_best()
        if differences:
            self._add_metrics("hardware", asdict(self.plan))
        return self.progress.step

    def _check_best(self) -> None:
        """Forget the best checkpoint when its file was lost or damaged: the next one counts as the best."""
        if not self.progress.epochs_done:
            return
        try:
            read_checkpoint(self.folder.best)
        except CyclicError:
            self.folder.best.unlink(missing_ok=True)
            self.report(Note(f"{self.folder.best} is damaged or gone; a later one takes its place", warning=True))
            self.progress.val = {}

    # ------------------------------------------------------------------------------------------------ loop

    def _loop(self, stop: list[int]) -> None:
        saved_at, self.first_step = time.monotonic(), True
        self.report(Note(self.plan.described()))
        for epoch in range(self.progress.epochs_done, self.config.epochs):
            self.clock.start()
            self.model.train()
            while self.progress.step < (epoch + 1) * self.learner.steps_per_epoch:
                self._step(epoch)
                due = time.monotonic() - saved_at >= 60 * self.config.checkpoint_minutes
                number, due = agreed_wishes(self.ranks, stop, due)
                if number or due or self.progress.step % (self.config.checkpoint_steps or self.steps + 1) == 0:
                    self._save_state()
                    saved_at = time.monotonic()
                if number:
                    self._stop(number, save=False)
            self._end_epoch(epoch, stop)
            saved_at = time.monotonic()
            number, _ = agreed_wishes(self.ranks, stop, save=False)
            if number and epoch + 1 < self.config.epochs:
                self._stop(number, save=False)

    def _stop(self, number: signal.Signals, save: bool = True) -> NoReturn:
        """End the run by a signal, its state saved."""
        if save:
            self._save_state()
        self.ranks.agreed(self.write.wait)
        raise stopped(number, self.progress.step, self.steps)

    def _step(self, epoch: int) -> None:
        chosen: Any = self.learner.chosen(self.progress.step)
        lr = learning_rate(self.progress.step, self.steps, self.config.lr or 0.0, self.config.warmup or 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        losses = self._of_all_processes(self.learner.losses(chosen, self.progress.step))
        finite = math.isfinite(losses["total"])
        if finite:
            norm = self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.gradient_clip, error_if_nonfinite=False
            )
            finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
        elif self.config.not_finite == "stop":
            raise self._not_finite("The loss", f", in a batch of {self._named(chosen)}")
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.skipped = 0 if finite else self.progress.skipped + 1
        if self.first_step:
            self.first_step = False
            self.clock.first = len(chosen) / self.clock.running()
            self.clock.start()  # the first step warms up; what came before does not count
        else:
            self.clock.images += len(chosen)
        if finite:
            self._log(epoch, losses, lr)
        else:
            self._log_skipped(epoch, chosen)

    def _not_finite(self, what: str, where: str = "") -> CyclicError:
        others = "" if self.config.not_finite == "skip" else ", or leave such batches out: --set not_finite=skip"
        error = CyclicError(
            f"{what} is not finite at step {self.progress.step + bool(where)}{where}.",
            f"Lower --lr, take --precision 32, or look at the samples{others}.",
        )
        error.everywhere = True
        return error

    def _of_all_processes(self, losses: dict[str, float]) -> dict[str, float]:
        """The losses of a whole batch, by objective, and their weighted sum `total`."""
        values = torch.tensor(list(losses.values()), dtype=torch.float64, device=self.fabric.device)
        losses = dict(zip(losses, self.ranks.summed(values).tolist(), strict=True))
        weights = self.learner.weights(self.progress.step)
        return losses | {"total": sum(weights[name] * loss for name, loss in losses.items())}

    def _named(self, chosen: Any) -> str:
        """Some samples of a batch, by the start of their keys in the index."""
        keys = self.learner.keys(chosen)
        return f"the samples {', '.join(keys[:NAMED])}{' ...' if len(keys) > NAMED else ''}"

    def _log(self, epoch: int, losses: dict[str, float], lr: float) -> None:
        step, sums = self.progress.step, self.progress.epoch_losses
        self.progress.epoch_steps += 1
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
        rate = self.clock.rate()
        self.report(Step(step, self.steps, epoch + 1, self.config.epochs, losses, lr, rate, self.learner.batch_size))
        if step % LOG_EVERY == 0 or step == self.steps:
            row = {"step": step, "epoch": epoch + 1, "losses": losses, "lr": lr, "images_per_second": round(rate, 1)}
            norms = self.learner.gradient_norms()
            self._add_metrics("step", row | ({"gradient_norms": norms} if norms else {}))

    def _log_skipped(self, epoch: int, chosen: Any) -> None:
        step = self.progress.step
        self.report(Note(f"step {step} is skipped, its loss is not finite: {self._named(chosen)}", warning=True))
        self._add_metrics("skipped", {"step": step, "epoch": epoch + 1, "samples": self.learner.keys(chosen)})
        if self.progress.skipped == SKIPS:
            raise self._not_finite(f"The loss of each of the last {SKIPS} batches")

    def _add_metrics(self, kind: str, row: dict[str, Any]) -> None:
        if self.ranks.is_main:
            self.folder.append_metrics({"kind": kind, "attempt": self.progress.attempt, **row})
            if self.board:
                self.board.add(kind, row)

    # ------------------------------------------------------------------------------------- validate and save

    def _end_epoch(self, epoch: int, stop: list[int]) -> None:
        def is_stopped() -> bool:
            return agreed_wishes(self.ranks, stop, save=False)[0] is not None

        self.clock.stop()
        val = self.learner.validate(is_stopped, self._show if self.board else None)
        if val is None:  # to be validated by the next attempt
            number, _ = agreed_wishes(self.ranks, stop, save=False)
            assert number
            self._stop(number)
        if not all(map(math.isfinite, val.values())):
            raise self._not_finite("The validation error")
        self.clock.start()
        best = not val or not self.progress.val or self.learner.is_better(val, self.progress.val)
        if best:
            self.progress.val = val
        self.progress.epochs_done = epoch + 1
        steps = max(1, self.progress.epoch_steps)
        means = {name: total / steps for name, total in self.progress.epoch_losses.items()}
        self.progress.epoch_losses, self.progress.epoch_steps = {}, 0
        row = {"step": self.progress.step, "epoch": epoch + 1, "train": means, "val": val, "best": best}
        self._add_metrics("epoch", {**row, "seconds": round(time.monotonic() - self.began, 2)})
        self._save_state(best)
        self.clock.stop()
        self.report(Epoch(epoch + 1, self.config.epochs, val, best))

    def _show(self, images: Tensor, reconstructions: Tensor) -> None:
        assert self.board
        self.board.show(images[:SHOWN], reconstructions[:SHOWN], self.progress.step)

    def _save_state(self, best: bool = False) -> None:
        """Take the state as it is now, and let it be written. A `best` model also becomes that of the run."""
        self.progress.metrics_size = self.folder.metrics_size()
        checkpoint, arrays = self._checkpoint(), optimizer_arrays(self.ranks, self.learner.module, self.optimizer)
        if not self.ranks.is_main:
            return
        if self.board:
            self.board.flush()  # a resumed run says again only what came after its state
        arrays["random.torch"] = torch.get_rng_state().numpy()
        progress = asdict(self.progress)

        def write() -> None:
            if best:
                write_checkpoint(self.folder.best, checkpoint)
                self.folder.point_latest()
            self.folder.save_state(progress["step"], checkpoint, arrays, progress)

        self.write(write)

    def _checkpoint(self) -> Checkpoint:
        """The model as it is now."""
        weights = {name: value.float().numpy() for name, value in self.ranks.weights(self.learner.module).items()}
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise self._not_finite("A weight")
        return Checkpoint(
            weights=weights,
            architecture=self.learner.architecture,
            preprocessing=self.sources.dataset.facts.preprocessing,
            provenance={
                "environment": self.progress.environment,
                "environment_changed": self.progress.changed,
                "settings": {
                    name: value
                    for name, value in (as_plain(self.config) | self.learner.portable_settings).items()
                    if name in RECORDED
                },
                **self.sources.fingerprints,
                "train_samples": self.learner.samples,
                "train_patients": self.learner.patients,
                "step": self.progress.step,
                "epoch": self.progress.step / self.learner.steps_per_epoch,
                "val": self.progress.val,
            },
        )  # fmt: skip


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of a step (from 0): a linear rise over the share `warmup`, then a half cosine to 0.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
