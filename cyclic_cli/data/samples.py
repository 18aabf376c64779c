"""Reads batches of images from a dataset, and gives the order, the noise and the augmentation of each epoch.

Images come straight from the memory map, without worker processes: copying a batch of bytes costs less than a
hundredth of a training step. The order of an epoch depends on (seed, epoch) alone, and the random numbers of a sample
on (seed, epoch, sample key) alone. They do not depend on the place in the batch, so processes and threads may divide a
batch in any way.
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
    """The samples of one split that have an image, in the order of the index."""

    dataset: StoredDataset
    records: np.ndarray  # (N,) of `storage.records.RECORD`, memory-mapped

    @classmethod
    def of(cls, dataset: StoredDataset, split: str, fraction: float = 1.0) -> "Samples":
        """The samples of the first `fraction` of a split's patients."""
        return cls(dataset, dataset.records(split, fraction))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def patients(self) -> int:
        """The number of patients."""
        return int(self.records[-1]["patient"]) + 1 if len(self) else 0

    def keys(self, chosen: np.ndarray) -> np.ndarray:
        """The keys (N,) uint64 of the samples with the numbers `chosen` (N,): the first half of their index keys."""
        return self.records[chosen]["key"]

    def images(self, chosen: np.ndarray) -> Tensor:
        """Images (N, C, H, W) float32 in [0, 1] of the samples with the numbers `chosen` (N,)."""
        records = self.records[chosen]
        return torch.from_numpy(as_float(self.dataset.images(records["shard"], records["row"])))

    def batches(self, order: np.ndarray, size: int) -> Iterator[Tensor]:
        """The images with the numbers `order` (N,), in batches of at most `size`: (M, C, H, W) float32 in [0, 1]."""
        for first in range(0, len(order), size):
            yield self.images(order[first : first + size])

    def area(self, sample: int) -> tuple[slice, slice]:
        """The rows and columns of a sample's image inside the letterbox borders."""
        size = self.dataset.facts.preprocessing.size
        record = self.records[sample]
        return image_area(int(record["height"]), int(record["width"]), size)


class EpochOrder:
    """The order of the samples in an epoch: a random permutation that is computed block by block, on request.

    Only one block is in memory, so an epoch of a hundred million images begins at once. A Feistel network whose round
    functions are a good hash is a pseudo-random permutation (Luby and Rackoff, SIAM Journal on Computing 1988). It
    permutes a range that may be larger than the number of samples. A number outside is permuted again until it falls
    inside (cycle walking: Black and Rogaway, CT-RSA 2002). The hash is the finaliser of splitmix64 (Steele et al.,
    OOPSLA 2014).
    """

    ROUNDS = 8
    BLOCK = 16_384  # places computed at once; for a few places numpy would need about as long

    def __init__(self, samples: int, seed: int, epoch: int, purpose: str = "") -> None:
        self.samples = samples
        self._half = np.uint64(max(1, (max(samples - 1, 1).bit_length() + 1) // 2))  # bits of each half
        self._low = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.Philox(key=_mix(seed, epoch, purpose)).random_raw(self.ROUNDS)
        self._held: tuple[int, np.ndarray] = (-1, np.empty(0))  # number and content of the last block

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


STREAM = np.uint64(0x9E3779B97F4A7C15)  # odd: 2⁶⁴ divided by the golden ratio


def _hash(values: np.ndarray) -> np.ndarray:
    """A hash (N,) uint64 of numbers (N,) uint64. Every output bit depends on all bits of its input."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def sample_noise(keys: np.ndarray, size: int, seed: int, epoch: int, purpose: str = "") -> Tensor:
    """Standard normal numbers (N, size) float32. A sample's row depends on (seed, epoch, sample key, purpose) alone.

    Each row is a separate stream of SplitMix (Steele et al., OOPSLA 2014), which gives its numbers in any order.
    """
    starts = _hash(keys ^ np.uint64(_mix(seed, epoch, purpose)))
    bits = _hash(starts[:, None] + STREAM * np.arange(1, size + 1, dtype=np.uint64))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return torch.special.ndtri(torch.from_numpy(uniform)).float()


def moved(images: Tensor, keys: np.ndarray, strength: float, seed: int, epoch: int) -> Tensor:
    """Augments images (N, C, H, W) in [0, 1] by small random rotations, scalings, shifts and contrast changes.

    At a strength of 1 the standard deviations are: rotation 1.7 degrees; size 3 %; aspect ratio 3 %; shift 2 % of the
    side; contrast 3 %; brightness 0.01. Pixels from outside repeat the border. The augmentation of a sample depends on
    (seed, epoch, sample key) alone.
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
    ):  # the same as torch's `affine_grid`, but several times faster
        along_rows = torch.outer(by_row, rows) + shift[:, None]
        torch.add(torch.outer(by_column, columns)[:, None, :], along_rows[:, :, None], out=grid[..., place])
    warped = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = 1 + 0.03 * contrast, 0.01 * brightness
    return warped.mul_(gain[:, None, None, None]).add_(offset[:, None, None, None]).clamp_(0, 1)


def _mix(seed: int, epoch: int, purpose: str = "") -> int:
    """A seed of 63 bits from two numbers and a word."""
    text = f"{seed}/{epoch}/{purpose}" if purpose else f"{seed}/{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
