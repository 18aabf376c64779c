"""Measures time and memory of the closed-form alignment of many codes.

    python tests/benchmarks/alignment.py --work DIR                     1 million × 768 summed, 100,000 × 768 aligned
    python tests/benchmarks/alignment.py --work DIR --pairs 20000       a quick test

Codes of images and of texts, with 64 shared variables and noise, are written to two files, 6 GB for a million pairs,
and read as memory maps. First their moments are summed in one pass. Then a tenth of them is aligned: moments, folds
and the grid of `alignment.choice`. Memory is the peak of the process's anonymous memory (RssAnon), read every 50 ms.
Pages of the files are not counted, because the kernel drops them when memory is short. OMP_NUM_THREADS sets the cores.
"""

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np

from cyclic_cli.alignment.choice import choose
from cyclic_cli.alignment.moments import Moments

SHARED, BLOCK, INTERVAL = 64, 10_000, 0.05


def make(path: Path, pairs: int, dims: int, noise: float, turn: int) -> np.ndarray:
    """Return memory-mapped codes (pairs, dims) float32; those of two calls with different `turn` are paired."""
    maps = np.random.default_rng((1, turn)).normal(size=(SHARED, dims)).astype(np.float32)
    if not path.exists():
        partial = path.with_suffix(".partial")
        codes = np.lib.format.open_memmap(partial, "w+", np.float32, (pairs, dims))
        for number, first in enumerate(range(0, pairs, BLOCK)):
            count = min(BLOCK, pairs - first)
            shared = np.random.default_rng((2, number)).normal(size=(count, SHARED)).astype(np.float32)
            own = np.random.default_rng((3, turn, number)).normal(size=(count, dims)).astype(np.float32)
            codes[first : first + count] = (shared @ maps + noise * own) / dims**0.5
        codes.flush()
        del codes
        partial.rename(path)
    return np.load(path, mmap_mode="r")


class Memory:
    """The peak of the anonymous memory of this process inside a `with` statement, in MiB."""

    def __enter__(self) -> "Memory":
        self.peak, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
            self.peak = max(self.peak, int(status.split()[0]) / 1024)
            if self._done.wait(INTERVAL):
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=768)
    options = parser.parse_args()
    names = [options.work / f"{kind}-{options.pairs}-{options.dims}.npy" for kind in ("images", "texts")]
    images, texts = (make(name, options.pairs, options.dims, 60.0, turn) for turn, name in enumerate(names))
    found = {"pairs": options.pairs, "dims": options.dims}
    with Memory() as memory:
        begin = time.perf_counter()
        Moments.of(images, texts)
        found["moments_seconds"] = time.perf_counter() - begin
    found["moments_anonymous_mib"] = memory.peak
    some = options.pairs // 10
    with Memory() as memory:
        begin = time.perf_counter()
        chosen = choose(images[:some], texts[:some], np.arange(some) // 3)
        found |= {"aligned_pairs": some, "alignment_seconds": time.perf_counter() - begin}
    found |= {"alignment_anonymous_mib": memory.peak, "chosen": chosen.to_json()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
