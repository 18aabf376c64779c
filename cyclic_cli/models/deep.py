"""Deep autoencoder: four convolutions and poolings, three fully connected layers to 256 numbers, and back.

The topology is the origin's: image → 4 × (convolution, 2×2 pooling, ReLU) → 3 fully connected layers → code of
256 numbers → 3 fully connected layers → 4 transposed convolutions (stride 2, ReLU between) → image. Pooling is a
weighted mean with learned weights. Such a chain, started at random, spends its first epochs on the mean image; this
one starts as a linear code (see `_layers`): hidden units are pairs of opposite rectifiers, the convolutions are an
orthonormal transform of 16×16 blocks by principal components, and the fully connected layers hold the principal
components of the maps that it makes of all images. Training then bends that linear code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.models._layers import (
    CHUNKS,
    Enlargement,
    PooledConvolution,
    SmoothPrior,
    StreamingComponents,
    check_image_shape,
    code_scale,
    layers_of,
    paired,
    patch_components,
    set_layer,
    take_sample,
    with_displaced,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 256  # numbers in the code; the layers on either side of it hold twice as many
    width: int = 16  # maps after the first convolution, doubled by each next; even, they start as pairs


OUTPUTS = ("reconstruction", "code")
OBJECTIVES = {"reconstruction": 1.0}
RECIPE = {"lr": 1e-3, "batch_size": 16, "weight_decay": 0.0, "warmup": 0.1, "augment": 1.0, "fitted_lr": 0.03}
FITTED = ("compression", "expansion")
STAGES = 4  # convolutions with pooling; each halves the sides


class Model(nn.Module):
    """Deep autoencoder of images (C, H, W) whose sides are multiples of 16."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raise ValueError for impossible sides, an odd width, or a code larger than the maps it is made of."""
        super().__init__()
        check_image_shape(image_shape, multiple=2**STAGES)
        if config.width < 2 or config.width % 2:
            raise ValueError(f"the width must be an even number of maps, not {config.width}")
        widths = [image_shape[0], *(config.width * 2**stage for stage in range(STAGES))]
        self.image_shape = image_shape
        self.maps_shape = (widths[-1], image_shape[1] // 2**STAGES, image_shape[2] // 2**STAGES)
        features = widths[-1] * self.maps_shape[1] * self.maps_shape[2]
        latent = config.latent
        if not 1 <= latent <= features // 2:
            raise ValueError(f"a code of such images holds between 1 and {features // 2} numbers, not {latent}")
        analysis: list[nn.Module] = []
        synthesis: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            analysis += [PooledConvolution(narrow, wide, 3), nn.ReLU()]
            synthesis = [nn.ReLU(), Enlargement(wide, narrow), *synthesis]
        self.analysis, self.synthesis = nn.Sequential(*analysis), nn.Sequential(*synthesis)
        self.compression = nn.Sequential(
            nn.Linear(features, 2 * latent), nn.ReLU(),
            nn.Linear(2 * latent, 2 * latent), nn.ReLU(),
            nn.Linear(2 * latent, latent),
        )  # fmt: skip
        self.expansion = nn.Sequential(
            nn.Linear(latent, 2 * latent), nn.ReLU(),
            nn.Linear(2 * latent, 2 * latent), nn.ReLU(),
            nn.Linear(2 * latent, features),
        )  # fmt: skip

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the convolutions to a sample of batches of images (N, C, H, W) and the rest to all of them.

        Raises ValueError when there are no images.
        """
        sample, stream = take_sample(images)
        filters = self.fit_convolutions(sample)
        prior, observed = SmoothPrior(self.image_shape), StreamingComponents()
        for batch in stream:
            prior.update(batch)
            observed.update(linear_maps(with_displaced(batch), filters).flatten(1))
        nothing = linear_maps(torch.zeros_like(sample[:1]), filters)
        smooth = torch.cat([linear_maps(chunk, filters) - nothing for chunk in prior.images().chunk(CHUNKS)])
        self.set_compression(observed, smooth.flatten(1))

    def fit_convolutions(self, sample: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Fit and set all convolutions from a sample (N, C, H, W); return the encoder's filters and offsets.

        The filters (O, C, 2, 2) and offsets (O,) are those of the maps before they are paired.
        """
        maps, filters = sample, list[tuple[Tensor, Tensor]]()
        mirrors = reversed(layers_of(self.synthesis, Enlargement))
        for layer, mirror in zip(layers_of(self.analysis, PooledConvolution), mirrors, strict=True):
            outputs = layer.pooling.out_channels // 2
            components, mean = patch_components(maps, outputs)
            offset = -components.sum((2, 3)) @ mean
            first = not filters
            layer.set_patches(paired(components if first else paired(components, 1)), paired(offset))
            drawn, level = (components, mean) if first else (paired(components, 1), paired(mean))
            mirror.set_patches(paired(drawn), level)
            filters.append((components, offset))
            maps = functional.conv2d(maps, components, offset, stride=2)
        return filters

    def set_compression(self, observed: StreamingComponents, prior: Tensor) -> None:
        """Set the fully connected layers to principal components of the maps, the code to one common scale."""
        first, second, third = layers_of(self.compression, nn.Linear)
        latent = third.out_features
        directions, variances = observed.components(latent, prior)
        scale = code_scale(variances)
        identity, zero = torch.eye(latent), torch.zeros(latent)
        inputs = paired(directions.view(latent, -1, *self.maps_shape[1:]), 1).flatten(1)  # pairs of maps
        set_layer(first, paired(inputs / scale), paired(-directions @ observed.mean / scale))
        set_layer(second, paired(paired(identity, 1)), paired(zero))
        set_layer(third, paired(identity, 1), zero)
        first, second, third = layers_of(self.expansion, nn.Linear)
        set_layer(first, paired(identity), paired(zero))
        set_layer(second, paired(paired(identity, 1)), paired(zero))
        set_layer(third, paired(paired(directions.T * scale, 1)), paired(observed.mean))

    def encode(self, image: Tensor) -> Tensor:
        """Return the code (N, latent) of images (N, C, H, W) in [0, 1]."""
        code: Tensor = self.compression(self.analysis(image).flatten(1))
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes (N, latent)."""
        image: Tensor = self.synthesis(self.expansion(code).view(-1, *self.maps_shape))
        return image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the code of images (N, C, H, W) and their reconstruction from it."""
        code = self.encode(image)
        return {"reconstruction": self.decode(code), "code": code}


def linear_maps(images: Tensor, filters: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the maps that the fitted convolutions make of images (N, C, H, W), without pairs and rectifiers."""
    for weight, offset in filters:
        images = functional.conv2d(images, weight, offset, stride=2)
    return images
