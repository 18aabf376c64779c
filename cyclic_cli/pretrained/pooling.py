"""Feature maps and token vectors become one vector per image or text. Everything here can be exported to ONNX."""

import torch
from torch import Tensor

GRID = 2  # cells per side of a pooled map
TINY = 1e-12  # below it a value counts as zero, whose square root has no gradient


def signed_root(values: Tensor) -> Tensor:
    """The square root of the magnitude, with the sign: it keeps few large values from hiding all others."""
    return values.sign() * values.abs().clamp(min=TINY).sqrt()


def pooled_map(maps: Tensor, grid: int = GRID) -> Tensor:
    """Return maps (N, D, h, w) as vectors (N, D · grid²): their signed square roots, averaged in each cell of a grid.

    Cells overlap where a side is not divisible (adaptive average pooling).
    """
    height, width = maps.shape[2:]
    rows, columns = (_cells(side, grid, maps) for side in (height, width))
    return (rows @ signed_root(maps) @ columns.T).flatten(1)


def pooled_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """Return vectors of patches (N, height · width, D), row by row, as vectors (N, 4D). See `pooled_map`."""
    return pooled_map(patches.transpose(1, 2).reshape(-1, patches.shape[2], height, width))


def mean_of_tokens(vectors: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (N, D) of vectors (N, L, D) over the tokens of a mask (N, L), which are at least one a text."""
    weights = mask.to(vectors.dtype)[:, :, None]
    return (vectors * weights).sum(1) / weights.sum(1)


def highest_of_tokens(vectors: Tensor, mask: Tensor) -> Tensor:
    """Return the largest values (N, D) of vectors (N, L, D) over the tokens of a mask (N, L)."""
    return vectors.masked_fill(~mask[:, :, None], torch.finfo(vectors.dtype).min).amax(1)


def first_token(vectors: Tensor, mask: Tensor) -> Tensor:
    """Return the vectors (N, D) of the first tokens of vectors (N, L, D), which are those of the whole text (CLS)."""
    return vectors[:, 0]


def _cells(side: int, grid: int, like: Tensor) -> Tensor:
    """The shares (grid, side) of the positions in the means of the cells, whose bounds are those of torch."""
    shares = torch.zeros(grid, side, dtype=like.dtype)
    for cell in range(grid):
        first, last = cell * side // grid, -(-(cell + 1) * side // grid)
        shares[cell, first:last] = 1 / (last - first)
    return shares.to(like.device)
