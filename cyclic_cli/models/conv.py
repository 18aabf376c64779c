"""Convolutional autoencoder: two convolutions with pooling to a code of 4 maps, then two transposed convolutions.

The layers are: image → convolution, 2×2 pooling, ReLU (16 maps) → convolution, 2×2 pooling, ReLU (4 maps, the code) →
transposed convolution, ReLU → transposed convolution → image. The code has a quarter of the sides, 4×56×56 for images
of 224×224 pixels. Pooling is a weighted mean with learned weights instead of the maximum, because a weighted mean is
linear.

The initialisation is unusual. The hidden maps are pairs of opposite filters, and the code is shifted so that its ReLU
is active, so the model is initially linear. It starts as the principal components of 4×4 blocks. A fit to the power
spectrum of the images then extends the filters over the borders of the blocks (see `_spectrum`), which halves the error
before training begins. Training adds what the non-linearities contribute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.models._components import patch_components, take_sample
from cyclic_cli.models._embedding import EmbeddingNetwork
from cyclic_cli.models._layers import (
    Enlargement,
    PooledConvolution,
    check_image_shape,
    layers_of,
    phase_kernel,
    pooled_kernel,
    set_layer,
    with_negatives,
)
from cyclic_cli.models._spectrum import covariance_roots, minimise, periodic


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 16  # hidden maps, at half the sides of the image; even, because they are initialised as pairs
    latent: int = 4  # maps in the code, at a quarter of the sides
    embedding: int = 0  # dimensions of the embedding of a separate network; 0: the embedding is the code


OUTPUTS = ("reconstruction", "code")
OBJECTIVES = {"reconstruction": 1.0}
RECIPE = {"lr": 2e-4, "batch_size": 4, "weight_decay": 0.0, "warmup": 0.1}
KERNEL = 5  # side of the encoder's filters
STRIDE = 4  # of the code, in pixels
MARGIN = 0.25  # initial distance of the code from the zero of its ReLU, as a fraction of the code's range
NOISE = 0.01  # standard deviation of the random part of the initial weights
ITERATIONS = 500  # limit for the fit to the spectrum


class Model(nn.Module):
    """Convolutional autoencoder of images (C, H, W) whose sides are multiples of 4."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError for an impossible image size, an odd width, or a code of too many or no maps."""
        super().__init__()
        check_image_shape(image_shape, multiple=4)
        channels, width, latent = image_shape[0], config.width, config.latent
        if width < 2 or width % 2:
            raise ValueError(f"the width must be an even number of maps, not {width}")
        if not 1 <= latent <= 16 * channels:
            raise ValueError(f"the code (latent) can have between 1 and {16 * channels} maps, not {latent}")
        self.encoder = nn.Sequential(
            PooledConvolution(channels, width, KERNEL), nn.ReLU(), PooledConvolution(width, latent, KERNEL), nn.ReLU()
        )
        self.decoder = nn.Sequential(Enlargement(latent, width), nn.ReLU(), Enlargement(width, channels))
        self.embedding = EmbeddingNetwork(channels, config.embedding) if config.embedding else None

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit every layer to a sample of batches of images (N, C, H, W). Raises ValueError when there are no images."""
        sample, _ = take_sample(images)
        hidden, bottleneck = layers_of(self.encoder, PooledConvolution)
        expansion, output = layers_of(self.decoder, Enlargement)
        code = LinearCode(sample, hidden.convolution.out_channels // 2, bottleneck.convolution.out_channels)
        code.fit(covariance_roots(sample, STRIDE))
        mean = sample.mean((0, 2, 3))
        centre = -pooled_kernel(code.hidden, code.hidden_pooling).sum((2, 3)) @ mean
        hidden.set(with_negatives(code.hidden), code.hidden_pooling.repeat(2, 1, 1, 1), with_negatives(centre))
        bottleneck.set(with_negatives(code.bottleneck, 1), code.bottleneck_pooling, code.shift)
        set_layer(expansion.convolution, with_negatives(code.expansion, 1), with_negatives(code.expansion_bias))
        set_layer(output.convolution, with_negatives(code.output), code.output_bias + mean)

    def encode(self, image: Tensor) -> Tensor:
        """Return the non-negative code (N, latent, H / 4, W / 4) of images (N, C, H, W) in [0, 1]."""
        code: Tensor = self.encoder(image)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes (N, latent, H / 4, W / 4)."""
        image: Tensor = self.decoder(code)
        return image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the code of images (N, C, H, W) and their reconstruction from it."""
        code = self.encode(image)
        return {"reconstruction": self.decode(code), "code": code}


class LinearCode:
    """The convolutional autoencoder without rectifiers and without paired maps, for mean-subtracted images."""

    def __init__(self, sample: Tensor, width: int, latent: int) -> None:
        """Initialise with the principal components of 4×4 blocks of a sample of images (N, C, H, W)."""
        first, mean = patch_components(sample, width)
        maps = functional.conv2d(sample - mean[:, None, None], first, stride=2)
        second, _ = patch_components(maps, latent)
        code = functional.conv2d(maps, second, stride=2)
        lowest, highest = code.amin((0, 2, 3)), code.amax((0, 2, 3))
        self.shift = MARGIN * (highest - lowest) - lowest  # (latent,): makes the code positive
        centre = KERNEL // 2

        def filters(patches: Tensor, side: int, at: int) -> Tensor:
            weight = NOISE * torch.randn(*patches.shape[:2], side, side)
            weight[:, :, at : at + 2, at : at + 2] += patches
            return weight

        self.hidden, self.bottleneck = filters(first, KERNEL, centre), filters(second, KERNEL, centre)
        self.expansion, self.output = filters(second, 6, 2), filters(first, 6, 2)
        self.hidden_pooling, self.bottleneck_pooling = torch.zeros(width, 1, 2, 2), torch.zeros(latent, 1, 2, 2)
        for pooling in (self.hidden_pooling, self.bottleneck_pooling):
            pooling[:, :, 0, 0] = 1
        self.expansion_bias, self.output_bias = torch.zeros(width), torch.zeros(sample.shape[1])

    def __call__(self, images: Tensor) -> Tensor:
        """Return the reconstruction of images (N, C, H, W) with periodic borders."""
        kernel = pooled_kernel(self.hidden, self.hidden_pooling)
        maps = functional.conv2d(periodic(images, KERNEL // 2), kernel, stride=2)
        kernel = pooled_kernel(self.bottleneck, self.bottleneck_pooling)
        code = functional.conv2d(periodic(maps, KERNEL // 2), kernel, self.shift, stride=2)
        maps = functional.conv_transpose2d(periodic(code, 1), self.expansion, self.expansion_bias, stride=2, padding=4)
        phases = functional.conv2d(periodic(maps, 1), phase_kernel(self.output), self.output_bias.repeat_interleave(4))
        return functional.pixel_shuffle(phases, 2)

    def fit(self, roots: Tensor) -> None:
        """Fit all filters to the images (K, C, side, side) that `covariance_roots` returns for a spectrum."""
        black = torch.zeros_like(roots[:1, :, :STRIDE, :STRIDE])
        energy = roots.square().sum().clamp(min=1e-12)

        def loss() -> Tensor:
            offset = self(black)  # the pattern that the shift of the code leaves in the reconstruction; it must vanish
            errors = self(roots) - offset.tile(1, 1, *(side // STRIDE for side in roots.shape[2:])) - roots
            return errors.square().sum() / energy + offset.square().mean()

        parameters = [
            self.hidden, self.hidden_pooling, self.bottleneck, self.bottleneck_pooling,
            self.expansion, self.expansion_bias, self.output, self.output_bias,
        ]  # fmt: skip
        minimise(loss, parameters, ITERATIONS)
