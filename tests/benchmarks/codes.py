"""Measures how long the cache of features takes, without an encoder: writing, and reading in a second process.

    python tests/benchmarks/codes.py --work DIR                          100,000 × 768, about 0.3 GB of disk, a minute
    python tests/benchmarks/codes.py --work DIR --items 1653 --dims 1280

The features are random numbers that cost nothing to compute, so that all time is that of the cache. `cold` writes and
merges the segments. `cached` finds them again in a new process and checks them; `scan` then reads all features once in
blocks, and `random` reads as many rows in random order. The pages of the files may be in the page cache. Memory is the
growth of anonymous memory, sampled between batches, and beside it the size of the features as float32.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cyclic_cli.codes.cache import FeatureCache

BATCH, BLOCK = 256, 4096


def anonymous() -> float:
    """Anonymous memory of this process in MiB."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def measure(folder: Path, items: int, dims: int) -> dict[str, float]:
    """Seconds of each step, and the peak growth of anonymous memory in MiB."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(BATCH, dims)).astype(np.float32)
    digests = [number.to_bytes(16, "little") for number in range(items)]
    figures: dict[str, float] = {}
    before, peak = anonymous(), [0.0]

    def tick(done: int, total: int) -> None:
        peak[0] = max(peak[0], anonymous() - before)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        figures[name] = time.perf_counter() - begin
        tick(0, 0)

    with timed("open"):
        cache = FeatureCache(folder, limit=2**40)
        found = cache.features("benchmark", {"x": dims}, digests, lambda n: {"x": noise[: len(n)]}, BATCH, tick)["x"]
    for name, order in (("scan", np.arange(items)), ("random", generator.permutation(items))):
        with timed(name):
            for first in range(0, items, BLOCK):
                found.rows(order[first : first + BLOCK])
                tick(0, 0)
    return figures | {"memory": peak[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--once", action="store_true", help="measure in this process, and print JSON")
    options = parser.parse_args()
    folder = options.work / "codes-benchmark"
    if options.once:
        print(json.dumps(measure(folder, options.items, options.dims)))
        return
    shutil.rmtree(folder, ignore_errors=True)
    words = [sys.executable, __file__, "--once", "--work", options.work, "--items", options.items]
    words += ["--dims", options.dims]
    for name in ("cold", "cached"):
        ran = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, check=True)
        figures = json.loads(ran.stdout)
        opened, scan, shuffled, memory = (figures[step] for step in ("open", "scan", "random", "memory"))
        print(
            f"{name:7} {opened:6.2f} s, scan {scan:.2f} s, random {shuffled:.2f} s, {memory:.0f} MiB anonymous memory"
        )
    disk = sum(path.stat().st_size for path in folder.glob("*/*"))
    print(f"on disk {disk / 2**20:.0f} MiB; as float32 {options.items * options.dims * 4 / 2**20:.0f} MiB")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
