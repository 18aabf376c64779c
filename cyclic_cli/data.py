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

from cyclic_cli.images import as_float, image_area
from cyclic_cli.storage import StoredDataset


@dataclass(frozen=True)
class Samples:
    """The samples of one split with an image, in the order of the index."""

    dataset: StoredDataset
    keys: np.ndarray  # (N,) uint64, from the sample keys
    shards: np.ndarray  # (N,)
    rows: np.ndarray  # (N,)
    heights: np.ndarray  # (N,) pixels of the originals
    widths: np.ndarray  # (N,)
    patients: int

    @classmethod
    def of(cls, dataset: StoredDataset, split: str, fraction: float = 1.0) -> "Samples":
        """Those of the first `fraction` of a split's patients."""
        table = dataset.select(split, fraction, ["sample", "patient", "shard", "row", "height", "width"])
        keys = [int(key[:16], 16) for key in table["sample"].to_pylist()]
        shards, rows, heights, widths = (table[name].to_numpy() for name in ("shard", "row", "height", "width"))
        patients = len(table["patient"].unique())
        return cls(dataset, np.array(keys, dtype=np.uint64), shards, rows, heights, widths, patients)

    def __len__(self) -> int:
        return len(self.keys)

    def images(self, chosen: np.ndarray) -> Tensor:
        """Images (N, C, H, W) float32 in [0, 1] of the samples numbered by `chosen` (N,)."""
        stored = self.dataset.images(self.shards[chosen], self.rows[chosen])
        return torch.from_numpy(as_float(stored))

    def batches(self, order: np.ndarray, size: int) -> Iterator[Tensor]:
        """The images numbered by `order` (N,), in batches of at most `size`: (N, C, H, W) float32 in [0, 1]."""
        for first in range(0, len(order), size):
            yield self.images(order[first : first + size])

    def area(self, sample: int) -> tuple[slice, slice]:
        """Rows and columns of a sample's image that hold no letterbox."""
        size = self.dataset.facts.preprocessing.size
        return image_area(int(self.heights[sample]), int(self.widths[sample]), size)


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order (N,) in which an epoch visits its samples."""
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    return torch.randperm(samples, generator=generator).numpy()


def sample_noise(keys: np.ndarray, size: int, seed: int, epoch: int, purpose: str = "") -> Tensor:
    """Standard normal numbers (N, size) float32, a row for each sample from (seed, epoch, sample key, purpose) alone.

    Each row is a stream of its own of Philox (Salmon et al., SC 2011), a counter-based generator.
    """
    base = _mix(seed, epoch, purpose)
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([base, key], np.uint64))).standard_normal(size, np.float32)
        for key in keys
    ]
    return torch.from_numpy(np.stack(rows))


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
    rows = [cosine * ratio, -sine * ratio, 0.04 * right, sine / ratio, cosine / ratio, 0.04 * down]
    transform = torch.stack(rows, 1).view(-1, 2, 3)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    warped = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = 1 + 0.03 * contrast, 0.01 * brightness
    return warped.mul_(gain[:, None, None, None]).add_(offset[:, None, None, None]).clamp_(0, 1)


def _mix(seed: int, epoch: int, purpose: str = "") -> int:
    """One seed of 63 bits from two numbers and a word."""
    text = f"{seed}/{epoch}/{purpose}" if purpose else f"{seed}/{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
