"""Measures the speed of `cyclic train` and of the loops of `training_loops.py`, on the same images and cores.

    python tests/benchmarks/training.py --lightning PYTHON                          the table, conv: about half an hour
    python tests/benchmarks/training.py --arch vae --dataset DATASET --files FOLDER  on your own images
    python tests/benchmarks/training.py --curves       whether both loops compute the same losses, step by step
    python tests/benchmarks/training.py --profile      the parts of a step outside the network
    python tests/benchmarks/training.py --memory       memory use on data larger than memory; 8 GB of disk
    python tests/benchmarks/training.py --images 128 --size 64 --rounds 1           a quick test, about a minute

Images: a prepared `--dataset`, and for the decoding loop the `--files` (JPEG, PNG) from which it was prepared. With
`--files` alone, they are prepared first. With neither, synthetic radiographs of 1,500 pixels are used, each shifted by
a different offset. `--lightning` is a Python with cyclic and Lightning (`pip install -c constraints.txt . lightning`);
without it, that row stays empty.

Speed. Every method runs in a separate process on the first `--threads` cores, with as many threads and batches of 64.
It trains on about `--images` images after its warm-up. The methods take turns, so that a temporary slowdown of the
machine affects all of them. The order is reversed in every second round. Each result is the median of the rounds, with
the extremes. `cyclic train` is the real command with `--batch-size 64` and otherwise its defaults. Its rate is
`images_per_second` of its summary. This includes data loading, augmentation, logging and checkpoints, but not start-up,
the first step and validation. The loops count the batches after the first two (see `training_loops.py`). Peak memory is
that of the process with the largest memory.

Curves. The plain loop and `cyclic train`, without augmentation, start from the same weights and use the same batches
and learning rates. The difference of their losses is shown next to that of two plain loops. Those two differ only in
the order of the images within each batch, and therefore in the order in which gradients are summed.

Profile. The functions of a run of `cyclic train` are timed. The time of a nested part counts for the inner part only.
Where micro-batches run in parallel threads, the mean over the threads counts, so that waiting for another thread is
time outside the network. Forward is the model and the objectives. The optimizer is its step, including gradient
clipping. Everything else is the rest of the time between the second and the last step.

Memory. A dataset with 16 bits per pixel, ten times larger than `--limit`, is written and dropped from the page cache.
`cyclic train` trains one epoch on it in a Linux control group with that limit, which includes cached pages of the
memory map. The group is created inside that of this process; where this is not permitted, the run has no limit, and the
output says so. The memory of the process itself (RssAnon, without pages of files) is read after every step.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import confined
import numpy as np
import radiographs
import watching
from PIL import Image
from rich.console import Console
from rich.table import Table
from training_loops import WARM_UP, Task

from cyclic_cli import registry
from cyclic_cli.environment import available_cpus
from cyclic_cli.storage.dataset import StoredDataset

LOOPS = Path(__file__).with_name("training_loops.py")
CYCLIC, TENSORS, FILES, LIGHTNING = "cyclic train", "plain, in memory", "plain, decoding files", "Lightning, in memory"
SIDE, DISTINCT = 1500, 8  # longer side of a synthetic radiograph in pixels; number of different ones
GOALS = {"conv": (6.0, 7.0)}  # speed relative to the loop in memory, and to the decoding loop
GOAL = 2.0  # speed relative to the loop in memory, for all other architectures
NETWORK, OUTSIDE_GOAL = ("forward", "backward", "optimizer"), 0.05  # largest fraction of a step outside the network
SOURCES = 64  # images that the dataset of --memory repeats
TIMES = 10  # size of the dataset relative to the memory limit
log = Console(stderr=True)
console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@dataclass
class Measured:
    """The results of one method, one value per round."""

    rates: list[float] = field(default_factory=list)  # images/s
    peaks: list[float] = field(default_factory=list)  # MiB
    why_not: str = ""  # why the method was not measured

    @property
    def rate(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None


class Bench:
    """Runs the measured commands, one after another, on chosen cores."""

    def __init__(self, task: Task, work: Path, lightning: str | None) -> None:
        self.task, self.work, self.lightning = task, work, lightning

    def loop(
        self, name: str, python: str = sys.executable, group: confined.Group | None = None, **changes: Any
    ) -> tuple[dict[str, Any], float]:
        """The output of a loop of `training_loops.py`, and its peak memory in MiB."""
        words = [python, str(LOOPS), name, json.dumps(asdict(self.task) | changes)]
        return self._run(group.joining(words) if group else words)

    def cyclic(self) -> tuple[dict[str, Any], float]:
        """The summary of `cyclic train` with its hardware settings, and its peak memory in MiB."""
        run = self.work / "run"
        shutil.rmtree(run, ignore_errors=True)
        wanted = self.task.images + self.task.batch  # the first step is not counted
        available = len(self.task.samples())
        words = [sys.executable, "-m", "cyclic_cli", "train", self.task.dataset, "--out", str(run), "--json"]
        words += ["--arch", self.task.arch, "--batch-size", str(self.task.batch)]
        words += ["--epochs", str(-(-wanted // available))]
        words += ["--fraction", f"{min(1, wanted / available):.4f}", "--device", self.task.device]
        words += [word for assignment in self.task.assignments for word in ("--set", assignment)]
        summary, peak = self._run(words)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return summary | {"hardware": next(row for row in rows if row["kind"] == "hardware")}, peak

    def _run(self, words: list[str]) -> tuple[dict[str, Any], float]:
        threads = dict.fromkeys(watching.ENVIRONMENT.keys() - {"TERM"}, str(self.task.threads))  # of every library
        environment = {**threads, "CYCLIC_CACHE": str(self.work / "cache")}
        ran = watching.run(words, self.task.threads, environment=environment)
        return json.loads(ran.stdout.splitlines()[-1]), max(ran.peaks.values(), default=0)


# ------------------------------------------------------------------------------------------------------- speed


def speed(bench: Bench, rounds: int) -> None:
    """Measure all methods, and print the table."""
    turns = {
        CYCLIC: bench.cyclic,
        TENSORS: lambda: bench.loop("tensors"),
        f"{FILES}, 0 workers": lambda: bench.loop("files"),
        f"{FILES}, 2 workers": lambda: bench.loop("files", workers=2),
        LIGHTNING: lambda: bench.loop("lightning", python=bench.lightning or ""),
    }
    results = {name: Measured() for name in turns}
    if not bench.task.files:
        for name in turns:
            results[name].why_not = "no: --files is not given" if name.startswith(FILES) else ""
    if not bench.lightning:
        results[LIGHTNING].why_not = "no: --lightning is not given"
    hardware: dict[str, Any] = {}
    for number in range(rounds):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            if results[name].why_not:
                continue
            start = time.monotonic()
            try:
                found, peak = turns[name]()
            except RuntimeError as error:
                results[name].why_not = str(error)
                continue
            results[name].rates.append(found["images_per_second"])
            results[name].peaks.append(peak)
            hardware = found.get("hardware", hardware)
            log.print(f"{name}, round {number + 1} of {rounds}: {time.monotonic() - start:.0f} s")
    show_speed(bench.task, results, hardware)


def show_speed(task: Task, results: dict[str, Measured], hardware: dict[str, Any]) -> None:
    in_memory = results[TENSORS].rate
    decoding = max(
        (found.rate for name, found in results.items() if name.startswith(FILES) and found.rate), default=None
    )
    image = " × ".join(map(str, StoredDataset(Path(task.dataset)).image_shape))
    title = f"{task.arch}, images of {image}, {task.threads} threads: images/s, median (extremes of the rounds)"
    table = Table(title=title, title_justify="left")
    table.add_column("loop")
    for column in ("images/s", "× in memory", "× decoding", "peak MiB"):
        table.add_column(column, justify="right")
    for name, found in results.items():
        if found.rate is None:
            table.add_row(name, "–", "–", "–", "–")
            continue
        rate = f"{found.rate:.1f} ({min(found.rates):.1f}–{max(found.rates):.1f})"
        table.add_row(
            name, rate, _ratio(found.rate, in_memory), _ratio(found.rate, decoding), f"{max(found.peaks):.0f}"
        )
    console.print(table)
    for name, found in results.items():
        if found.why_not:
            console.print(f"{name}: {found.why_not}")
    goals = zip(("in memory", "decoding"), (in_memory, decoding), GOALS.get(task.arch, (GOAL,)), strict=False)
    for what, other, bound in goals:
        if results[CYCLIC].rate and other:
            value = results[CYCLIC].rate / other
            console.print(f"× plain loop, {what}: {value:.2f}  goal ≥ {bound:g}: {_met(value >= bound)}")
    console.print(
        "cyclic train chose "
        + ", ".join(f"{name} {value}" for name, value in hardware.items() if name not in ("kind", "attempt"))
    )


def _ratio(rate: float, other: float | None) -> str:
    return f"{rate / other:.2f}" if other else "–"


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT MET"


# --------------------------------------------------------------------------------------------- equal losses


def curves(bench: Bench) -> None:
    """Print the differences between the losses of `cyclic train` and those of the plain loop."""
    losses, _ = bench.loop("curves")
    plain = np.array(losses.pop("plain"))
    title = (
        f"{bench.task.arch}: losses of {len(plain)} steps; the plain loop's first {plain[0]:.6f}, last {plain[-1]:.6f}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("loop")
    for column in ("first", "last", "largest difference from the plain loop's"):
        table.add_column(column, justify="right")
    for name, values in losses.items():
        difference = np.abs(np.array(values) / plain - 1).max()
        table.add_row(name, f"{values[0]:.6f}", f"{values[-1]:.6f}", f"{difference:.1e}")
    console.print(table)


# ------------------------------------------------------------------------------------------------------ profile


def profile(bench: Bench) -> None:
    """Print the time that each part of a step of `cyclic train` takes."""
    found, _ = bench.loop("profile")
    step = found["seconds"] / found["steps"]
    parts = found["parts"] | {"everything else": found["seconds"] - sum(found["parts"].values())}
    table = Table(
        title=f"{bench.task.arch}: a step of {1000 * step:.0f} ms, mean of {found['steps']}", title_justify="left"
    )
    table.add_column("part")
    for column in ("ms", "share"):
        table.add_column(column, justify="right")
    for part, seconds in parts.items():
        table.add_row(part, f"{1000 * seconds / found['steps']:.2f}", f"{seconds / found['seconds']:.2%}")
    console.print(table)
    outside = 1 - sum(parts[part] for part in NETWORK) / found["seconds"]
    console.print(
        f"outside {', '.join(NETWORK)}: {outside:.2%}  goal ≤ {OUTSIDE_GOAL:.0%}: {_met(outside <= OUTSIDE_GOAL)}"
    )


# ------------------------------------------------------------------------------------------------------- memory


def memory(bench: Bench, limit: int) -> None:
    """Train with `limit` MiB of memory on a dataset `TIMES` times as large, which repeats images of the task."""
    dataset = bench.work / "large"
    images = (bench.task.samples().images(np.arange(SOURCES)).numpy() * (2**16 - 1)).astype(np.uint16)
    count = int(TIMES * limit * 2**20 // images[0].nbytes)
    if shutil.disk_usage(bench.work).free < 1.1 * count * images[0].nbytes:
        raise SystemExit(f"{bench.work} has no disk space for {TIMES * limit} MiB; choose another --work.")
    log.print(f"writing {count} images")
    confined.write_dataset(dataset, images, count)
    with confined.memory_group(limit) as group:
        try:
            found, _ = bench.loop("resident", group=group, dataset=str(dataset))
        except RuntimeError as error:
            raise SystemExit(f"Training with {limit} MiB failed: the process {error}") from None
        peak = group.peak() if group else None
    megabytes = np.array(found["own_mib"])
    tenth = max(1, len(megabytes) // 10)
    early, late = megabytes[:tenth].max(), megabytes[-tenth:].max()
    read = f"{found['read_mib']:.0f} MiB read from disk"
    console.print(f"{bench.task.arch}, dataset of {TIMES * limit} MiB, {count} images; {read}")
    if peak is None:
        console.print("a control group cannot be created here, so the limit was not tested")
    else:
        console.print(f"limit {limit} MiB, peak {peak:.0f} MiB including cached pages: training finished")
    console.print(
        f"{len(megabytes)} steps, {found['images_per_second']:.1f} images/s, validation MSE {found['mse']:.5f}"
    )
    console.print(f"own memory: {early:.0f} MiB in the first tenth of the steps, {late:.0f} MiB in the last")
    console.print(f"growth {late / early:.3f}  goal ≤ 1.02: {_met(late <= 1.02 * early)}")


# --------------------------------------------------------------------------------------------------------- data


def find_images(options: argparse.Namespace, work: Path) -> tuple[Path, str]:
    """The prepared dataset, and the folder with the files for the decoding loop."""
    source = options.files
    if not source and not options.dataset:
        source = work / "images"
        log.print("drawing synthetic radiographs")
        draw_radiographs(source, SOURCES if options.memory else options.images + WARM_UP * Task.batch)
    files = str(source or "")
    if options.dataset:
        return options.dataset, files
    log.print("preparing the images")
    prepare(source, work / "dataset", options.size)
    return work / "dataset", files


def prepare(source: Path, out: Path, size: int) -> None:
    """Prepare all files as training samples, so that all loops train on the same images."""
    words = [sys.executable, "-m", "cyclic_cli", "prepare", str(source), "--out", str(out), "--size", str(size)]
    words += ["--split", "100/0/0", "--already-deidentified", "--quiet"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def draw_radiographs(folder: Path, count: int) -> None:
    """Write `count` JPEG files of synthetic radiographs, each shifted by a different offset."""
    folder.mkdir()
    drawn = [(image >> radiographs.BITS - 8).astype(np.uint8) for image in radiographs.draw(DISTINCT, longest=SIDE)]
    generator = np.random.default_rng(0)
    for number in range(count):
        image = drawn[number % DISTINCT]
        shift = tuple(int(value) for value in generator.integers(-SIDE // 20, SIDE // 20, 2))
        Image.fromarray(np.roll(image, shift, (0, 1))).save(folder / f"{number:05d}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of `cyclic train` and of other loops on the same images.")
    parser.add_argument("--arch", default="conv", choices=registry.names("models"))
    parser.add_argument("--dataset", type=Path, help="a prepared dataset")
    parser.add_argument("--files", type=Path, help="folder with the image files for the decoding loop")
    parser.add_argument("--images", type=int, default=1536, help="images that each method trains on, after its warm-up")
    parser.add_argument("--size", type=int, default=224, help="side length in pixels, where images are prepared here")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="cores, and threads of each method")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lightning", help="a Python with cyclic and Lightning")
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="NAME=VALUE, as in cyclic train")
    parser.add_argument("--work", type=Path, help="folder for all files; default: a new temporary one")
    parser.add_argument("--limit", type=int, default=700, help="memory limit of --memory in MiB")
    what = parser.add_mutually_exclusive_group()
    for name, does in (("curves", "compare losses"), ("profile", "time parts"), ("memory", "measure memory")):
        what.add_argument(f"--{name}", action="store_true", help=f"{does} instead of speed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the exit ends child processes and removes temporary files
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        dataset, files = find_images(options, Path(work))
        task = Task(
            arch=options.arch,
            dataset=str(dataset.absolute()),
            files=files,
            images=options.images,
            threads=options.threads,
            assignments=options.assignments,
        )
        bench = Bench(task, Path(work), options.lightning)
        if options.curves:
            curves(bench)
        elif options.profile:
            profile(bench)
        elif options.memory:
            memory(bench, options.limit)
        else:
            speed(bench, options.rounds)


if __name__ == "__main__":
    main()
