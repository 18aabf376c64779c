"""What the sums of several processes need to become those of all training samples.

Each process sums over its own share. The functions that sum take an `Exchange`: `distributed.Ranks`, or `ALONE`.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

Value = TypeVar("Value")


class Exchange(Protocol):
    """The processes of a run. All of them call its methods, in the same order."""

    @property
    def world(self) -> int:
        """The number of processes."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    def added(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes, added in float64; it has the dtype of the array."""

    def agreed(self, decide: Callable[[], Value]) -> Value:
        """The result of `decide` in the first process, in all processes. Its CyclicError is raised in all of them."""


class _Alone:
    """The `Exchange` of a single process."""

    world, rank = 1, 0

    def added(self, array: np.ndarray) -> np.ndarray:
        return array

    def agreed(self, decide: Callable[[], Value]) -> Value:
        return decide()


ALONE = _Alone()


def rows_of_all(own: np.ndarray, places: np.ndarray, count: int, ranks: Exchange) -> np.ndarray:
    """The rows (count, K) of all processes, in all processes: exact.

    Args:
        own: (n, K) rows of this process.
        places: (n,) their places among all rows. Every place belongs to one process.
        count: Of all rows.
        ranks: The processes.
    """
    rows = np.zeros((count, own.shape[1]), own.dtype)
    rows[places] = own
    return ranks.added(rows)  # exact: each entry is added to zeros
