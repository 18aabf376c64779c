"""Runs the measurements of `training.py` and `training_gpu.py`, each in a separate process.

    python training_loops.py LOOP TASK      prints one JSON object; TASK is `Task` as JSON

    tensors     the obvious loop: a DataLoader over tensors in memory, float32, NCHW, AdamW with its defaults
    files       the same over image files, which Pillow decodes and resizes in every epoch
    lightning   Lightning's Trainer over tensors in memory
    curves      losses of the plain loop and of `cyclic train` per step, with the same initial weights and batches
    profile     seconds of each part of `cyclic train`
    resident    memory of `cyclic train` after each step
    operations  floating-point operations per image
    busy        fraction of time in which the GPU computes

The loops train the network of an architecture with unfused layers (`fuse` off) and with the loss of `cyclic train`.
Rates count the batches after the first two. Lightning is imported inside its function, since it may not be installed.
"""

import json
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cyclic_cli import config as settings
from cyclic_cli import console, registry
from cyclic_cli.config import TrainConfig
from cyclic_cli.data.samples import Samples
from cyclic_cli.distributed import Ranks
from cyclic_cli.events import Event, Step
from cyclic_cli.models._layers import use_fusion
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training import autoencoding
from cyclic_cli.training import task as training
from cyclic_cli.training.run_log import RunLog
from cyclic_cli.training.schedule import learning_rate

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
WARM_UP = 2  # batches before the clock starts


@dataclass(frozen=True, kw_only=True)
class Task:
    """The architecture, data and settings of a measurement."""

    arch: str
    dataset: str  # folder of a prepared dataset
    files: str = ""  # folder of image files
    images: int = 1536  # after the warm-up
    batch: int = 64
    threads: int = 1
    device: str = "cpu"
    workers: int = 0  # processes of the DataLoader
    assignments: list[str] = field(default_factory=list)  # as in `cyclic train --set`

    def samples(self) -> Samples:
        return Samples.of(StoredDataset(Path(self.dataset)), "train")

    def tensors(self) -> Tensor:
        """The training images (N, C, H, W) float32, or all that exist if they are fewer."""
        samples = self.samples()
        return samples.images(np.arange(min(len(samples), self.images + WARM_UP * self.batch)))

    def config(self, **values: object) -> TrainConfig:
        """Settings of `cyclic train`."""
        assigned = settings.assign(
            {"arch": self.arch, "batch_size": self.batch, "device": self.device}, self.assignments
        )
        return settings.build(TrainConfig, assigned | values, "the run")


class Plain(nn.Module):
    """An architecture's network and loss, without the optimisations of `cyclic train`."""

    def __init__(self, task: Task, fuse: bool = False) -> None:
        super().__init__()
        self.architecture = registry.load("models", task.arch, "architecture")
        config = settings.build(self.architecture.Config, task.config().model, "the model")
        self.network = self.architecture.Model(config, StoredDataset(Path(task.dataset)).image_shape)
        use_fusion(self.network, fuse)
        self.weights = task.config().objectives or self.architecture.OBJECTIVES
        self.objectives = {name: registry.load("objectives", name, "objective") for name in self.weights}

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The scalar loss of images (N, C, H, W). A variational code is sampled with `noise`; None draws new noise."""
        inputs: dict[str, Tensor] = {}
        if "log_variance" in self.architecture.OUTPUTS:
            inputs["noise"] = (
                torch.randn(len(image), self.network.latent, device=image.device) if noise is None else noise
            )
        outputs = self.network(image, **inputs)
        losses = [
            self.weights[name] * objective.loss(outputs, {"image": image})
            for name, objective in self.objectives.items()
        ]
        return torch.stack(losses).sum()


class Files(Dataset[Tensor]):
    """Image files that are decoded and resized at each access, as (1, size, size) float32 in [0, 1]."""

    def __init__(self, paths: list[str], size: int) -> None:
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self._paths[number]) as image:
            small = image.convert("L").resize((self._size, self._size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(small, dtype=np.float32)[None] / 255)


def plain_rate(task: Task, loader: Iterable[Any]) -> float:
    """Images/s of the plain training loop."""
    model = Plain(task).to(task.device)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = _forever(loader)

    def step() -> int:
        (image,) = next(batches)
        optimizer.zero_grad()
        loss = model(image.to(task.device))
        loss.backward()
        optimizer.step()
        loss.item()
        return len(image)

    for _ in range(WARM_UP):
        step()
    seen, start = 0, time.perf_counter()
    while seen < task.images:
        seen += step()
    return seen / (time.perf_counter() - start)


def _forever(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def tensors(task: Task) -> dict[str, Any]:
    loader = DataLoader(TensorDataset(task.tensors()), batch_size=task.batch, shuffle=True)
    return {"images_per_second": plain_rate(task, loader)}


def image_files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def files(task: Task) -> dict[str, Any]:
    size = StoredDataset(Path(task.dataset)).facts.preprocessing.size
    loader = DataLoader(
        Files(image_files(Path(task.files)), size),
        batch_size=task.batch,
        shuffle=True,
        num_workers=task.workers,
        collate_fn=lambda images: (torch.stack(images),),
    )
    return {"images_per_second": plain_rate(task, loader)}


def lightning(task: Task) -> dict[str, Any]:
    from lightning.pytorch import Callback, LightningModule, Trainer

    ends: list[float] = []
    sizes: list[int] = []

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.plain = Plain(task)

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            return self.plain(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: list[Tensor], number: int) -> None:
            ends.append(time.perf_counter())
            sizes.append(len(batch[0]))
            trainer.should_stop = sum(sizes[WARM_UP:]) >= task.images

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
    )
    trainer.fit(Module(), DataLoader(TensorDataset(task.tensors()), batch_size=task.batch, shuffle=True))
    return {"images_per_second": sum(sizes[WARM_UP:]) / (ends[-1] - ends[WARM_UP - 1])}


def resident(task: Task) -> dict[str, Any]:
    """Anonymous memory of `cyclic train` after each step of one epoch, and the data read from disk, in MiB."""
    held: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Step):
            status = Path("/proc/self/status").read_text()
            held.append(int(status.split("RssAnon:")[1].split()[0]) / 1024)

    with tempfile.TemporaryDirectory() as folder:
        summary = training.train(Path(task.dataset), Path(folder) / "run", task.config(epochs=1), report=note)
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock  # blocks of 512 bytes
    return {
        "own_mib": held,
        "read_mib": blocks / 2048,
        "images_per_second": summary.images_per_second,
        "mse": summary.val["mse"],
    }


def plain_curve(task: Task, run: Any, reverse: bool = False) -> list[float]:
    """Losses of the plain loop with the initial weights and batches of a run of `cyclic train`.

    `reverse` reverses the order of the images in each batch.
    """
    model = Plain(task)
    model.network.load_state_dict(run.initial)
    learner = run.learner
    learner.module = model.network
    optimizer = torch.optim.AdamW(learner.parameter_groups(), weight_decay=run.config.weight_decay)
    losses = []
    for step in range(learner.steps):
        chosen = learner.batch(step)
        batch, noise = learner._load(chosen[::-1].copy() if reverse else chosen, step // learner.steps_per_epoch)
        lr = learning_rate(step, learner.steps, run.config.lr, run.config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["share"]
        loss = model(batch["image"], **noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.config.gradient_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


STEPS = 40  # minimum number of steps of a curve


def curves(task: Task) -> dict[str, Any]:
    """The losses of all steps, by the name of the loop."""
    runs: list[Any] = []
    set_up_network = training.set_up_network

    def recording(ranks: Ranks, learner: Any, config: Any) -> Any:
        """Set the network up, and keep its initial weights."""
        network = set_up_network(ranks, learner, config)
        initial = {name: value.clone() for name, value in learner.module.state_dict().items()}
        runs.append(SimpleNamespace(learner=learner, config=config, initial=initial))
        return network

    training.set_up_network = recording
    wanted, available = STEPS * task.batch, len(task.samples())

    def trained(precision: str) -> list[float]:
        losses: list[float] = []

        def note(event: Event) -> None:
            if isinstance(event, Step):
                losses.append(event.losses["total"])

        with tempfile.TemporaryDirectory() as folder:
            config = task.config(
                epochs=-(-wanted // available), fraction=min(1, wanted / available), augment=0, precision=precision
            )
            training.train(Path(task.dataset), Path(folder) / "run", config, report=note)
        return losses

    found = {"cyclic, float32": trained("32"), "cyclic, default precision": trained("auto")}
    first = runs[0]
    return {"plain": plain_curve(task, first), "plain, batch reversed": plain_curve(task, first, reverse=True), **found}


class Stopwatch:
    """Measures seconds in named parts by thread. The time of a nested part counts for the inner part only."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[str, int]] = Counter()  # by part and thread
        self._inner = threading.local()
        self._lock = threading.Lock()

    def watch(self, part: str, owner: Any, *names: str) -> None:
        """Time the named functions of a class or module. Callers must access them as its attributes."""
        for name in names:
            setattr(owner, name, self.watched(part, getattr(owner, name)))

    def watched(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, wrapped so that its time is measured."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer, self._inner.seconds = getattr(self._inner, "seconds", 0.0), 0.0
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                with self._lock:
                    self.seconds[part, threading.get_ident()] += took - self._inner.seconds
                self._inner.seconds = outer + took

        return timed

    def parts(self) -> dict[str, float]:
        """Seconds of each part. For the parallel threads that run the forward pass, the mean counts."""
        parallel = {thread for part, thread in self.seconds if part == FORWARD}
        found: Counter[str] = Counter()
        for (part, thread), seconds in self.seconds.items():
            found[part] += seconds / len(parallel) if thread in parallel else seconds
        return dict(found)


FORWARD = "forward"


def profile(task: Task) -> dict[str, Any]:
    """Seconds of each part of `cyclic train` after its second step, and in total."""
    stopwatch = Stopwatch()
    architecture = registry.load("models", task.arch, "architecture")
    stopwatch.watch(FORWARD, architecture.Model, "forward")
    for name in task.config().objectives or architecture.OBJECTIVES:
        stopwatch.watch(FORWARD, registry.load("objectives", name, "objective"), "loss")
    stopwatch.watch("backward", torch.autograd, "backward", "grad")
    stopwatch.watch("optimizer", torch.optim.AdamW, "step", "zero_grad")
    stopwatch.watch("optimizer", nn.utils, "clip_grad_norm_")
    stopwatch.watch("data", Samples, "images")
    stopwatch.watch("augmentation", autoencoding, "moved")
    stopwatch.watch("noise of the code", autoencoding, "sample_noise")
    stopwatch.watch("logging", RunLog, "step")
    found: dict[str, Any] = {}
    start = 0.0

    def note(event: Event) -> None:
        nonlocal start
        report(event)
        if isinstance(event, Step) and event.step == WARM_UP:
            stopwatch.seconds.clear()
            start = time.perf_counter()
        if isinstance(event, Step) and event.step == event.steps:
            seconds = time.perf_counter() - start
            found.update(steps=event.steps - WARM_UP, seconds=seconds, parts=stopwatch.parts())

    with tempfile.TemporaryDirectory() as folder, console.reporting(quiet=False) as drawn:
        report = stopwatch.watched("progress", drawn)
        wanted, available = task.images + WARM_UP * task.batch, len(task.samples())
        config = task.config(epochs=1, fraction=min(1, wanted / available))
        training.train(Path(task.dataset), Path(folder) / "run", config, report=note)
    return found


def operations(task: Task) -> dict[str, Any]:
    """Floating-point operations per image of the network that `cyclic train` trains, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Plain(task, fuse=True).to(task.device)
    image = task.samples().images(np.arange(task.batch)).to(task.device)
    with FlopCounterMode(display=False) as counter:
        model(image).backward()
    return {"operations": counter.get_total_flops() / len(image)}


def busy(task: Task) -> dict[str, Any]:
    """The fraction of time in which GPU kernels run during `cyclic train`. None where no kernel runs."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CUDA if task.device == "cuda" else ProfilerActivity.CPU])
    times: list[float] = []

    def note(event: Event) -> None:
        if not isinstance(event, Step) or event.step not in (event.steps // 2, event.steps):
            return
        if task.device == "cuda":
            torch.cuda.synchronize()
        if not times:
            profiler.start()
        times.append(time.perf_counter())
        if len(times) == 2:
            profiler.stop()

    with tempfile.TemporaryDirectory() as folder:
        training.train(Path(task.dataset), Path(folder) / "run", task.config(epochs=1), report=note)
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    kernels = [(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") == "kernel"]  # µs
    return {"busy": covered(kernels) / 1e6 / (times[1] - times[0]) if kernels else None}


def covered(intervals: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    length, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        length += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return length


LOOPS = {loop.__name__: loop for loop in (tensors, files, lightning, curves, profile, resident, operations, busy)}


def main() -> None:
    task = Task(**json.loads(sys.argv[2]))
    torch.set_num_threads(task.threads)
    print(json.dumps(LOOPS[sys.argv[1]](task)))


if __name__ == "__main__":
    main()
