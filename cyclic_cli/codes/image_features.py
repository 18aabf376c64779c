"""Features of images that cost little: pixels, histograms of gradients and of grey levels. ONNX can express them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 32  # pixels per side to which images are averaged, at most: 128 components of more pixels are the same
CELLS = 8  # per side of an image
ORIENTATIONS = 8  # bins between 0 and 180 degrees
BINS = 16  # of grey levels
AREAS = (4, 2, 1)  # per side of an image, whose grey levels are counted
TIE = 1e-6  # smaller differences of gradients are rounding; differences of 16-bit images are at least 1.5e-5


def _direction(angle: float) -> tuple[float, float]:
    """The cosine and the sine of an angle, divided by the larger one: exactly 0, 1 or −1 where they are equal."""
    larger = max(abs(math.cos(angle)), abs(math.sin(angle)))
    return round(math.cos(angle) / larger, 15), round(math.sin(angle) / larger, 15)


ENDS = [_direction(place * math.pi / ORIENTATIONS) for place in range(1, ORIENTATIONS)]  # where bins meet


def pixels(images: Tensor) -> Tensor:
    """Return the pixels of images (N, C, H, W), averaged over areas to at most `SIDE` pixels per side: (N, F)."""
    rows, columns = (_averages(side, min(SIDE, side), images) for side in images.shape[2:])
    return (rows @ images @ columns.T).flatten(1)


def gradients(images: Tensor) -> Tensor:
    """Return histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of images (N, C, H, W) in [0, 1].

    Images have at least `CELLS` pixels per side. Channels are averaged. Each of 8 × 8 cells has eight orientations.
    Every block of 2 × 2 cells is L2-normalised. The result is (N, 7 · 7 · 2 · 2 · 8).
    """
    grey = images.mean(1)
    down = functional.pad(grey[:, 2:] - grey[:, :-2], (0, 0, 1, 1))  # zero at the border
    across = functional.pad(grey[:, :, 2:] - grey[:, :, :-2], (1, 1))
    cells = _histograms(down, across)
    last = CELLS - 1
    blocks = torch.stack([cells[:, y : last + y, x : last + x] for y in (0, 1) for x in (0, 1)], 3)
    # Not a small addition under the root: the ONNX exporter takes 1e-10 for zero, and an empty block would be 0 / 0.
    size = blocks.square().sum((3, 4), keepdim=True).sqrt().clamp(min=1e-5)
    return (blocks / size).flatten(1)


def _histograms(down: Tensor, across: Tensor) -> Tensor:
    """Return the mean length of the gradients (N, H, W) of each cell and orientation: (N, CELLS, CELLS, ORIENTATIONS).

    Signs of cross products replace the arctangent. Stored images have integer grey levels, so angles of exactly 0, 45,
    90 and 135 degrees, where two bins meet, are frequent. They are found by differences alone, with a tolerance, so
    that every machine and ONNX Runtime find the same bin.
    """
    rows, columns = (_cells(side, down) for side in down.shape[1:])
    length = (down.square() + across.square()).sqrt()
    level = down.abs() <= TIE
    sign = torch.where(down < 0, -1.0, 1.0)
    down, across = torch.where(level, 0.0, down * sign), torch.where(level, across.abs(), across * sign)
    beyond = [rows @ length @ columns.T]  # the gradients whose angle is at least that of the lower end of a bin
    length = torch.where(level, 0.0, length)
    for along, beside in ENDS:
        beyond.append(rows @ (length * (down * along - across * beside >= -TIE)) @ columns.T)
    beyond.append(torch.zeros_like(beyond[0]))
    return torch.stack([one - next_ for one, next_ in pairwise(beyond)], 3)


def levels(images: Tensor) -> Tensor:
    """Return histograms of the grey levels of images (N, C, H, W) in [0, 1]: (N, BINS · (16 + 4 + 1)).

    The square root of the share of the pixels in each of `BINS` equal ranges, of 4 × 4 areas, 2 × 2 areas and the whole
    image. Channels are averaged.
    """
    grey = images.mean(1)
    rows, columns = (_averages(side, AREAS[0], grey) for side in grey.shape[1:])
    beyond = [rows @ (grey >= place / BINS).to(grey) @ columns.T for place in range(1, BINS)]
    beyond = [torch.ones_like(beyond[0]), *beyond, torch.zeros_like(beyond[0])]
    shares = torch.stack([one - next_ for one, next_ in pairwise(beyond)], 1)  # (N, BINS, 4, 4)
    coarser = [functional.avg_pool2d(shares, AREAS[0] // areas) for areas in AREAS]
    return torch.cat([one.clamp(min=0).flatten(1) for one in coarser], 1).sqrt()


def _averages(side: int, parts: int, like: Tensor) -> Tensor:
    """Return a matrix (parts, side) that averages equal parts of a line; pixels on a border count in both parts."""
    ends = np.arange(parts + 1) * (side / parts)
    first = np.arange(side)
    overlap = np.minimum(ends[1:, None], first + 1) - np.maximum(ends[:-1, None], first)
    return _constant(np.maximum(overlap, 0) * (parts / side), like)


def _cells(side: int, like: Tensor) -> Tensor:
    """Return a matrix (CELLS, side) that averages over the pixels of each cell, whose sizes may differ by one."""
    starts = np.arange(CELLS + 1) * side // CELLS
    places = np.arange(side)
    inside = (places >= starts[:-1, None]) & (places < starts[1:, None])
    return _constant(inside / inside.sum(axis=1, keepdims=True), like)


def _constant(matrix: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(matrix.astype(np.float32)).to(like.device)


SOURCES = {
    "pixels": lambda images: {"pixels": pixels(images)},
    "gradients": lambda images: {"gradients": gradients(images)},
    "levels": lambda images: {"levels": levels(images)},
}
