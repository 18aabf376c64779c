"""Threads that stand for the processes of a run: they exchange sums as `distributed.Ranks` does."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")
PATIENCE = 60  # seconds after which a thread that waits for another one fails


class ThreadRanks:
    """One of several threads, as an `Exchange`."""

    def __init__(self, rank: int, world: int, barrier: Barrier, given: dict[int, Any]) -> None:
        self.rank, self.world, self._barrier, self._given = rank, world, barrier, given

    def part(self, chosen: np.ndarray) -> np.ndarray:
        return np.array_split(chosen, self.world)[self.rank]

    def added(self, array: np.ndarray) -> np.ndarray:
        every = self._exchanged(array)
        return np.sum([one.astype(np.float64) for one in every], axis=0).astype(array.dtype)

    def agreed(self, decide: Callable[[], Value]) -> Value:
        outcome: Any = None
        if self.rank == 0:
            try:
                outcome = decide()
            except Exception as error:
                outcome = error
        outcome = self._exchanged(outcome)[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    def _exchanged(self, own: Any) -> list[Any]:
        self._given[self.rank] = own
        self._barrier.wait(PATIENCE)
        every = [self._given[rank] for rank in range(self.world)]
        self._barrier.wait(PATIENCE)
        return every


def in_threads(world: int, work: Callable[[Any], Value]) -> list[Value]:
    """The results of `work` in `world` threads; it gets the `ThreadRanks` of its thread."""
    barrier, given = Barrier(world), {}  # type: ignore[var-annotated]
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: work(ThreadRanks(rank, world, barrier, given)), range(world)))
