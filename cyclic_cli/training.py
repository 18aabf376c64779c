"""`cyclic train`: trains a model on a data set and keeps it in a run folder.

    build      data, model (started from the data), optimizer, objectives
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
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from cyclic_cli import config as settings
from cyclic_cli import distributed, registry
from cyclic_cli.config import RECORDED, TrainConfig, as_plain
from cyclic_cli.data import EpochOrder, Samples, moved, sample_noise
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Epoch, Note, Progress, Report, Step, silent
from cyclic_cli.gradients import Batch, Gradients, layout, make_plan, prepare_model
from cyclic_cli.identity import SPLITS
from cyclic_cli.resuming import (
    as_before,
    changes,
    check_resume,
    described,
    newest_whole_state,
    refuse_other_run,
    restore,
)  # fmt: skip
from cyclic_cli.saving import RunProgress, Writer, environment, optimizer_arrays
from cyclic_cli.stopping import agreed_wishes, stop_signals, stopped
from cyclic_cli.storage import Checkpoint, RunFolder, StoredDataset, read_checkpoint, write_checkpoint, write_yaml
from cyclic_cli.tensorboard import TensorBoard, require_tensorboard
from cyclic_cli.validation import validate

LOG_EVERY = 10  # steps between two lines of metrics
INITIALISATION_BATCH = 32
INITIALISATION_IMAGES = 10_000  # at most: more would teach principal components little, and take hours of a large set
BEFORE_TRAINING = -1  # the epoch whose order the model is started in
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
    dataset: Path, run: Path, config: TrainConfig, resume: str = "never", report: Report = silent
) -> TrainSummary:
    """Train a model, or go on where a run was stopped.

    Args:
        dataset: A data set's folder.
        run: The run's folder.
        config: What decides the run.
        resume: never (the run must not exist), auto (continue where there is state, else start), must.
        report: Gets Step, Epoch and Note events.

    Raises:
        CyclicError: the run exists, has no state to resume, or was another run; there is no training data; the
            loss is no longer finite.
        Stopped: a signal ended the run after its state was saved.
    """
    folder = RunFolder(run)
    stored = StoredDataset(dataset)
    architecture = registry.load("models", config.arch, "architecture")
    config = _filled_in(as_before(config, folder) if resume != "never" else config, architecture)
    with stop_signals() as stop, ExitStack() as held:
        ranks = distributed.launch(config.device, config.precision, config.devices, config.strategy)
        report = report if ranks.is_main else silent

        def begun() -> TrainSummary | None:
            """Take the folder; or return the summary of a run that is finished."""
            for is_ours in (False, True):  # looked at twice: another may have worked on it until it was ours
                check_resume(folder, resume)
                if resume != "never" and folder.config.exists() and (folder.states() or folder.best.exists()):
                    refuse_other_run(folder, config, stored)
                    if folder.summary.exists():
                        report(Note(f"{run} is finished already, nothing to do"))
                        return _finished(folder)
                if not is_ours:
                    held.enter_context(folder.lease())
            return None

        finished = ranks.agreed(begun)
        return finished or _Training(ranks, stored, folder, config, architecture, report).run(stop)


def default_run_name(config: TrainConfig) -> str:
    """A run's folder name from what tells runs apart most; the same command line finds the same run again."""
    return f"{config.arch}-{config.fraction:g}-seed{config.seed}"


def _filled_in(config: TrainConfig, architecture: ModuleType) -> TrainConfig:
    """The settings with all that was left open filled in, from the architecture's file and from what `auto` means."""
    recommended = {"fitted_lr": 1.0, "augment": 0.0, **architecture.RECIPE}
    recipe = {name: value for name, value in recommended.items() if getattr(config, name) is None}
    device, precision = distributed.resolve(config.device, config.precision)
    return replace(
        config,
        **recipe,
        device=device,
        precision=precision,
        model=asdict(settings.build(architecture.Config, config.model, "the model")),
        objectives=dict(config.objectives or architecture.OBJECTIVES),
    )


def _finished(folder: RunFolder) -> TrainSummary:
    paths = {"run": str(folder.folder), "checkpoint": str(folder.best)}
    try:
        return TrainSummary(**{**folder.read_summary(), **paths, "steps_executed": 0})
    except TypeError:
        raise CyclicError(
            f"{folder.summary} is damaged.", "Remove it; the run then ends again from its state."
        ) from None


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

    def __init__(
        self,
        ranks: Ranks,
        dataset: StoredDataset,
        folder: RunFolder,
        config: TrainConfig,
        architecture: ModuleType,
        report: Report,
    ) -> None:
        self.began = time.monotonic()
        self.ranks, self.fabric = ranks, ranks.fabric
        self.dataset, self.folder, self.config, self.architecture, self.report = (
            dataset, folder, config, architecture, report,
        )  # fmt: skip
        self.data = Samples.of(dataset, "train", config.fraction)
        self.val_data = Samples.of(dataset, "val")
        if not len(self.data):
            if not any(len(dataset.records(split)) for split in SPLITS):
                raise CyclicError("The data set holds no images, only texts.", "Prepare images with them.")
            splits = ", ".join(f"{name} {count}" for name, count in dataset.facts.counts.get("splits", {}).items())
            raise CyclicError(
                f"No training image in the first {config.fraction:.3g} of the training patients (samples: {splits}).",
                "Take a larger --fraction, or prepare the data with another --split.",
            )
        assert config.batch_size is not None
        self.batch_size = min(config.batch_size, len(self.data))
        self.steps_per_epoch = math.ceil(len(self.data) / self.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self.objectives = _objectives(config, architecture)
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
            self.gradients.close()
            self.write.close()
            if self.board:
                self.board.close()
        summary = TrainSummary(
            run=str(self.folder.folder), checkpoint=str(self.folder.best), arch=self.config.arch,
            objective=self.config.objective, fraction=self.config.fraction, paired_fraction=None,
            epochs=self.config.epochs, steps=self.steps, steps_executed=executed + self.progress.step,
            seed=self.config.seed, train_samples=len(self.data), val=self.progress.val,
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
            write_yaml(self.folder.config, described(self.config, self.dataset))
            self.folder.metrics.unlink(missing_ok=True)
            self._add_metrics("hardware", asdict(self.plan))

    def _build(self, stop: list[int]) -> None:
        torch.manual_seed(self.config.seed)
        try:
            model_config = self.architecture.Config(**self.config.model)
            self.module = self.architecture.Model(model_config, self.dataset.image_shape)
        except ValueError as error:
            raise UsageError(
                f"--arch {self.config.arch}: {error}.", "Change the setting, or prepare another --size."
            ) from None
        self.state = self.ranks.agreed(lambda: newest_whole_state(self.folder, self.report))
        if self.state is None:  # a resumed run takes its weights from there
            self.ranks.agreed(lambda: self._initialise(stop))
        self.ranks.share_weights(self.module)
        pixels = math.prod(self.dataset.image_shape)
        self.plan = make_plan(self.config, self.ranks, self.module, self.objectives, self.batch_size, pixels)
        self.model = self.fabric.setup_module(prepare_model(self.module, self.plan))
        self.optimizer = self.fabric.setup_optimizers(
            torch.optim.AdamW(
                self._parameter_groups(), lr=self.config.lr or 0.0,
                weight_decay=self.config.weight_decay or 0.0, fused=True,
            )
        )  # fmt: skip
        self.gradients = Gradients(
            self.ranks, self.model, self.objectives, self.config.objectives, self.plan, self._batch
        )
        self.progress.environment = environment(self.plan)

    def _initialise(self, stop: list[int]) -> None:
        """Start the model from the training images. Raises Stopped when a signal ends that."""
        order = EpochOrder(len(self.data), self.config.seed, BEFORE_TRAINING)[:INITIALISATION_IMAGES]
        total, whole = len(order), len(order) == len(self.data)
        self.report(Note(f"starting {self.config.arch} from {'the ' if whole else ''}{total} training images"))

        def images() -> Iterator[Tensor]:
            done = 0
            for batch in self.data.batches(order, INITIALISATION_BATCH):
                if stop:
                    raise stopped(signal.Signals(stop[0]), 0, self.steps)
                yield batch
                done += len(batch)
                self.report(Progress(done, total, "images of the start"))

        self.module.initialise(images())

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters, and apart from them those that start in closed form, with their share of the rate."""
        prefixes = tuple(f"{name}." for name in getattr(self.architecture, "FITTED", ()))
        groups: dict[bool, list[Any]] = {False: [], True: []}
        for name, parameter in self.module.named_parameters():
            groups[bool(prefixes) and name.startswith(prefixes)].append(parameter)
        shares = {False: 1.0, True: self.config.fitted_lr}
        return [{"params": group, "share": shares[fitted]} for fitted, group in groups.items() if group]

    def _resume(self) -> int | None:
        """Take up the newest saved state, and return its step."""
        if self.state is None:
            return None
        saved = self.folder.load_state(self.state)
        self.progress = restore(self.ranks, self.module, self.optimizer, saved, layout(self.plan))
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
            order = EpochOrder(len(self.data), self.config.seed, epoch)
            self.clock.start()
            self.model.train()
            while self.progress.step < (epoch + 1) * self.steps_per_epoch:
                self._step(order, epoch)
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

    def _step(self, order: EpochOrder, epoch: int) -> None:
        within = self.progress.step - epoch * self.steps_per_epoch
        chosen = order[within * self.batch_size : (within + 1) * self.batch_size]
        lr = learning_rate(self.progress.step, self.steps, self.config.lr or 0.0, self.config.warmup or 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        losses = self._of_all_processes(self.gradients(chosen, epoch))
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
        return losses | {"total": sum(self.config.objectives[name] * loss for name, loss in losses.items())}

    def _named(self, chosen: np.ndarray) -> str:
        """Some samples, by the start of their keys in the index."""
        keys = ", ".join(f"{key:016x}" for key in self.data.keys(chosen[:NAMED]))
        return f"the samples {keys}{' ...' if len(chosen) > NAMED else ''}"

    def _batch(self, chosen: np.ndarray, epoch: int) -> Batch:
        """Images of the samples numbered by `chosen` (N,), and the random numbers that a variational model takes."""
        keys, seed, device = self.data.keys(chosen), self.config.seed, self.fabric.device
        image = self.data.images(chosen)
        if self.config.augment:
            image = moved(image, keys, self.config.augment, seed, epoch)
        batch = {"image": image.to(device, non_blocking=True)}
        if "log_variance" not in self.architecture.OUTPUTS:
            return batch, {}
        noise = sample_noise(keys, self.module.latent, seed, epoch)
        return batch, {"noise": noise.to(device, non_blocking=True)}

    def _log(self, epoch: int, losses: dict[str, float], lr: float) -> None:
        step, sums = self.progress.step, self.progress.epoch_losses
        self.progress.epoch_steps += 1
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
        rate = self.clock.rate()
        self.report(Step(step, self.steps, epoch + 1, self.config.epochs, losses, lr, rate, self.batch_size))
        if step % LOG_EVERY == 0 or step == self.steps:
            row = {"step": step, "epoch": epoch + 1, "losses": losses, "lr": lr, "images_per_second": round(rate, 1)}
            self._add_metrics("step", row)

    def _log_skipped(self, epoch: int, chosen: np.ndarray) -> None:
        step = self.progress.step
        self.report(Note(f"step {step} is skipped, its loss is not finite: {self._named(chosen)}", warning=True))
        samples = [f"{key:016x}" for key in self.data.keys(chosen)]
        self._add_metrics("skipped", {"step": step, "epoch": epoch + 1, "samples": samples})
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
        val = validate(self.ranks, self.module, self.val_data, is_stopped, self._show if self.board else None)
        if val is None:  # to be validated by the next attempt
            number, _ = agreed_wishes(self.ranks, stop, save=False)
            assert number
            self._stop(number)
        if not all(map(math.isfinite, val.values())):
            raise self._not_finite("The validation error")
        self.clock.start()
        best = not val or not self.progress.val or val["mse"] < self.progress.val["mse"]
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
        checkpoint, arrays = self._checkpoint(), optimizer_arrays(self.ranks, self.module, self.optimizer)
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
        weights = {name: value.float().numpy() for name, value in self.ranks.weights(self.module).items()}
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise self._not_finite("A weight")
        return Checkpoint(
            weights=weights,
            architecture={
                "name": self.config.arch,
                "config": self.config.model,
                "image_shape": list(self.dataset.image_shape),
            },
            preprocessing=self.dataset.facts.preprocessing,
            provenance={
                "environment": self.progress.environment,
                "environment_changed": self.progress.changed,
                "settings": {name: value for name, value in as_plain(self.config).items() if name in RECORDED},
                "dataset": self.dataset.facts.fingerprint,
                "train_samples": len(self.data),
                "train_patients": self.data.patients,
                "step": self.progress.step,
                "epoch": self.progress.step / self.steps_per_epoch,
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


def _objectives(config: TrainConfig, architecture: ModuleType) -> dict[str, ModuleType]:
    """The objectives of a run by name. Raises UsageError when the architecture does not give what one needs."""
    objectives = {name: registry.load("objectives", name, "objective") for name in config.objectives}
    for name, objective in objectives.items():
        missing = [output for output in objective.NEEDS if output not in architecture.OUTPUTS]
        if missing:
            raise UsageError(
                f"The objective {name!r} needs {', '.join(missing)}, which --arch {config.arch} does not give.",
                "Leave the objective out, or take another architecture.",
            )
    return objectives
