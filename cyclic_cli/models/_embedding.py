"""The embedding of an autoencoder's images: its code, or the output of a separate network; and its training by views.

An architecture that offers the setting `embedding` has an attribute `embedding`: an `EmbeddingNetwork`, or None. Such a
network reads the image itself, so that reconstruction keeps the whole code, and the embedding may forget what views of
an image do not share. `--objective views` trains it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.linear_algebra import eigh_of_tensor
from cyclic_cli.models._layers import GROUPS, Residual, set_layer

CELLS = 4  # side of the grid that a spatial code is averaged over
PROJECTION = 256  # dimensions of the projections that objectives of views compare
LONGEST = 112  # pixels: images with larger sides are averaged to at most this before they are embedded
PATCH = 4  # side of the patches, in pixels of the averaged image, that become channels
WIDTH = 32  # maps of the embedding network at its largest size
FLOOR = 1e-3  # added to the variances of whitening, relative to their mean


def embed(model: Any, image: Tensor, code: Tensor | None = None) -> Tensor:
    """Return the embeddings (N, D) of images (N, C, H, W), not normalised.

    Without an embedding network they are the codes; a spatial code is averaged over a grid of 4×4 cells. `code` may
    hold the codes if they are known.
    """
    if getattr(model, "embedding", None) is not None:
        found: Tensor = model.embedding(image)
        return found
    code = model.encode(image) if code is None else code
    pooled = functional.adaptive_avg_pool2d(code, CELLS) if code.dim() == 4 else code
    return pooled.flatten(1)


def as_embedded(model: Any, image: Tensor) -> Tensor:
    """Return images (N, C, H, W) at the size at which the model's embedding network works; it accepts both sizes."""
    return reduced(image) if getattr(model, "embedding", None) is not None else image


def reduced(image: Tensor) -> Tensor:
    """Return images (N, C, H, W) with their sides halved until none is above `LONGEST`, or a side stops to fit."""
    height, width = image.shape[2:]
    factor = 1
    while max(height, width) > factor * LONGEST and height % (2 * factor * PATCH) == width % (2 * factor * PATCH) == 0:
        factor *= 2
    return functional.avg_pool2d(image, factor) if factor > 1 else image


class EmbeddingNetwork(nn.Module):
    """A small residual network that maps images (N, C, H, W), with sides a multiple of 4, to embeddings (N, dims)."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.PixelUnshuffle(PATCH), nn.Conv2d(channels * PATCH**2, WIDTH, 3, padding=1),
            *halved(WIDTH), Residual(2 * WIDTH), *halved(2 * WIDTH), nn.GroupNorm(GROUPS, 4 * WIDTH), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(4 * WIDTH, dims)
        self.whitening = nn.Linear(dims, dims).requires_grad_(False)
        set_layer(self.whitening, torch.eye(dims), torch.zeros(dims))

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.whitening(self.features(image))
        return result

    def features(self, image: Tensor) -> Tensor:
        """Return the output (N, dims) of the last layer that is trained, before it is whitened."""
        result: Tensor = self.head(self.last_maps(image).mean((2, 3)))
        return result

    def last_maps(self, image: Tensor) -> Tensor:
        """Return the maps (N, 4 · WIDTH, h, w) whose means give the features."""
        maps: Tensor = self.maps(reduced(image) - 0.5)
        return maps

    def whiten(self, features: Tensor) -> None:
        """Let the embeddings of images with these features (N, dims) have mean zero and, nearly, unit covariance.

        Views of an image agree most in a few directions, which would decide every cosine similarity. Directions in
        which the features hardly vary keep a small share (`FLOOR`), so that rounding is not amplified.
        """
        rows = features.double()
        mean = rows.mean(0)
        values, vectors = eigh_of_tensor((rows - mean).T @ (rows - mean) / len(rows))
        values = values.clamp(min=0)
        scale = (values + FLOOR * values.mean() + torch.finfo(torch.float32).tiny).rsqrt()
        weight = (vectors * scale) @ vectors.T
        set_layer(self.whitening, weight.float(), (-weight @ mean).float())


def halved(channels: int) -> list[nn.Module]:
    """Return layers that halve the sides of maps and double their number."""
    return [
        nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
    ]  # fmt: skip


class Projected(nn.Module):
    """A model with a projector, through which objectives compare views. The projector is not part of a checkpoint."""

    def __init__(self, model: nn.Module, dims: int) -> None:
        """`dims` is the number of dimensions of the model's embedding."""
        super().__init__()
        self.model = model
        self.projector = nn.Sequential(
            nn.Linear(dims, PROJECTION), nn.SiLU(), nn.Linear(PROJECTION, PROJECTION)
        )  # fmt: skip

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the embedding (N, D) of images (N, C, H, W), and its projection (N, PROJECTION) before whitening."""
        network = getattr(self.model, "embedding", None)
        if network is None:
            embedding = features = embed(self.model, image)
        else:
            features = network.features(image)
            embedding = network.whitening(features)
        return {"embedding": embedding, "projection": self.projector(features)}
