"""Linear autoencoder: image → 128 → 128 → 128 → image, without any non-linearity; the middle layer is the code.

A linear autoencoder with the least squared error spans the principal components of its training images (Baldi and
Hornik, "Neural networks and principal component analysis", 1989). This model is therefore initialised by that
closed-form solution. The components come from one pass over the images; displaced copies and a smooth prior regularise
them for small datasets (see `_components`). Training only makes small adjustments, with a learning rate that suits the
small weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from cyclic_cli.models._components import image_components
from cyclic_cli.models._layers import check_image_shape, layers_of, set_layer


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 128  # dimensions of the code, and of the layer on either side of it


OUTPUTS = ("reconstruction", "code")
OBJECTIVES = {"reconstruction": 1.0}
RECIPE = {"lr": 1e-6, "batch_size": 32, "weight_decay": 0.0, "warmup": 0.1}


class Model(nn.Module):
    """Linear autoencoder of images (C, H, W) whose sides are at least 32 pixels."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError when a side is shorter than 32 pixels, or the code is larger than the image."""
        super().__init__()
        check_image_shape(image_shape, multiple=1)
        values, latent = prod(image_shape), config.latent
        if not 1 <= latent <= values:
            raise ValueError(
                f"for images of this size the code (latent) can have between 1 and {values} dimensions, not {latent}"
            )
        self.image_shape = image_shape
        self.encoder = nn.Sequential(nn.Linear(values, latent), nn.Linear(latent, latent))
        self.decoder = nn.Sequential(nn.Linear(latent, latent), nn.Linear(latent, values))

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Initialise with the principal components of batches of images (N, C, H, W).

        The two square layers are initialised as identities. One common scale gives the code a root mean square of about
        one, and keeps the distances between codes proportional to those between images. Raises ValueError when there
        are no images.
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
