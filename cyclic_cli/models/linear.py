"""Linear autoencoder: image → 128 → 128 → 128 → image, without any non-linearity; the code is the middle 128.

The topology is the origin's. A linear autoencoder that minimises the squared error spans the principal
components of its images (Baldi and Hornik, "Neural networks and principal component analysis", 1989), so it
starts there in closed form instead of searching for them: the components of one streaming pass, steadied for
small sets by displaced copies and a smooth prior (see `_layers`). Training then only adjusts the maps, with a
learning rate as small as their weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from cyclic_cli.models._layers import check_image_shape, image_components, layers_of, set_layer


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 128  # numbers in the code, and in the layer on either side of it


OUTPUTS = ("reconstruction", "code")
OBJECTIVES = {"reconstruction": 1.0}
RECIPE = {"lr": 1e-6, "batch_size": 32, "weight_decay": 0.0, "warmup": 0.1}


class Model(nn.Module):
    """Linear autoencoder of images (C, H, W), of any sides from 32 pixels."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raise ValueError when a side is below 32 pixels or the code is larger than the image."""
        super().__init__()
        check_image_shape(image_shape, multiple=1)
        values, latent = prod(image_shape), config.latent
        if not 1 <= latent <= values:
            raise ValueError(f"a code of such images holds between 1 and {values} numbers, not {latent}")
        self.image_shape = image_shape
        self.encoder = nn.Sequential(nn.Linear(values, latent), nn.Linear(latent, latent))
        self.decoder = nn.Sequential(nn.Linear(latent, latent), nn.Linear(latent, values))

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Start at the principal components of batches of images (N, C, H, W); ValueError when there are none.

        Both maps between the layers of the code start as identities. All numbers of the code share one scale,
        which gives them a root mean square of about one and keeps distances between codes those of the images.
        """
        compress, into_code = layers_of(self.encoder, nn.Linear)
        out_of_code, expand = layers_of(self.decoder, nn.Linear)
        latent = into_code.out_features
        directions, mean, scale = image_components(images, self.image_shape, latent)
        identity, zero = torch.eye(latent), torch.zeros(latent)
        set_layer(compress, directions / scale, -directions @ mean / scale)
        set_layer(into_code, identity, zero)
        set_layer(out_of_code, identity, zero)
        set_layer(expand, directions.T * scale, mean)

    def encode(self, image: Tensor) -> Tensor:
        """Return the code (N, latent) of images (N, C, H, W) in [0, 1]."""
        code: Tensor = self.encoder(image.flatten(1))
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes (N, latent)."""
        image: Tensor = self.decoder(code).view(-1, *self.image_shape)
        return image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the code of images (N, C, H, W) and their reconstruction from it."""
        code = self.encode(image)
        return {"reconstruction": self.decode(code), "code": code}
