"""Deep autoencoder: four convolutions with pooling and three fully connected layers to a code of 256 numbers, and back.

The layers are: image → 4 × (convolution, 2×2 pooling, ReLU) → 3 fully connected layers → code of 256 numbers →
3 fully connected layers → 4 transposed convolutions (stride 2, with ReLU) → image. Pooling is a weighted mean with
learned weights.

With random weights such a network spends its first epochs on learning the mean image. This one is therefore initialised
as a linear code (see `_layers`). Hidden units are pairs of opposite rectifiers. The convolutions are an orthonormal
transform of 16×16 blocks into principal components. The fully connected layers hold the principal components of the
resulting maps over all training images. Training then adds the non-linear part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.models._components import (
    CHUNKS,
    SmoothPrior,
    StreamingComponents,
    code_scale,
    patch_components,
    take_sample,
    with_displaced,
)
from cyclic_cli.models._layers import (
    Enlargement,
    PooledConvolution,
    check_image_shape,
    layers_of,
    set_layer,
    with_negatives,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 256  # dimensions of the code; the fully connected layers around it have twice as many
    width: int = 16  # maps after the first convolution, doubled by each further one; even, initialised as pairs


OUTPUTS = ("reconstruction", "code")
OBJECTIVES = {"reconstruction": 1.0}
RECIPE = {"lr": 1e-3, "batch_size": 16, "weight_decay": 0.0, "warmup": 0.1, "augment": 1.0, "fitted_lr": 0.03}
FITTED = ("compression", "expansion")
STAGES = 4  # convolutions with pooling; each halves the sides


class Model(nn.Module):
    """Deep autoencoder of images (C, H, W) whose sides are multiples of 16."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError for an impossible image size, an odd width, or a code larger than half the last maps."""
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
            raise ValueError(
                f"for images of this size the code (latent) can have between 1 and {features // 2} dimensions, "
                f"not {latent}"
            )
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
        """Fit the convolutions to a sample of the images, and the fully connected layers to all images.

        `images` are batches (N, C, H, W). Raises ValueError when there are no images.
        """
        sample, stream = take_sample(images)
        filters = self.fit_convolutions(sample)
        prior, observed = SmoothPrior(self.image_shape), StreamingComponents()
        for batch in stream:
            prior.update(batch)
            observed.update(linear_maps(with_displaced(batch), filters).flatten(1))
        offset = linear_maps(torch.zeros_like(sample[:1]), filters)
        smooth = torch.cat([linear_maps(chunk, filters) - offset for chunk in prior.images().chunk(CHUNKS)])
        self.set_compression(observed, smooth.flatten(1))

    def fit_convolutions(self, sample: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Initialise all convolutions from a sample (N, C, H, W), and return the encoder's filters and offsets.

        The filters (O, C, 2, 2) and offsets (O,) give the maps without their negative copies.
        """
        maps, filters = sample, list[tuple[Tensor, Tensor]]()
        mirrors = reversed(layers_of(self.synthesis, Enlargement))
        for layer, mirror in zip(layers_of(self.analysis, PooledConvolution), mirrors, strict=True):
            outputs = layer.pooling.out_channels // 2
            components, mean = patch_components(maps, outputs)
            offset = -components.sum((2, 3)) @ mean
            first = not filters
            layer.set_patches(
                with_negatives(components if first else with_negatives(components, 1)), with_negatives(offset)
            )
            patches, level = (components, mean) if first else (with_negatives(components, 1), with_negatives(mean))
            mirror.set_patches(with_negatives(patches), level)
            filters.append((components, offset))
            maps = functional.conv2d(maps, components, offset, stride=2)
        return filters

    def set_compression(self, observed: StreamingComponents, prior: Tensor) -> None:
        """Initialise the fully connected layers with principal components of the maps.

        `observed` holds the maps of the training images, and `prior` (K, P) those of the smooth prior. All dimensions
        of the code share one scale.
        """
        first, second, third = layers_of(self.compression, nn.Linear)
        latent = third.out_features
        directions, variances = observed.components(latent, prior)
        scale = code_scale(variances)
        identity, zero = torch.eye(latent), torch.zeros(latent)
        inputs = with_negatives(directions.view(latent, -1, *self.maps_shape[1:]), 1).flatten(1)  # pairs of maps
        set_layer(first, with_negatives(inputs / scale), with_negatives(-directions @ observed.mean / scale))
        set_layer(second, with_negatives(with_negatives(identity, 1)), with_negatives(zero))
        set_layer(third, with_negatives(identity, 1), zero)
        first, second, third = layers_of(self.expansion, nn.Linear)
        set_layer(first, with_negatives(identity), with_negatives(zero))
        set_layer(second, with_negatives(with_negatives(identity, 1)), with_negatives(zero))
        set_layer(third, with_negatives(with_negatives(directions.T * scale, 1)), with_negatives(observed.mean))

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
    """Return the maps of images (N, C, H, W) under the fitted convolutions, without paired maps and rectifiers."""
    for weight, offset in filters:
        images = functional.conv2d(images, weight, offset, stride=2)
    return images
