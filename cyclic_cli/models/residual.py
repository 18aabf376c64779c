"""Residual autoencoder, the recommended one: residual networks on either side of the best linear code.

    code            = linear.encode(image) + trunk(image)
    reconstruction  = base + refinement(base),   base = linear.decode(code)

The linear code starts as the optimum of the images: for a vector the principal components of the reduced image, for
maps the overlapping filters that keep most of the power spectrum (see `_spectrum`). The trunk adds to the code what is
not linear. The refinement is a U-Net (Ronneberger et al., 2015) at a quarter of the sides and below, of pre-activated
residual blocks (He et al., "Identity Mappings in Deep Residual Networks", 2016): it sees the whole blurred image that
a small code gives, and draws what usually belongs there. Both start near zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.models._layers import (
    GROUPS,
    JITTER,
    check_image_shape,
    image_components,
    patch_components,
    residual_branch,
    set_layer,
    take_sample,
)
from cyclic_cli.models._spectrum import covariance_roots, minimise, periodic

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 256  # numbers in the code, or its maps
    reduction: int | None = None  # None: the code is a vector; 2, 4, 8, 16: maps at this part of the sides
    width: int = 32  # channels of the refinement at a quarter of the sides, a multiple of 8


OUTPUTS = ("reconstruction", "code")
OBJECTIVES = {"reconstruction": 1.0}
RECIPE = {"lr": 1e-3, "batch_size": 8, "weight_decay": 0.0, "warmup": 0.05, "augment": 1.0, "fitted_lr": 0.03}
FITTED = ("linear",)
MULTIPLE = 16  # of pixels, that the sides of images are: four halvings
PATCH = 4  # pixels of a side that become the channels of the refinement
SMALL = 48  # pixels: principal components are of images reduced to at least this
QUIET = 1e-3  # spread of the last weights of trunk and refinement at the start
ITERATIONS = 200  # of the fit to the spectrum
FEWEST = 8  # blocks of a side; of fewer, most lie at a border, of which the spectrum knows nothing


class Model(nn.Module):
    """Residual autoencoder of images (C, H, W) whose sides are multiples of 16."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raise ValueError for impossible sides, widths, reductions or sizes of the code."""
        super().__init__()
        check_image_shape(image_shape, MULTIPLE)
        if config.width < GROUPS or config.width % GROUPS:
            raise ValueError(f"the width must be a multiple of {GROUPS}, not {config.width}")
        if config.reduction not in (None, 2, 4, 8, 16):
            raise ValueError(f"the reduction is 2, 4, 8, 16 or none, not {config.reduction}")
        channels, width = image_shape[0], config.width
        head: list[nn.Module]
        if config.reduction is None:
            self.linear: VectorCode | MapCode = VectorCode(image_shape, config.latent)
            positions = (image_shape[1] // MULTIPLE) * (image_shape[2] // MULTIPLE)
            head = [nn.Conv2d(4 * width, width, 1), nn.Flatten(), quiet(nn.Linear(width * positions, config.latent))]
        else:
            self.linear = MapCode(channels, config.latent, config.reduction)
            head = [quiet(nn.Conv2d(4 * width, config.latent, 3, padding=1))]
        side = config.reduction or MULTIPLE
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(side), nn.Conv2d(channels * side**2, 4 * width, 3, padding=1),
            Residual(4 * width), Residual(4 * width), nn.GroupNorm(GROUPS, 4 * width), nn.SiLU(), *head,
        )  # fmt: skip
        self.refinement = Refinement(channels, width)

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the linear code to batches of images (N, C, H, W). Raises ValueError when there are none."""
        self.linear.initialise(images)

    def encode(self, image: Tensor) -> Tensor:
        """Return the code of images (N, C, H, W) in [0, 1]: (N, latent), or (N, latent, h, w) of reduced sides."""
        code: Tensor = self.linear.encode(image) + self.trunk(image)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes as `encode` gives them."""
        base = self.linear.decode(code)
        image: Tensor = base + self.refinement(base)
        return image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the code of images (N, C, H, W) and their reconstruction from it."""
        code = self.encode(image)
        return {"reconstruction": self.decode(code), "code": code}


class Residual(nn.Module):
    """A residual block of maps (N, C, H, W), which keeps their shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = residual_branch(channels)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = maps + self.branch(maps)
        return result


class Refinement(nn.Module):
    """What to add to blurred images (N, C, H, W): a U-Net at a quarter, an eighth and a sixteenth of their sides."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        wide, widest = 2 * width, 4 * width
        self.quarter = nn.Sequential(
            nn.PixelUnshuffle(PATCH), nn.Conv2d(channels * PATCH**2, width, 3, padding=1), Residual(width)
        )
        self.eighth = nn.Sequential(nn.Conv2d(width, wide, 2, 2), Residual(wide))
        self.sixteenth = nn.Sequential(
            nn.Conv2d(wide, widest, 2, 2), Residual(widest), Residual(widest), nn.ConvTranspose2d(widest, wide, 2, 2)
        )
        self.from_eighth = nn.Sequential(Residual(wide), nn.ConvTranspose2d(wide, width, 2, 2))
        self.from_quarter = nn.Sequential(
            Residual(width), quiet(nn.Conv2d(width, channels * PATCH**2, 3, padding=1)), nn.PixelShuffle(PATCH)
        )

    def forward(self, images: Tensor) -> Tensor:
        quarter = self.quarter(images)
        eighth = self.eighth(quarter)
        eighth = eighth + self.sixteenth(eighth)
        result: Tensor = self.from_quarter(quarter + self.from_eighth(eighth))
        return result


class VectorCode(nn.Module):
    """The best linear code (N, latent) of images (N, C, H, W): principal components of the reduced images."""

    def __init__(self, image_shape: tuple[int, int, int], latent: int) -> None:
        """Raise ValueError when the reduced images hold fewer numbers than the code."""
        super().__init__()
        channels, height, width = image_shape
        self.factor = 1
        while (
            min(height, width) >= 2 * self.factor * SMALL
            and height % (2 * self.factor) == width % (2 * self.factor) == 0
        ):
            self.factor *= 2
        self.reduced = (channels, height // self.factor, width // self.factor)
        values = prod(self.reduced)
        if not 1 <= latent <= values:
            raise ValueError(f"a code of such images holds between 1 and {values} numbers, not {latent}")
        self.analysis, self.synthesis = nn.Linear(values, latent), nn.Linear(latent, values)

    def reduce(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, self.factor)

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Start at the principal components of batches of images; all numbers share one scale (see `linear`)."""
        reduced = (self.reduce(batch.float()) for batch in images)
        directions, mean, scale = image_components(reduced, self.reduced, self.analysis.out_features)
        set_layer(self.analysis, directions / scale, -directions @ mean / scale)
        set_layer(self.synthesis, directions.T * scale, mean)

    def encode(self, image: Tensor) -> Tensor:
        code: Tensor = self.analysis(self.reduce(image).flatten(1))
        return code

    def decode(self, code: Tensor) -> Tensor:
        reduced = self.synthesis(code).view(-1, *self.reduced)
        return functional.interpolate(reduced, scale_factor=float(self.factor), mode="bicubic")


class MapCode(nn.Module):
    """The best linear code of maps: filters that overlap by a whole block on each side, of images (N, C, H, W)."""

    def __init__(self, channels: int, latent: int, reduction: int) -> None:
        """Raise ValueError when a block of the images holds fewer numbers than the maps at its place."""
        super().__init__()
        self.reduction, values = reduction, channels * reduction**2
        if not 1 <= latent <= values:
            raise ValueError(f"a code of such images holds between 1 and {values} maps, not {latent}")
        self.analysis = nn.Conv2d(values, latent, 3, padding=1, padding_mode="replicate")
        self.synthesis = nn.Conv2d(latent, values, 3, padding=1, padding_mode="replicate")

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Start at the principal components of blocks, lengthened by a fit to the spectrum of a sample."""
        sample, _ = take_sample(images)
        latent, values = self.synthesis.in_channels, self.analysis.in_channels
        components, mean = patch_components(sample, latent, self.reduction)
        kernels = JITTER * torch.randn(2, latent, values, 3, 3)
        kernels[:, :, :, 1, 1] += components.flatten(1)
        analysis, synthesis = kernels[0], kernels[1].transpose(0, 1).contiguous()
        roots = covariance_roots(sample, self.reduction)
        targets = functional.pixel_unshuffle(roots, self.reduction)
        energy = roots.square().sum().clamp(min=1e-12)

        def loss() -> Tensor:
            code = functional.conv2d(periodic(targets, 1), analysis)
            return (functional.conv2d(periodic(code, 1), synthesis) - targets).square().sum() / energy

        if min(sample.shape[2:]) >= FEWEST * self.reduction:
            minimise(loss, [analysis, synthesis], ITERATIONS)
        blocks = mean.repeat_interleave(self.reduction**2)
        set_layer(self.analysis, analysis, -analysis.sum((2, 3)) @ blocks)
        set_layer(self.synthesis, synthesis, blocks)

    def encode(self, image: Tensor) -> Tensor:
        code: Tensor = self.analysis(functional.pixel_unshuffle(image, self.reduction))
        return code

    def decode(self, code: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.synthesis(code), self.reduction)


def quiet(layer: Layer) -> Layer:
    """Return a layer with its weight made small and its bias zero: the branch that it ends starts near zero."""
    nn.init.normal_(layer.weight, std=QUIET)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
