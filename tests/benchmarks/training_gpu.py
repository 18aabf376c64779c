"""Measures the speed of `cyclic train` on a GPU relative to the plain loop, and the utilisation of the GPU.

    python tests/benchmarks/training_gpu.py                   conv and residual at 224 pixels, some minutes
    python tests/benchmarks/training_gpu.py --device cpu --size 64 --images 320     a quick test without a GPU

Images: synthetic radiographs, prepared at `--size` and repeated to a dataset of `--images` (8 bits). `cyclic train` is
the real command for one epoch in bfloat16, with `--batch-size` and otherwise its defaults. Its rate is
`images_per_second` of its summary. This includes data loading, augmentation and logging, but not start-up, the first
step and validation. The plain loop is that of `training_loops.py` in float32 and NCHW. Its tensors are in main memory,
and each batch is copied to the GPU. Both run in separate processes and take turns for `--rounds` rounds. Each result is
the median, with the extremes.

Model FLOP utilisation is the rate × the operations per image ÷ the peak of the GPU. A multiply–add of a convolution or
matrix product counts as two operations, forward and backward. torch's FlopCounterMode counts them on the model that
`cyclic train` trains. The peak is that of dense bfloat16 in the data sheet of the GPU, or `--peak` TFLOPS.

Busy is the fraction of time in which at least one kernel runs, without copies. torch's profiler measures it in a
separate run, over the second half of the steps. The profiler slows the run, so the result is a lower bound.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import confined
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from training import SOURCES, Bench, draw_radiographs, prepare
from training_loops import Task

from cyclic_cli import registry
from cyclic_cli.environment import available_cpus

BUSY_GOAL = 0.9
PEAKS = {
    "B200": 2250, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L40": 181,
    "L4": 121, "A40": 150, "A30": 165, "A10": 125, "RTX 6000 Ada": 364, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
"""TFLOPS of dense bfloat16 with float32 accumulation, by a part of the device's name; the first match counts."""
log = Console(stderr=True)
console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def peak_of(name: str) -> float | None:
    """The peak of a GPU in TFLOPS; None if it is not in the table."""
    return next((float(peak) for part, peak in PEAKS.items() if part in name), None)


def write_images(work: Path, size: int, count: int) -> Path:
    """Write a dataset of `count` images (1, size, size) uint8 that repeats synthetic radiographs."""
    log.print("drawing and preparing synthetic radiographs")
    draw_radiographs(work / "images", SOURCES)
    prepare(work / "images", work / "few", size)
    few = Task(arch="conv", dataset=str(work / "few")).samples().images(np.arange(SOURCES)).numpy()
    confined.write_dataset(work / "many", np.rint(few * 255).astype(np.uint8), count)
    return work / "many"


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Rates of both loops (images/s per round), operations per image, and the busy fraction (None without CUDA)."""
    found: dict[str, Any] = {"cyclic train": [], "plain": []}
    for number in range(rounds):
        summary, _ = bench.cyclic()
        found["cyclic train"].append(summary["images_per_second"])
        plain, _ = bench.loop("tensors")
        found["plain"].append(plain["images_per_second"])
        log.print(f"{bench.task.arch}: round {number + 1} of {rounds}")
    return found | bench.loop("operations")[0] | bench.loop("busy")[0]


def show(everything: dict[str, dict[str, Any]], card: str, peak: float | None) -> None:
    table = Table(title=f"{card}, peak {peak or 'unknown'} TFLOPS", title_justify="left")
    for column in ("architecture", "loop"):
        table.add_column(column)
    for column in ("images/s", "× plain", "GFLOP per image", "TFLOPS", "utilisation", "busy"):
        table.add_column(column, justify="right")
    for arch, found in everything.items():
        plain = statistics.median(found["plain"])
        for loop in ("cyclic train", "plain"):
            rates = found[loop]
            rate = statistics.median(rates)
            operations = found["operations"] if loop == "cyclic train" else None
            table.add_row(
                arch,
                loop,
                f"{rate:.0f} ({min(rates):.0f}–{max(rates):.0f})",
                f"{rate / plain:.2f}",
                f"{operations / 1e9:.3f}" if operations else "",
                f"{rate * operations / 1e12:.3f}" if operations else "",
                f"{rate * operations / (peak * 1e12):.2%}" if operations and peak else "",
                f"{found['busy']:.1%}" if operations and found["busy"] is not None else "",
            )
    console.print(table)
    for arch, found in everything.items():
        if found["busy"] is not None:
            is_met = found["busy"] >= BUSY_GOAL
            console.print(f"{arch}: busy {found['busy']:.1%}  goal ≥ {BUSY_GOAL:.0%}: {'met' if is_met else 'NOT MET'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and utilisation of `cyclic train` on a GPU.")
    parser.add_argument("--arch", action="append", choices=registry.names("models"), help="default: conv and residual")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--images", type=int, default=20_000, help="images in the dataset; 1 GB at 224 pixels")
    parser.add_argument("--size", type=int, default=224, help="side length in pixels")
    parser.add_argument("--batch-size", type=int, default=64, help="batch size of both loops")
    parser.add_argument("--peak", type=float, help="TFLOPS of the GPU in bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", dest="assignments", action="append", default=[], help="NAME=VALUE, as in cyclic train")
    parser.add_argument("--work", type=Path, help="folder for all files; default: a new temporary one")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.exit(1, "No CUDA device is available. Test the script with --device cpu --size 64 --images 320.\n")
    card = torch.cuda.get_device_name() if cuda else "no GPU"
    everything = {}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        dataset = write_images(Path(folder), options.size, options.images)
        for arch in options.arch or ("conv", "residual"):
            task = Task(
                arch=arch,
                dataset=str(dataset),
                images=options.images - 3 * options.batch_size,
                batch=options.batch_size,
                threads=available_cpus(),
                device=options.device,
                assignments=[*(["precision=bf16"] if cuda else []), *options.assignments],
            )
            everything[arch] = measure(Bench(task, Path(folder), None), options.rounds)
    show(everything, card, options.peak or peak_of(card))
    if not cuda:
        console.print("Without a CUDA device, neither utilisation nor the busy fraction was measured.")


if __name__ == "__main__":
    main()
