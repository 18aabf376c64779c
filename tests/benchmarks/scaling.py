"""How would `cyclic train` scale? What is measured here, and what follows from it for many GPUs, on paper.

    python tests/benchmarks/scaling.py DATASET [--rounds 3] [--images 384] [--batch-size 64] [--tflops 989] [--use 0.3]

Measured on processors: images a second of `cyclic train` in one process of one thread, and in two, each with as many
images of a batch of its own (weak scaling); and the same work of one process with two threads. They take turns.

Counted: the parameters, hence the bytes of the gradients (float32) that processes add up after every step; and the
operations of an image, forward and backward, by torch's FlopCounterMode.

On paper, for each architecture: a GPU of `--tflops` that does the share `--use` of them takes t for a step of
`--batch-size` images, and at least `--floor` milliseconds, because its kernels start one after the other. The
gradients of B bytes are added up within nodes of 8 GPUs over NVLink (450 GB/s each way for each GPU, as its maker says
of the H100), and between nodes over one link of 100 Gb/s for each node, both in rings: 2 (n - 1) / n × B / bandwidth,
and 10 µs for each of the 2 log2(n) hops. The efficiency is t / (t + communication) when nothing overlaps, and t /
max(t, t / 3 + communication) when all of it hides behind the way back, two thirds of a step. Input, start and
stragglers are not in it.
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

NODE = 8  # GPUs
NVLINK, NETWORK = 450e9, 100e9 / 8  # bytes a second
HOP = 10e-6  # seconds
WORLDS = (8, 64, 512)


def rate(dataset: Path, arch: str, batch: int, images: int, threads: int, processes: int) -> float:
    """Images a second of `cyclic train` after its first step."""
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
        said = subprocess.run(
            [sys.executable, "-m", "cyclic_cli", "train", str(dataset), *words],
            check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
    return float(json.loads(said.stdout)["images_per_second"])


def counted(dataset: StoredDataset, arch: str) -> tuple[int, float]:
    """Parameters of an architecture, and operations of an image forward and backward."""
    architecture = registry.load("models", arch, "architecture")
    model = architecture.Model(architecture.Config(), dataset.image_shape)
    image = Samples.of(dataset, "train").images(np.arange(4))
    noise = {"noise": torch.randn(4, model.latent)} if "log_variance" in architecture.OUTPUTS else {}
    with FlopCounterMode(display=False) as counter:
        sum(output.sum() for output in model(image, **noise).values()).backward()
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / len(image)


def communication(size: int, world: int) -> float:
    """Seconds to add up `size` bytes over GPUs in nodes of 8."""
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
    asked = parser.parse_args()
    print("| arch | 1 process | 2 processes | 2 threads | efficiency |\n|---|---|---|---|---|")
    for arch in asked.arch if asked.rounds else ():
        ways = {"one": (1, 1), "two": (1, 2), "threads": (2, 1)}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(asked.rounds):
            for way, (threads, processes) in ways.items():
                rates[way].append(rate(asked.dataset, arch, asked.batch_size, asked.images, threads, processes))
        shown = [f"{statistics.median(found):.1f} ({min(found):.1f}–{max(found):.1f})" for found in rates.values()]
        pairs = [two / one / 2 for one, two in zip(rates["one"], rates["two"], strict=True)]
        print(f"| {arch} | {' | '.join(shown)} | {statistics.median(pairs):.2f} |", flush=True)
    heads = ["arch", "parameters", "all-reduce MB", "GFLOP an image", "step ms"]
    heads += [f"{world} GPUs: ms, efficiency" for world in WORLDS]
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for arch in asked.arch:
        parameters, operations = counted(StoredDataset(asked.dataset), arch)
        step = max(asked.floor / 1e3, asked.batch_size * operations / (asked.tflops * 1e12 * asked.use))
        cells = [arch, f"{parameters:,}", f"{4 * parameters / 1e6:.2f}", f"{operations / 1e9:.2f}", f"{1e3 * step:.2f}"]
        for world in WORLDS:
            talk = communication(4 * parameters, world)
            apart, hidden = step / (step + talk), step / max(step, step / 3 + talk)
            cells.append(f"{1e3 * talk:.2f}, {apart:.0%}–{hidden:.0%}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
