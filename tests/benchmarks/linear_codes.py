"""Fits the best linear codes of images, which are the reference of `autoencoders.py`, and measures their errors."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def principal_components(images: Tensor, mean: Tensor, most: int) -> Tensor:
    """Up to `most` principal directions (K, P) of images (N, 1, H, W), computed from their Gram matrix."""
    centred = (images - mean).flatten(1)
    values, vectors = torch.linalg.eigh((centred @ centred.T).double())
    kept = min(most, len(images) - 1)
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    return (vectors / values.sqrt()).T.float() @ centred


def projection(mean: Tensor, directions: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that maps images (N, 1, H, W) to their nearest points in an affine space."""

    def project(batch: Tensor) -> Tensor:
        centred = (batch - mean).flatten(1)
        return mean + (centred @ directions.T @ directions).view_as(batch)

    return project


def block_code(images: Tensor, side: int, numbers: int) -> Callable[[Tensor], Tensor]:
    """The best linear code of `numbers` numbers per block of `side` × `side` pixels, as a reconstruction function."""

    def blocks(batch: Tensor) -> Tensor:
        return functional.pixel_unshuffle(batch, side)

    chunks = images.split(256)
    mean = sum(blocks(chunk).sum((0, 2, 3), dtype=torch.float64) for chunk in chunks)
    mean /= len(images) * (images.shape[-1] // side) ** 2
    covariance = torch.zeros(side**2, side**2, dtype=torch.float64)
    for chunk in chunks:
        columns = (blocks(chunk) - mean[:, None, None].float()).transpose(0, 1).flatten(1)
        covariance += (columns @ columns.T).double()
    directions = torch.linalg.eigh(covariance).eigenvectors[:, -numbers:].float()
    onto, centre = (directions @ directions.T)[:, :, None, None], mean[:, None, None].float()
    return lambda batch: functional.pixel_shuffle(functional.conv2d(blocks(batch) - centre, onto) + centre, side)


def error(code: Callable[[Tensor], Tensor], images: Tensor) -> float:
    return sum((code(batch) - batch).square().sum().item() for batch in images.split(256)) / images.numel()


def clamped_too(code: Callable[[Tensor], Tensor], test: Tensor) -> dict[str, float]:
    return {"test": error(code, test), "clamped": error(lambda batch: code(batch).clamp(0, 1), test)}
