"""What a dataset of a hundred million images asks of one process: time to open it, memory, pages, order of an epoch.

    python tests/benchmarks/scale.py --work DIR [--samples 100000000] [--images 20000]

DIR receives a dataset whose index has that many samples, 40 bytes each, and a few shards of real size: their pixels
are zero, but every page of them is a page of its own to be read. The samples share these shards, so the images are a
stand-in; records, order and page faults are not. A second process then opens the dataset and takes batches of 64 as
training does. It says how long that took and what memory the process holds of its own (anonymous) and shares (mapped).
With `--cold` the pages are dropped from the page cache first, as far as this user may.
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

SHARD = 4096  # images of a shard, as `cyclic prepare` makes them
PATIENT = 4  # images of a patient
BATCH = 64
CHUNK = 1_000_000  # records that are made at once


def make(folder: Path, samples: int, images: int) -> None:
    """Write the dataset, unless it is there."""
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
    """Ask the system to forget the pages of the files."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> dict[str, float]:
    """MiB that this process holds."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def faults() -> np.ndarray:
    """Page faults so far, without and with reading from the disk."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([usage.ru_minflt, usage.ru_majflt])


def measure(folder: Path, batches: int) -> None:
    """Print the figures as JSON."""
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
        "order, µs a batch": 1e6 * ordered / batches, "records, µs a batch": 1e6 * looked / batches,
        "images, µs a batch": 1e6 * read / batches,
        "faults of records, an image": (of_records / count).tolist(),
        "faults of images, an image": (of_images / count).tolist(),
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
    asked = parser.parse_args()
    folder = asked.work / f"dataset-{asked.samples}"
    if asked.measure:
        measure(folder, asked.batches)
        return
    make(folder, asked.samples, asked.images)
    for way in ("cold", "warm") if asked.cold else ("warm",):
        if way == "cold":
            drop(folder)
        words = [sys.executable, __file__, "--measure", "--work", asked.work, "--samples", str(asked.samples)]
        said = subprocess.run([*words, "--batches", str(asked.batches)], check=True, stdout=subprocess.PIPE, text=True)
        size = (folder / "records.npy").stat().st_size / 2**20
        print(f"{way}, index of {size:.0f} MiB")
        for name, value in json.loads(said.stdout).items():
            print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
