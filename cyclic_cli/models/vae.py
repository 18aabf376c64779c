"""Variational autoencoder: a small ResNet-18 that gives the mean and log-variance of a code, and its mirrored decoder.

The encoder has a stem, four stages of two residual blocks with doubling widths, and two heads. The decoder mirrors it.
It differs from the network of He et al., "Deep Residual Learning" (CVPR 2016), in four ways:

- The widths are a quarter of the original ones.
- The stem is one convolution of stride 4, without pooling.
- Groups of channels are normalised, and only inside the residual branches (pre-activation, He et al., "Identity
  Mappings in Deep Residual Networks", ECCV 2016).
- The heads read the last maps with their positions instead of the average over positions.

The initialisation is unusual. Residual branches start near zero (as in De and Smith, "Batch Normalization Biases
Residual Blocks Towards the Identity Function", NeurIPS 2020), so the model is initially linear. The strided shortcuts
are principal components of patches. The heads and the first layer of the decoder are the optimum of the linear
variational autoencoder, which is probabilistic principal component analysis (Tipping and Bishop, 1999; Lucas et al.,
"Don't Blame the ELBO!", NeurIPS 2019). Thus no dimension of the code that the images support is collapsed at first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.models._components import (
    CHUNKS,
    SmoothPrior,
    StreamingComponents,
    patch_components,
    take_sample,
    with_displaced,
)
from cyclic_cli.models._layers import GROUPS, JITTER, check_image_shape, layers_of, residual_branch, set_layer


@dataclass(frozen=True, kw_only=True)
class Config:
    latent: int = 256  # dimensions of the code
    width: int = 32  # channels of the first stage, a multiple of 8; each further stage doubles them


OUTPUTS = ("reconstruction", "code", "mean", "log_variance")
PIXEL_VARIANCE = 0.0025  # variance of the Gaussian around the reconstruction, a standard deviation of 0.05
OBJECTIVES = {"reconstruction": 1.0, "divergence": 2 * PIXEL_VARIANCE}  # evidence lower bound, see `divergence`
RECIPE = {"lr": 1e-4, "batch_size": 16, "weight_decay": 0.0, "warmup": 0.1, "augment": 1.0}
STAGES = 4  # stages of two residual blocks
STRIDE = 32  # total stride of the encoder: 4 in the stem, 2 in each stage after the first
LOG_VARIANCE_BOUND = 14.0  # log-variances lie between minus and plus this value


class Block(nn.Module):
    """Residual block: a linear shortcut, which may change the size, followed by a residual branch."""

    def __init__(self, shortcut: nn.Module, channels: int) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.branch = residual_branch(channels)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.shortcut(maps)
        result: Tensor = maps + self.branch(maps)
        return result


class Model(nn.Module):
    """Variational autoencoder of images (C, H, W) whose sides are multiples of 16."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError for an impossible image size, width or number of dimensions of the code."""
        super().__init__()
        check_image_shape(image_shape, multiple=16)
        channels, height, width = image_shape
        if config.width < GROUPS or config.width % GROUPS:
            raise ValueError(f"the width must be a multiple of {GROUPS}, not {config.width}")
        widths = [config.width * 2**stage for stage in range(STAGES)]
        self.image_shape = image_shape
        self.padding = (0, -width % STRIDE, 0, -height % STRIDE)  # black, to whole strides; `decode` removes it
        self.maps_shape = (widths[-1], -(-height // STRIDE), -(-width // STRIDE))
        features = self.maps_shape[0] * self.maps_shape[1] * self.maps_shape[2]
        self.latent = config.latent
        if not 1 <= config.latent <= features:
            raise ValueError(
                f"for images of this size the code (latent) can have between 1 and {features} dimensions, "
                f"not {config.latent}"
            )
        downward: list[nn.Module] = []
        upward: list[nn.Module] = []
        for stage, wide in enumerate(widths):
            narrow, step = (widths[stage - 1], 2) if stage else (channels, 4)
            downward += [Block(nn.Conv2d(narrow, wide, step, step), wide), Block(nn.Identity(), wide)]
            enlarge = nn.ConvTranspose2d(wide, narrow, step, step)
            larger = Block(enlarge, narrow) if stage else enlarge
            upward = [Block(nn.Identity(), wide), larger, *upward]
        self.encoder, self.decoder = nn.Sequential(*downward), nn.Sequential(*upward)
        self.mean_head = nn.Linear(features, self.latent)
        self.log_variance_head = nn.Linear(features, self.latent)
        self.expansion = nn.Linear(self.latent, features)

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the shortcuts to a sample of the images, and the heads to all images.

        `images` are batches (N, C, H, W). Raises ValueError when there are no images.
        """
        sample, stream = take_sample(images)
        self.fit_shortcuts(sample)
        prior, observed = SmoothPrior(self.image_shape), StreamingComponents()
        with torch.no_grad():
            for batch in stream:
                prior.update(batch)
                observed.update(self.linear_maps(with_displaced(batch)).flatten(1))
            offset = self.linear_maps(torch.zeros_like(sample[:1]))
            smooth = torch.cat([self.linear_maps(chunk) - offset for chunk in prior.images().chunk(CHUNKS)])
        self.set_heads(observed, smooth.flatten(1))

    def fit_shortcuts(self, sample: Tensor) -> None:
        """Set each strided shortcut to the principal components of patches of a sample (N, C, H, W).

        The mirrored layer of the decoder is set to the transpose.
        """
        maps = functional.pad(sample, self.padding)
        shrinking = [layer for layer in layers_of(self.encoder, nn.Conv2d) if layer.stride[0] > 1]
        enlarging = layers_of(self.decoder, nn.ConvTranspose2d)
        for shrink, enlarge in zip(shrinking, reversed(enlarging), strict=True):
            weight, mean = patch_components(maps, shrink.out_channels, shrink.stride[0])
            weight = weight + JITTER * torch.randn(weight.shape)
            set_layer(shrink, weight, -weight.sum((2, 3)) @ mean)
            set_layer(enlarge, weight, mean)
            with torch.no_grad():
                maps = shrink(maps)

    def linear_maps(self, image: Tensor) -> Tensor:
        """Return the last maps (N, channels, h, w) of images (N, C, H, W), computed by the shortcuts only."""
        maps = functional.pad(image, self.padding)
        for block in layers_of(self.encoder, Block):
            maps = block.shortcut(maps)
        return maps

    def set_heads(self, observed: StreamingComponents, prior: Tensor) -> None:
        """Set the heads and the decoder's first layer to probabilistic principal components of the maps.

        `observed` holds the maps of the training images, and `prior` (K, P) those of the smooth prior.
        """
        directions, variances = observed.components(self.latent, prior)
        signal = (variances - PIXEL_VARIANCE).clamp(min=JITTER * PIXEL_VARIANCE)
        total = signal + PIXEL_VARIANCE
        weight = directions * (signal.sqrt() / total)[:, None]
        set_layer(self.mean_head, weight, -weight @ observed.mean)
        set_layer(self.log_variance_head, torch.zeros_like(weight), (PIXEL_VARIANCE / total).log())
        set_layer(self.expansion, directions.T * signal.sqrt(), observed.mean)

    def distribution(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the bounded log-variance, (N, latent) each, of the codes of images (N, C, H, W)."""
        features = self.encoder(functional.pad(image, self.padding)).flatten(1)
        log_variance = self.log_variance_head(features)
        bounded = LOG_VARIANCE_BOUND * torch.tanh(log_variance / LOG_VARIANCE_BOUND)
        return self.mean_head(features), bounded

    def encode(self, image: Tensor) -> Tensor:
        """Return the code (N, latent) of images (N, C, H, W) in [0, 1]: the mean of its distribution."""
        return self.distribution(image)[0]

    def decode(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes (N, latent)."""
        image: Tensor = self.decoder(self.expansion(code).view(-1, *self.maps_shape))
        return image[:, :, : self.image_shape[1], : self.image_shape[2]]

    def forward(self, image: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Return the distribution of the code of images (N, C, H, W), a code, and the reconstruction from it.

        With standard normal `noise` (N, latent) the code is sampled; without noise it is the mean.
        """
        mean, log_variance = self.distribution(image)
        code = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
        return {"reconstruction": self.decode(code), "code": code, "mean": mean, "log_variance": log_variance}
