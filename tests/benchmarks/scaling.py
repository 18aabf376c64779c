"""Measures how `cyclic train` scales to two processes, and estimates how it would scale to many GPUs.

    python tests/benchmarks/scaling.py DATASET [--rounds 3] [--images 384] [--batch-size 64] [--tflops 989] [--use 0.3]

Measured on CPUs: images/s of `cyclic train` in one process with one thread, in two such processes, and in one process
with two threads. Two processes have the same batch per process as one (weak scaling). The three configurations take
turns.

Counted: the parameters, and therefore the bytes of the float32 gradients that are all-reduced after every step. The
floating-point operations per image, forward and backward, are counted by torch's FlopCounterMode.

Estimated for each architecture: a GPU of `--tflops` that reaches the fraction `--use` of them takes t for a step of
`--batch-size` images, and at least `--floor` milliseconds, because its kernels start one after another. Gradients of B
bytes are all-reduced in rings. Within a node of 8 GPUs they use NVLink (450 GB/s per direction and GPU, by the data
sheet of the H100), and between nodes one link of 100 Gb/s per node. A ring of n takes 2 (n - 1) / n × B / bandwidth,
and 10 µs for each of its 2 log2(n) hops. The efficiency is t / (t + communication) without overlap. It is t /
max(t, t / 3 + communication) if the communication overlaps fully with the backward pass, which is two thirds of a step.
Data loading, start-up and stragglers are not included.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cyclic_cli import registry
from cyclic_cli.data.samples import Samples
from cyclic_cli.storage.dataset import StoredDataset

NODE = 8  # GPUs per node
NVLINK, NETWORK = 450e9, 100e9 / 8  # bytes per second
HOP = 10e-6  # seconds per hop
WORLDS = (8, 64, 512)


def rate(dataset: Path, arch: str, batch: int, images: int, threads: int, processes: int) -> float:
    """Images/s of `cyclic train`, without its first step."""
    data = StoredDataset(dataset)
    fraction = min(1.0, processes * images / len(data.records("train")))
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--arch",
            arch,
            "--epochs",
            "1",
            "--fraction",
            f"{fraction:.4f}",
            "--batch-size",
            str(batch * processes),
        ]
        words += ["--devices", str(processes), "--out", f"{folder}/run", "--quiet", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "cyclic_cli", "train", str(dataset), *words],
            check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
    return float(json.loads(done.stdout)["images_per_second"])


def counted(dataset: StoredDataset, arch: str) -> tuple[int, float]:
    """The number of parameters of an architecture, and its operations per image, forward and backward."""
    architecture = registry.load("models", arch, "architecture")
    model = architecture.Model(architecture.Config(), dataset.image_shape)
    image = Samples.of(dataset, "train").images(np.arange(4))
    noise = {"noise": torch.randn(4, model.latent)} if "log_variance" in architecture.OUTPUTS else {}
    with FlopCounterMode(display=False) as counter:
        sum(output.sum() for output in model(image, **noise).values()).backward()
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / len(image)


def communication(size: int, world: int) -> float:
    """Seconds to all-reduce `size` bytes over `world` GPUs in nodes of 8."""
    nodes, inside = -(-world // NODE), min(world, NODE)

    def ring(members: int, bandwidth: float) -> float:
        return 2 * (members - 1) / members * size / bandwidth + 2 * math.log2(members) * HOP

    return ring(inside, NVLINK) + (ring(nodes, NETWORK) if nodes > 1 else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--arch", nargs="+", default=registry.names("models"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tflops", type=float, default=989)
    parser.add_argument("--use", type=float, default=0.3)
    parser.add_argument("--floor", type=float, default=3.0)
    options = parser.parse_args()
    print("| arch | 1 process | 2 processes | 2 threads | efficiency |\n|---|---|---|---|---|")
    for arch in options.arch if options.rounds else ():
        ways = {"one": (1, 1), "two": (1, 2), "threads": (2, 1)}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, (threads, processes) in ways.items():
                rates[way].append(rate(options.dataset, arch, options.batch_size, options.images, threads, processes))
        shown = [f"{statistics.median(found):.1f} ({min(found):.1f}–{max(found):.1f})" for found in rates.values()]
        pairs = [two / one / 2 for one, two in zip(rates["one"], rates["two"], strict=True)]
        print(f"| {arch} | {' | '.join(shown)} | {statistics.median(pairs):.2f} |", flush=True)
    heads = ["arch", "parameters", "all-reduce MB", "GFLOP per image", "step ms"]
    heads += [f"{world} GPUs: ms, efficiency" for world in WORLDS]
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for arch in options.arch:
        parameters, operations = counted(StoredDataset(options.dataset), arch)
        step = max(options.floor / 1e3, options.batch_size * operations / (options.tflops * 1e12 * options.use))
        cells = [arch, f"{parameters:,}", f"{4 * parameters / 1e6:.2f}", f"{operations / 1e9:.2f}", f"{1e3 * step:.2f}"]
        for world in WORLDS:
            exchange = communication(4 * parameters, world)
            separate, overlapped = step / (step + exchange), step / max(step, step / 3 + exchange)
            cells.append(f"{1e3 * exchange:.2f}, {separate:.0%}–{overlapped:.0%}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
