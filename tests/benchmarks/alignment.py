"""Measures time and memory of the closed-form alignment of many codes.

    python tests/benchmarks/alignment.py --work DIR                     1 million × 768 summed, 100,000 × 768 aligned
    python tests/benchmarks/alignment.py --work DIR --pairs 20000       a quick test
    python tests/benchmarks/alignment.py --work DIR --only training     the closed form of a training, from features on

Codes of images and of texts, with 64 shared variables and noise, are written to two files, 6 GB for a million pairs,
and read as memory maps. First their moments are summed in one pass. Then a tenth of them is aligned: moments, folds
and the grid of `alignment.choice`. At last all of them are the features of a training, all of whose pairs are known:
`ClosedFormAlignment._solve` fits principal components, projects, chooses a map and computes the weights of the model.
Its images are small and made up.

Memory is the peak of the process's anonymous memory (RssAnon), read every 50 ms; that of the training also without what
the process held before, such as torch. Pages of the files are not counted, because the kernel drops them when memory
is short. OMP_NUM_THREADS sets the cores.
"""

import argparse
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cyclic_cli.alignment.choice import choose
from cyclic_cli.alignment.moments import Moments
from cyclic_cli.codes.components import Components, fit_components
from cyclic_cli.codes.sources import ROWS, Share
from cyclic_cli.data.mixture import Mixture, Pool
from cyclic_cli.distributed import Ranks
from cyclic_cli.events import silent
from cyclic_cli.training.closed_form import ClosedFormAlignment

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
        self.before = self._now()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._now())
            if self._done.wait(INTERVAL):
                return

    @staticmethod
    def _now() -> float:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


class Mapped:
    """A memory map (N, F) as the features of a source, and as the source itself."""

    name, is_cheap, is_foreign = "mapped", False, False

    def __init__(self, title: str, array: np.ndarray) -> None:
        self.title, self.array, self.dims = title, array, array.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        return np.asarray(self.array[numbers])

    def features(self, pool: object, tick: object, report: object) -> Mapping[str, "Mapped"]:
        return {self.title: self}

    def components(self, rows: "Mapped", output: str, dims: int, share: Share) -> Components:
        def batches() -> Iterator[np.ndarray]:
            for first in range(0, len(share), ROWS):
                yield rows.rows(np.arange(first, min(first + ROWS, len(share))))

        return fit_components(batches, rows.dims, dims, output, share.ranks)


class Images:
    """Made-up images (1, 64, 64), the part of a pool."""

    def __init__(self, count: int) -> None:
        self.keys = np.arange(count, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self.keys)

    def load(self, chosen: np.ndarray) -> torch.Tensor:
        return torch.rand(len(chosen), 1, 64, 64, generator=torch.Generator().manual_seed(int(chosen[0])))


class Training(ClosedFormAlignment):
    """A training whose features are memory maps."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        count = len(arrays["image"])
        modalities = [SimpleNamespace(name=name, config=SimpleNamespace(frozen=True)) for name in arrays]
        patients = np.array([f"p{number // 3}" for number in range(count)], object)
        data: Any = SimpleNamespace(modalities=modalities, patient_of=patients, facts={"image": {}, "text": {}})
        self.data, self.ranks, self.config = data, Ranks(None, 0, 1), SimpleNamespace(modalities=arrays)  # type: ignore
        pools = {name: Pool([Images(count)], np.empty(count, object)) for name in arrays}
        every = np.arange(count)
        self.mixture = Mixture(pools, {"image": every, "text": every}, np.ones(count, bool))
        self._mapped = {name: [Mapped(name, array)] for name, array in arrays.items()}
        self._encoders = {"image": {}, "text": {}}
        self._tick, self._report = lambda done, total, unit: None, silent

    def _open_encoders(self, name: str, config: Any) -> None:
        """Does nothing."""

    def _sources(self, name: str) -> Any:
        return self._mapped[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--only", choices=("moments", "alignment", "training"))
    options = parser.parse_args()
    names = [options.work / f"{kind}-{options.pairs}-{options.dims}.npy" for kind in ("images", "texts")]
    images, texts = (make(name, options.pairs, options.dims, 60.0, turn) for turn, name in enumerate(names))
    found = {"pairs": options.pairs, "dims": options.dims}
    if options.only in (None, "moments"):
        with Memory() as memory:
            begin = time.perf_counter()
            Moments.of(images, texts)
            found["moments_seconds"] = time.perf_counter() - begin
        found["moments_anonymous_mib"] = memory.peak
    if options.only in (None, "alignment"):
        some = options.pairs // 10
        with Memory() as memory:
            begin = time.perf_counter()
            chosen = choose(images[:some], texts[:some], np.arange(some) // 3)
            found |= {"aligned_pairs": some, "alignment_seconds": time.perf_counter() - begin}
        found |= {"alignment_anonymous_mib": memory.peak, "chosen": chosen.to_json()}
    if options.only in (None, "training"):
        with Memory() as memory:
            begin = time.perf_counter()
            solution = Training({"image": images, "text": texts})._solve()
            found["training_seconds"] = time.perf_counter() - begin
        found |= {"training_anonymous_mib": memory.peak, "training_anonymous_growth_mib": memory.peak - memory.before}
        found["training_choice"] = solution.choice
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
