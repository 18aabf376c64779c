"""Stored samples to batches: which samples an epoch visits, in which order, and the tensors of each batch.

Images come straight from the memory map, without worker processes: copying a batch of bytes costs less than a
hundredth of a training step. The order of an epoch is a function of (seed, epoch), the random numbers of a sample
one of (seed, epoch, sample key), never of its place in the batch: any split of the work sees the same numbers.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.imaging.readers import as_float, image_area
from cyclic_cli.storage.dataset import StoredDataset


@dataclass(frozen=True)
class Samples:
    """The samples of one split with an image, in the order of the index."""

    dataset: StoredDataset
    records: np.ndarray  # (N,) of `records.RECORD`, as a map

    @classmethod
    def of(cls, dataset: StoredDataset, split: str, fraction: float = 1.0) -> "Samples":
        """Those of the first `fraction` of a split's patients."""
        return cls(dataset, dataset.records(split, fraction))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def patients(self) -> int:
        """How many patients the samples are of."""
        return int(self.records[-1]["patient"]) + 1 if len(self) else 0

    def keys(self, chosen: np.ndarray) -> np.ndarray:
        """The keys (N,) uint64 of the samples numbered by `chosen` (N,): the first half of those in the index."""
        return self.records[chosen]["key"]

    def images(self, chosen: np.ndarray) -> Tensor:
        """Images (N, C, H, W) float32 in [0, 1] of the samples numbered by `chosen` (N,)."""
        records = self.records[chosen]
        return torch.from_numpy(as_float(self.dataset.images(records["shard"], records["row"])))

    def batches(self, order: np.ndarray, size: int) -> Iterator[Tensor]:
        """The images numbered by `order` (N,), in batches of at most `size`: (N, C, H, W) float32 in [0, 1]."""
        for first in range(0, len(order), size):
            yield self.images(order[first : first + size])

    def area(self, sample: int) -> tuple[slice, slice]:
        """Rows and columns of a sample's image that hold no letterbox."""
        size = self.dataset.facts.preprocessing.size
        record = self.records[sample]
        return image_area(int(record["height"]), int(record["width"]), size)


class EpochOrder:
    """The order in which an epoch visits its samples: a random permutation, computed where it is asked for.

    Only a block of it is held, so that an epoch of a hundred million images begins at once. Sources: a
    Feistel network whose round functions are a good hash is a pseudo-random permutation (Luby and Rackoff, SIAM
    Journal on Computing 1988); numbers that it sends past the end walk on along their cycle until they come back
    (Black and Rogaway, CT-RSA 2002). The hash is the finaliser of splitmix64 (Steele et al., OOPSLA 2014).
    """

    ROUNDS = 8
    BLOCK = 16_384  # places that are computed together: numpy takes as long for a few

    def __init__(self, samples: int, seed: int, epoch: int, purpose: str = "") -> None:
        self.samples = samples
        self._half = np.uint64(max(1, (max(samples - 1, 1).bit_length() + 1) // 2))  # bits of one of the two halves
        self._low = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.Philox(key=_mix(seed, epoch, purpose)).random_raw(self.ROUNDS)
        self._held: tuple[int, np.ndarray] = (-1, np.empty(0))  # the last block, by its number

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, places: slice) -> np.ndarray:
        """The numbers (N,) int64 of the samples at consecutive places of the order."""
        first, end, _ = places.indices(self.samples)
        parts = [np.empty(0, np.int64)]
        for number in range(first // self.BLOCK, -(-end // self.BLOCK)):
            start = number * self.BLOCK
            parts.append(self._block(number)[max(0, first - start) : end - start])
        return np.concatenate(parts)

    def _block(self, number: int) -> np.ndarray:
        if self._held[0] != number:
            first = number * self.BLOCK
            samples = self._permuted(np.arange(first, min(first + self.BLOCK, self.samples), dtype=np.uint64))
            while (outside := np.flatnonzero(samples >= self.samples)).size:
                samples[outside] = self._permuted(samples[outside])
            self._held = number, samples.astype(np.int64)
        return self._held[1]

    def _permuted(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._half, numbers & self._low
        for key in self._keys:
            left, right = right, left ^ (_hash(right ^ key) & self._low)
        return left << self._half | right


STREAM = np.uint64(0x9E3779B97F4A7C15)  # odd, 2⁶⁴ by the golden ratio


def _hash(values: np.ndarray) -> np.ndarray:
    """64 bits of each of (N,) uint64, all of which depend on all of its own."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def sample_noise(keys: np.ndarray, size: int, seed: int, epoch: int, purpose: str = "") -> Tensor:
    """Standard normal numbers (N, size) float32, a row for each sample from (seed, epoch, sample key, purpose) alone.

    Each row is a stream of its own of SplitMix (Steele et al., OOPSLA 2014), whose numbers need not be drawn in order.
    """
    starts = _hash(keys ^ np.uint64(_mix(seed, epoch, purpose)))
    bits = _hash(starts[:, None] + STREAM * np.arange(1, size + 1, dtype=np.uint64))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return torch.special.ndtri(torch.from_numpy(uniform)).float()


def moved(images: Tensor, keys: np.ndarray, strength: float, seed: int, epoch: int) -> Tensor:
    """Images (N, C, H, W) in [0, 1], each a little turned, scaled, stretched and shifted, in another contrast.

    At a strength of 1 the standard deviations are 1.7 degrees, 3 % of size, 3 % of the ratio of the sides, 2 % of
    the sides of shift, 3 % of contrast and 0.01 of brightness. The borders are repeated. What happens to a sample
    depends on (seed, epoch, sample key) alone.
    """
    draws = strength * sample_noise(keys, 7, seed, epoch, "movement")
    turn, size, ratio, down, right, contrast, brightness = draws.T
    turn, size, ratio = 0.03 * turn, (0.03 * size).exp(), (0.015 * ratio).exp()
    cosine, sine = turn.cos() * size, turn.sin() * size
    rows, columns = (torch.arange(1, 2 * side, 2) / side - 1 for side in images.shape[2:])
    grid = torch.empty(len(images), len(rows), len(columns), 2)
    for place, (by_column, by_row, shift) in enumerate(
        (
            (cosine * ratio, -sine * ratio, 0.04 * right),
            (sine / ratio, cosine / ratio, 0.04 * down),
        )
    ):  # an `affine_grid`, in a fraction of its time
        along_rows = torch.outer(by_row, rows) + shift[:, None]
        torch.add(torch.outer(by_column, columns)[:, None, :], along_rows[:, :, None], out=grid[..., place])
    warped = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = 1 + 0.03 * contrast, 0.01 * brightness
    return warped.mul_(gain[:, None, None, None]).add_(offset[:, None, None, None]).clamp_(0, 1)


def _mix(seed: int, epoch: int, purpose: str = "") -> int:
    """One seed of 63 bits from two numbers and a word."""
    text = f"{seed}/{epoch}/{purpose}" if purpose else f"{seed}/{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
