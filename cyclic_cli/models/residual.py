"""Residual autoencoder (recommended): an optimal linear code, with residual networks for encoding and decoding.

    code            = linear.encode(image) + trunk(image)
    reconstruction  = base + refinement(base),   base = linear.decode(code)

The linear code is initialised at its optimum for the training images. For a vector code these are the principal
components of the downsampled images. For a code of maps they are the overlapping filters that keep most of the power
spectrum (see `_spectrum`).

The trunk adds the non-linear part of the code. The refinement is a U-Net (Ronneberger et al., MICCAI 2015) at a quarter
of the sides and below, with pre-activation residual blocks (He et al., "Identity Mappings in Deep Residual Networks",
ECCV 2016). It reads the blurred image that a small code gives and adds the typical details. Both networks initially
return almost zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.models._components import image_components, patch_components, take_sample
from cyclic_cli.models._layers import GROUPS, JITTER, Residual, check_image_shape, set_layer
from cyclic_cli.models._spectrum import covariance_roots, minimise, periodic

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 256  # dimensions of the code, or its number of maps
    reduction: int | None = None  # None: the code is a vector; 2, 4, 8 or 16: maps with sides smaller by this factor
    width: int = 32  # channels of the refinement at a quarter of the sides, a multiple of 8


OUTPUTS = ("reconstruction", "code")
OBJECTIVES = {"reconstruction": 1.0}
RECIPE = {"lr": 1e-3, "batch_size": 8, "weight_decay": 0.0, "warmup": 0.05, "augment": 1.0, "fitted_lr": 0.03}
FITTED = ("linear",)
MULTIPLE = 16  # image sides must be multiples of this: they are halved four times
PATCH = 4  # side of the patches, in pixels, that become the channels of the refinement
SMALL = 48  # pixels: smallest side to which images are downsampled for their principal components
LAST_STD = 1e-3  # initial standard deviation of the last weights of trunk and refinement
ITERATIONS = 200  # limit for the fit to the spectrum
FEWEST = 8  # blocks along a side. With fewer, most blocks lie at a border, which the spectrum does not describe


class Model(nn.Module):
    """Residual autoencoder of images (C, H, W) whose sides are multiples of 16."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError for an impossible image size, width, reduction or size of the code."""
        super().__init__()
        check_image_shape(image_shape, MULTIPLE)
        if config.width < GROUPS or config.width % GROUPS:
            raise ValueError(f"the width must be a multiple of {GROUPS}, not {config.width}")
        if config.reduction not in (None, 2, 4, 8, 16):
            raise ValueError(f"the reduction must be 2, 4, 8, 16 or null, not {config.reduction}")
        channels, width = image_shape[0], config.width
        head: list[nn.Module]
        if config.reduction is None:
            self.linear: VectorCode | MapCode = VectorCode(image_shape, config.latent)
            positions = (image_shape[1] // MULTIPLE) * (image_shape[2] // MULTIPLE)
            head = [
                nn.Conv2d(4 * width, width, 1),
                nn.Flatten(),
                near_zero(nn.Linear(width * positions, config.latent)),
            ]
        else:
            self.linear = MapCode(channels, config.latent, config.reduction)
            head = [near_zero(nn.Conv2d(4 * width, config.latent, 3, padding=1))]
        side = config.reduction or MULTIPLE
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(side), nn.Conv2d(channels * side**2, 4 * width, 3, padding=1),
            Residual(4 * width), Residual(4 * width), nn.GroupNorm(GROUPS, 4 * width), nn.SiLU(), *head,
        )  # fmt: skip
        self.refinement = Refinement(channels, width)

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the linear code to batches of images (N, C, H, W). Raises ValueError when there are no images."""
        self.linear.initialise(images)

    def encode(self, image: Tensor) -> Tensor:
        """Return the code of images (N, C, H, W) in [0, 1]: (N, latent), or (N, latent, h, w) with a reduction."""
        code: Tensor = self.linear.encode(image) + self.trunk(image)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes as `encode` returns them."""
        base = self.linear.decode(code)
        image: Tensor = base + self.refinement(base)
        return image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the code of images (N, C, H, W) and their reconstruction from it."""
        code = self.encode(image)
        return {"reconstruction": self.decode(code), "code": code}


class Refinement(nn.Module):
    """A U-Net that returns what to add to blurred images (N, C, H, W).

    It works at a quarter, an eighth and a sixteenth of the sides.
    """

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
            Residual(width), near_zero(nn.Conv2d(width, channels * PATCH**2, 3, padding=1)), nn.PixelShuffle(PATCH)
        )

    def forward(self, images: Tensor) -> Tensor:
        quarter = self.quarter(images)
        eighth = self.eighth(quarter)
        eighth = eighth + self.sixteenth(eighth)
        result: Tensor = self.from_quarter(quarter + self.from_eighth(eighth))
        return result


class VectorCode(nn.Module):
    """The best linear code (N, latent) of images (N, C, H, W): principal components of the downsampled images."""

    def __init__(self, image_shape: tuple[int, int, int], latent: int) -> None:
        """Raises ValueError when the code has more dimensions than the downsampled images, or none."""
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
            raise ValueError(
                f"for images of this size the code (latent) can have between 1 and {values} dimensions, not {latent}"
            )
        self.analysis, self.synthesis = nn.Linear(values, latent), nn.Linear(latent, values)

    def reduce(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, self.factor)

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Initialise with the principal components of batches of images; all dimensions share one scale."""
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
    """The best linear code (N, latent, h, w) of images (N, C, H, W) by filters of 3×3 blocks of pixels.

    The filters of neighbouring positions overlap by one block on each side.
    """

    def __init__(self, channels: int, latent: int, reduction: int) -> None:
        """Raises ValueError when the code has more maps than a block has pixel values, or none."""
        super().__init__()
        self.reduction, values = reduction, channels * reduction**2
        if not 1 <= latent <= values:
            raise ValueError(f"at this reduction the code (latent) can have between 1 and {values} maps, not {latent}")
        self.analysis = nn.Conv2d(values, latent, 3, padding=1, padding_mode="replicate")
        self.synthesis = nn.Conv2d(latent, values, 3, padding=1, padding_mode="replicate")

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Initialise with the principal components of blocks, then extend the filters to the neighbouring blocks.

        The filters are extended by a fit to the power spectrum of a sample of the images.
        """
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


def near_zero(layer: Layer) -> Layer:
    """Return a layer after setting its weights to small random numbers and its bias to zero.

    A branch that ends with this layer initially returns almost zero.
    """
    nn.init.normal_(layer.weight, std=LAST_STD)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
