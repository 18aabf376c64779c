"""Measures the cost of a dataset of a hundred million images for one process: opening, memory, page faults, order.

    python tests/benchmarks/scale.py --work DIR [--samples 100000000] [--images 20000]

The script writes a dataset to DIR. Its index has that many samples of 40 bytes each. Only a few shards are written, in
their real size, and all samples share them. Their pixels are zero, but every page must still be read. Images are
therefore a substitute, while records, order and page faults are realistic. A second process then opens the dataset and
reads batches of 64, as training does. The script prints the times, and the memory of that process: its own (anonymous)
and the mapped memory. With `--cold`, the pages are first dropped from the page cache, as far as permissions allow.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from cyclic_cli.config import as_plain
from cyclic_cli.data.samples import EpochOrder, Samples
from cyclic_cli.storage.dataset import DatasetFacts, StoredDataset, shard_name
from cyclic_cli.storage.files import write_tensors, write_yaml
from cyclic_cli.storage.records import RECORD

SHARD = 4096  # images per shard, as `cyclic prepare` writes them
PATIENT = 4  # images per patient
BATCH = 64
CHUNK = 1_000_000  # records generated at a time


def make(folder: Path, samples: int, images: int) -> None:
    """Write the dataset, unless it exists."""
    if (folder / "dataset.yaml").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    shards = -(-images // SHARD)
    for shard in range(shards):
        write_tensors(folder / shard_name(shard), {"images": np.zeros((SHARD, 1, 224, 224), np.uint8)}, {})
    bounds = [0, samples * 8 // 10, samples * 9 // 10, samples]
    records = np.lib.format.open_memmap(folder / "records.npy", "w+", RECORD, (samples,))
    for split, (first, end) in enumerate(pairwise(bounds)):
        for start in range(first, end, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, end))
            part, patients = records[numbers[0] : numbers[-1] + 1], (numbers - first) // PATIENT
            part["key"] = generator.integers(2**64, size=len(numbers), dtype=np.uint64)
            part["position"] = patients / ((end - first - 1) // PATIENT + 1)
            place = generator.integers(shards * SHARD, size=len(numbers))
            part["shard"], part["row"] = np.divmod(place, SHARD)
            part["height"], part["width"], part["patient"], part["split"] = 2500, 2048, patients, split
    records.flush()
    facts = DatasetFacts(counts={"paired": 0, "image_only": samples}, shards=shards)
    write_yaml(folder / "dataset.yaml", as_plain(facts))


def drop(folder: Path) -> None:
    """Ask the system to drop the pages of the files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> dict[str, float]:
    """Anonymous and mapped memory of this process in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def faults() -> np.ndarray:
    """The numbers of minor and major page faults of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([usage.ru_minflt, usage.ru_majflt])


def measure(folder: Path, batches: int) -> None:
    """Open the dataset, read batches, and print the results as JSON."""
    before, start = memory(), time.perf_counter()
    data = Samples.of(StoredDataset(folder), "train")
    part = Samples.of(StoredDataset(folder), "train", 0.4)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    order = EpochOrder(len(data), 0, 0)
    chosen = [order[first : first + BATCH] for first in range(0, batches * BATCH, BATCH)]
    ordered = time.perf_counter() - start
    found, start = faults(), time.perf_counter()
    for numbers in chosen:
        data.keys(numbers)
    of_records, looked = faults() - found, time.perf_counter() - start
    found, start = faults(), time.perf_counter()
    for numbers in chosen:
        data.dataset.images(data.records[numbers]["shard"], data.records[numbers]["row"])
    of_images, read = faults() - found, time.perf_counter() - start
    now, count = memory(), batches * BATCH
    print(json.dumps({
        "samples": len(data), "of 40 %": len(part), "patients": data.patients, "open seconds": opened,
        "order, µs per batch": 1e6 * ordered / batches, "records, µs per batch": 1e6 * looked / batches,
        "images, µs per batch": 1e6 * read / batches,
        "page faults of records, per image": (of_records / count).tolist(),
        "page faults of images, per image": (of_images / count).tolist(),
        "own memory, MiB": now["RssAnon"] - before["RssAnon"], "mapped memory, MiB": now["RssFile"] - before["RssFile"],
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.work / f"dataset-{options.samples}"
    if options.measure:
        measure(folder, options.batches)
        return
    make(folder, options.samples, options.images)
    for state in ("cold", "warm") if options.cold else ("warm",):
        if state == "cold":
            drop(folder)
        words = [sys.executable, __file__, "--measure", "--work", options.work, "--samples", str(options.samples)]
        done = subprocess.run(
            [*words, "--batches", str(options.batches)], check=True, stdout=subprocess.PIPE, text=True
        )
        size = (folder / "records.npy").stat().st_size / 2**20
        print(f"{state}, index of {size:.0f} MiB")
        for name, value in json.loads(done.stdout).items():
            print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
