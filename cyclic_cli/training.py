"""`cyclic train`: trains a model on a data set and keeps it in a run folder.

    build      data, model (started from the data), optimizer, objectives
    resume     the newest saved state, when there is one and it is asked for
    loop       epochs of steps; state is saved every few minutes, after every epoch and before a signal ends it
    validate   after every epoch; the best checkpoint so far is the run's model
    finish     the summary; `runs/latest` names the run from its first checkpoint on

What is unusual: a stopped and resumed run ends with the bits of a run that was never stopped. So the learning
rate is a function of the step, the order of an epoch one of (seed, epoch), a sample's noise one of (seed, epoch,
sample), and `metrics.jsonl` is cut back to the state that is resumed.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclic_cli import config as settings
from cyclic_cli import distributed, registry
from cyclic_cli.config import TrainConfig, as_plain
from cyclic_cli.data import Samples, epoch_order, moved, sample_noise
from cyclic_cli.errors import CyclicError, Stopped, UsageError
from cyclic_cli.events import Epoch, Note, Report, Step, silent
from cyclic_cli.gradients import Batch, Gradients, layout, make_plan, prepare_model
from cyclic_cli.storage import Checkpoint, RunFolder, StoredDataset, write_checkpoint, write_yaml

LOG_EVERY = 10  # steps between two lines of metrics
INITIALISATION_BATCH = 32
VALIDATION_BATCH = 64
BEFORE_TRAINING = -1  # the epoch whose order the model is started in
OPERATION = ("checkpoint_minutes", "checkpoint_steps")  # settings that change no bit of the result


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
    _check_resume(folder, resume)
    stored = StoredDataset(dataset)
    architecture = registry.load("models", config.arch, "architecture")
    config = _filled_in(config, architecture)
    if resume != "never" and folder.config.exists():
        _refuse_other_run(folder, config, stored)
        if folder.summary.exists():
            report(Note(f"{run} is finished"))
            return _finished(folder)
    training = _Training(stored, folder, config, architecture, report)
    with _stop_signals() as stop:
        return training.run(stop)


def default_run_name(config: TrainConfig) -> str:
    """A run's folder name from what tells runs apart most; the same command line finds the same run again."""
    return f"{config.arch}-{config.fraction:g}-seed{config.seed}"


def _check_resume(folder: RunFolder, resume: str) -> None:
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


def _refuse_other_run(folder: RunFolder, config: TrainConfig, dataset: StoredDataset) -> None:
    before = settings.read_run_file(folder.config)
    now = _described(config, dataset)
    different = [name for name in now if before.get(name) != now[name] and name not in OPERATION]
    if different:
        shown = "; ".join(f"{name}: {before.get(name)} there, {now[name]} here" for name in different[:4])
        raise CyclicError(f"The run {folder.folder} is another one ({shown}).", "Name another one with --out.")


def _described(config: TrainConfig, dataset: StoredDataset) -> dict[str, Any]:
    """The content of `config.yaml`: every setting, and the data set by its fingerprint."""
    return {**as_plain(config), "dataset": dataset.facts.fingerprint}


def _finished(folder: RunFolder) -> TrainSummary:
    paths = {"run": str(folder.folder), "checkpoint": str(folder.best)}
    try:
        return TrainSummary(**{**folder.read_summary(), **paths, "steps_executed": 0})
    except TypeError:
        raise CyclicError(
            f"{folder.summary} is damaged.", "Remove it; the run then ends again from its state."
        ) from None


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives the first stopping signal; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Progress:
    """What of a run changes, as `progress.json` keeps it."""

    step: int = 0  # optimizer steps done
    epochs_done: int = 0  # with their validation
    epoch_losses: dict[str, float] = field(default_factory=dict)  # sums over the steps of the current epoch
    val: dict[str, float] = field(default_factory=dict)  # of the best checkpoint
    metrics_size: int = 0  # bytes


class _Clock:
    """Seconds of the training loop, without the first step and without validation."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.monotonic()

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
        self._since = None

    def rate(self) -> float:
        running = time.monotonic() - self._since if self._since is not None else 0.0
        return self.images / (self.seconds + running) if self.images else 0.0


class _Training:
    """One attempt at a run."""

    def __init__(
        self,
        dataset: StoredDataset,
        folder: RunFolder,
        config: TrainConfig,
        architecture: ModuleType,
        report: Report,
    ) -> None:
        self.began = time.monotonic()
        self.dataset, self.folder, self.config, self.architecture, self.report = (
            dataset, folder, config, architecture, report,
        )  # fmt: skip
        self.data = Samples.of(dataset, "train", config.fraction)
        self.val_data = Samples.of(dataset, "val")
        if not len(self.data):
            if not dataset.index(["has_image"])["has_image"].to_numpy().any():
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
        self.progress = _Progress()
        self.clock = _Clock()
        self.fabric = distributed.launch(config.device, config.precision)

    # ------------------------------------------------------------------------------------------------- run

    def run(self, stop: list[int]) -> TrainSummary:
        self._build()
        resumed_from = self._resume()
        executed = -self.progress.step
        if resumed_from is None:
            write_yaml(self.folder.config, _described(self.config, self.dataset))
            self.folder.metrics.unlink(missing_ok=True)
        else:
            self.report(Note(f"resuming at step {resumed_from} of {self.steps}"))
        try:
            self._loop(stop)
        finally:
            self.gradients.close()
        summary = TrainSummary(
            run=str(self.folder.folder), checkpoint=str(self.folder.best), arch=self.config.arch,
            objective=self.config.objective, fraction=self.config.fraction, paired_fraction=None,
            epochs=self.config.epochs, steps=self.steps, steps_executed=executed + self.progress.step,
            seed=self.config.seed, train_samples=len(self.data), val=self.progress.val,
            images_per_second=round(self.clock.rate(), 1), seconds=round(time.monotonic() - self.began, 2),
            resumed=resumed_from is not None, resumed_from_step=resumed_from,
        )  # fmt: skip
        without_paths = {name: value for name, value in asdict(summary).items() if name not in ("run", "checkpoint")}
        self.folder.write_summary(without_paths)
        return summary

    def _build(self) -> None:
        torch.manual_seed(self.config.seed)
        try:
            model_config = self.architecture.Config(**self.config.model)
            self.module = self.architecture.Model(model_config, self.dataset.image_shape)
        except ValueError as error:
            raise UsageError(
                f"--arch {self.config.arch}: {error}.", "Change the setting, or prepare another --size."
            ) from None
        if not self.folder.states():  # a resumed run takes its weights from there
            self.report(Note(f"starting {self.config.arch} from the {len(self.data)} training images"))
            order = epoch_order(len(self.data), self.config.seed, BEFORE_TRAINING)
            self.module.initialise(self.data.batches(order, INITIALISATION_BATCH))
        pixels = math.prod(self.dataset.image_shape)
        self.plan = make_plan(self.config, self.module, self.objectives, self.batch_size, pixels)
        computed = prepare_model(self.module, self.plan)
        optimizer = torch.optim.AdamW(
            self._parameter_groups(), lr=self.config.lr or 0.0, weight_decay=self.config.weight_decay or 0.0, fused=True
        )
        self.model, self.optimizer = self.fabric.setup(computed, optimizer)
        self.gradients = Gradients(
            self.fabric, self.model, self.objectives, self.config.objectives, self.plan, self._batch
        )

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
        if not self.folder.states():
            return None
        checkpoint, optimizer, progress = self.folder.load_state()
        self.module.load_state_dict({name: torch.from_numpy(value) for name, value in checkpoint.weights.items()})
        torch.set_rng_state(torch.from_numpy(optimizer.pop("random.torch")))
        self.optimizer.load_state_dict(_with_tensors(self.optimizer.state_dict(), optimizer, layout(self.plan)))
        try:
            self.progress = _Progress(**progress)
        except TypeError:
            raise CyclicError(
                f"The newest state of {self.folder.folder} is damaged.", "Remove its folder; the one before it is used."
            ) from None
        self.folder.cut_metrics(self.progress.metrics_size)
        return self.progress.step

    # ------------------------------------------------------------------------------------------------ loop

    def _loop(self, stop: list[int]) -> None:
        saved_at, self.first_step = time.monotonic(), True
        if not self.progress.step:
            self.folder.append_metrics({"kind": "hardware", **asdict(self.plan)})
        self.report(Note(self.plan.described()))
        for epoch in range(self.progress.epochs_done, self.config.epochs):
            order = epoch_order(len(self.data), self.config.seed, epoch)
            self.clock.start()
            self.model.train()
            while self.progress.step < (epoch + 1) * self.steps_per_epoch:
                self._step(order, epoch)
                if stop:
                    self._end_by_signal(stop[0])
                minutes = (time.monotonic() - saved_at) / 60
                by_steps = self.config.checkpoint_steps and self.progress.step % self.config.checkpoint_steps == 0
                if by_steps or minutes >= self.config.checkpoint_minutes:
                    self._save_state()
                    saved_at = time.monotonic()
            self._end_epoch(epoch)
            saved_at = time.monotonic()
            if stop and epoch + 1 < self.config.epochs:
                self._end_by_signal(stop[0], save=False)

    def _step(self, order: np.ndarray, epoch: int) -> None:
        within = self.progress.step - epoch * self.steps_per_epoch
        chosen = order[within * self.batch_size : (within + 1) * self.batch_size]
        lr = learning_rate(self.progress.step, self.steps, self.config.lr or 0.0, self.config.warmup or 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        values = self.gradients(chosen, epoch)
        if not math.isfinite(values["total"]):
            raise CyclicError(
                f"The loss is not finite at step {self.progress.step + 1}.", "Lower --lr, or take --precision 32."
            )
        self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=self.config.gradient_clip, error_if_nonfinite=False
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        if self.first_step:
            self.first_step = False
            self.clock.start()  # the first step warms up; what came before does not count
        else:
            self.clock.images += len(chosen)
        self._log(epoch, values, lr)

    def _batch(self, chosen: np.ndarray, epoch: int) -> Batch:
        """Images of the samples numbered by `chosen` (N,), and the random numbers that a variational model takes."""
        keys, seed, device = self.data.keys[chosen], self.config.seed, self.fabric.device
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
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
        rate = self.clock.rate()
        self.report(Step(step, self.steps, epoch + 1, self.config.epochs, losses, lr, rate, self.batch_size))
        if step % LOG_EVERY == 0 or step == self.steps:
            row = {"kind": "step", "step": step, "epoch": epoch + 1, "losses": losses, "lr": lr}
            self.folder.append_metrics({**row, "images_per_second": round(rate, 1)})

    def _end_by_signal(self, number: int, save: bool = True) -> None:
        if save:
            self._save_state()
        code = 130 if number == signal.SIGINT else 143
        name = signal.Signals(number).name
        raise Stopped(
            f"Stopped by {name} at step {self.progress.step} of {self.steps}, state saved.",
            "The same command with --resume auto continues.",
            code,
        )

    # ------------------------------------------------------------------------------------- validate and save

    def _end_epoch(self, epoch: int) -> None:
        self.clock.stop()
        val = self._validate()
        self.clock.start()
        best = not val or not self.progress.val or val["mse"] < self.progress.val["mse"]
        if best:
            self.progress.val = val
        self.progress.epochs_done = epoch + 1
        means = {name: total / self.steps_per_epoch for name, total in self.progress.epoch_losses.items()}
        self.progress.epoch_losses = {}
        row = {
            "kind": "epoch",
            "step": self.progress.step,
            "epoch": epoch + 1,
            "train": means,
            "val": val,
            "best": best,
        }
        self.folder.append_metrics({**row, "seconds": round(time.monotonic() - self.began, 2)})
        if best:
            write_checkpoint(self.folder.best, self._checkpoint())
            self.folder.point_latest()
        self._save_state()
        self.clock.stop()
        self.report(Epoch(epoch + 1, self.config.epochs, val, best))

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """MSE and PSNR (dB) over the image area, without letterbox: means over the validation images."""
        self.model.eval()
        errors: list[float] = []
        for first in range(0, len(self.val_data), VALIDATION_BATCH):
            numbers = np.arange(first, min(first + VALIDATION_BATCH, len(self.val_data)))
            image = self.val_data.images(numbers).to(self.fabric.device)
            squares = (self.model(image)["reconstruction"].float().clamp(0, 1) - image).square()
            for square, number in zip(squares, numbers, strict=True):
                rows, columns = self.val_data.area(int(number))
                errors.append(float(square[:, rows, columns].mean()))
        self.model.train()
        if not errors:
            return {}
        decibels = [-10 * math.log10(max(error, 1e-12)) for error in errors]
        return {"mse": sum(errors) / len(errors), "psnr": sum(decibels) / len(decibels)}

    def _save_state(self) -> None:
        self.progress.metrics_size = self.folder.metrics_size()
        arrays = _as_arrays(self.optimizer.state_dict()["state"])
        arrays["random.torch"] = torch.get_rng_state().numpy()
        self.folder.save_state(self.progress.step, self._checkpoint(), arrays, asdict(self.progress))

    def _checkpoint(self) -> Checkpoint:
        """The model as it is now."""
        weights = {name: value.detach().float().cpu().numpy() for name, value in self.module.state_dict().items()}
        return Checkpoint(
            weights=weights,
            architecture={
                "name": self.config.arch,
                "config": self.config.model,
                "image_shape": list(self.dataset.image_shape),
            },
            preprocessing=self.dataset.facts.preprocessing,
            provenance={
                "tool": f"cyclic {version('cyclic-cli')}",
                "torch": torch.__version__,
                "settings": {name: value for name, value in as_plain(self.config).items() if name not in OPERATION},
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


def _as_arrays(state: dict[int, dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """An optimizer's state as named arrays: `3.exp_avg`."""
    return {
        f"{number}.{name}": value.detach().cpu().numpy()
        for number, values in state.items()
        for name, value in values.items()
    }


def _with_tensors(empty: dict[str, Any], arrays: dict[str, np.ndarray], form: torch.memory_format) -> dict[str, Any]:
    """An optimizer's state dictionary with the tensors that `_as_arrays` named, in the memory format of the model."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition(".")
        tensor = torch.from_numpy(array.copy())
        state.setdefault(int(number), {})[name] = tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor
    return {**empty, "state": state}
