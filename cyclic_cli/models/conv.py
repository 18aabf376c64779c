"""Convolutional autoencoder: two convolutions with pooling to 4 small maps, and two transposed ones back.

The topology is the origin's: image → convolution, ReLU, 2×2 pooling (16 maps) → the same (4 maps, a quarter
of the sides: 4×56×56 at 224 pixels, the code) → transposed convolution, ReLU → transposed convolution. Two
things are unusual. Pooling takes the average, not the maximum, which lets a linear code pass. And the start is
fitted, layer by layer and by least squares, to patches of a sample of the images (see `_layers`): the hidden
maps are pairs of opposite filters, the code is shifted clear of its rectifier, and so the untrained model is
already close to the best linear code of patches. Training adds what the rectifiers can.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.models._layers import (
    check_image_shape,
    decode_linearly,
    decoding,
    encode_linearly,
    encoding,
    fit_decoding,
    fit_encoding,
    framed,
    layers_of,
    paired,
    patches,
    set_layer,
    take_sample,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 16  # hidden maps, at half the sides of the image; even, they start as pairs
    latent: int = 4  # maps in the code, at a quarter of the sides


OUTPUTS = ("reconstruction", "code")
OBJECTIVES = {"reconstruction": 1.0}
RECIPE = {"lr": 5e-5, "batch_size": 4, "weight_decay": 0.0, "warmup": 0.1}
KERNEL = 5  # side of the encoder's filters; averaging needs more than 3 to keep detail

MARGIN = 0.1  # how far the code starts from its rectifier, as a share of its range in the sample


class Model(nn.Module):
    """Convolutional autoencoder of images (C, H, W) whose sides are multiples of 4."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raise ValueError for impossible sides or for numbers of maps that are not positive (and even)."""
        super().__init__()
        check_image_shape(image_shape, multiple=4)
        channels, width, latent = image_shape[0], config.width, config.latent
        if width < 2 or width % 2:
            raise ValueError(f"the width must be an even number of maps, not {width}")
        if not 1 <= latent <= 16 * channels:
            raise ValueError(f"a code holds between 1 and {16 * channels} maps, not {latent}")
        self.encoder = nn.Sequential(*encoding(channels, width, KERNEL), *encoding(width, latent, KERNEL))
        self.decoder = nn.Sequential(*decoding(latent, width), nn.ReLU(), *decoding(width, channels))

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit every layer to a sample of the images (N, C, H, W), in any batches; ValueError without images."""
        sample, _ = take_sample(images)
        hidden, bottleneck = layers_of(self.encoder, nn.Conv2d)
        expansion, output = layers_of(self.decoder, nn.ConvTranspose2d)
        filters, offset = fit_encoding(sample, patches(sample, 2, margin=1), hidden.out_channels // 2, KERNEL)
        set_layer(hidden, paired(filters), paired(offset))
        maps = encode_linearly(sample, filters, offset)
        filters, _ = fit_encoding(maps, patches(sample, 4), bottleneck.out_channels, KERNEL)
        response = functional.conv2d(framed(maps, KERNEL // 2), filters)
        lowest, highest = response.amin((0, 2, 3)), response.amax((0, 2, 3))
        set_layer(bottleneck, paired(filters, 1), MARGIN * (highest - lowest) - lowest)
        with torch.no_grad():
            code = self.encode(sample)
        filters, offset = fit_decoding(code, maps)
        set_layer(expansion, paired(filters, 1), paired(offset))
        filters, offset = fit_decoding(decode_linearly(code, filters, offset), sample)
        set_layer(output, paired(filters), offset)

    def encode(self, image: Tensor) -> Tensor:
        """Return the code (N, latent, H / 4, W / 4), not negative, of images (N, C, H, W) in [0, 1]."""
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
