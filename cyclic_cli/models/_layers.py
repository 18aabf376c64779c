"""Layers that the architectures share, the functions that initialise them, and the check of image sizes.

Two ideas let a network be initialised as a linear code (see `_components` for the code itself):

- Convolutions that halve the sides of feature maps are initialised with the principal components of 2×2 patches.
  Transposed convolutions that double the sides are initialised with their transposes. A chain of such layers is then an
  orthonormal transform of image blocks.
- Rectifiers (ReLU) pass a linear code unchanged when they come in pairs. A hidden unit z is stored as relu(z) and
  relu(-z), whose difference is z again. This is the "looks linear" initialisation of Balduzzi et al., "The Shattered
  Gradients Problem" (ICML 2017).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = TypeVar("Layer", bound=nn.Module)

SMALLEST_SIDE = 32  # pixels
GROUPS = 8  # groups of channels in the group normalisation of residual branches
BRANCH_SCALE = 0.003  # factor on the initial weights of the last convolution of a residual branch
JITTER = 1e-5  # standard deviation of noise added to fitted weights; a weight of exactly zero may get no gradient


def check_image_shape(image_shape: tuple[int, int, int], multiple: int) -> None:
    """Check an image shape (channels, height, width).

    Raises ValueError when there is no channel, a side is shorter than `SMALLEST_SIDE`, or a side is not a multiple of
    `multiple`.
    """
    channels, height, width = image_shape
    if channels < 1:
        raise ValueError(f"images need at least one channel, not {channels}")
    for name, side in (("height", height), ("width", width)):
        if side < SMALLEST_SIDE:
            raise ValueError(f"the {name} of the images is {side} pixels; at least {SMALLEST_SIDE} are needed")
        if side % multiple:
            raise ValueError(f"the {name} of the images is {side} pixels; it must be a multiple of {multiple}")


class PooledConvolution(nn.Module):
    """A convolution with an odd kernel, followed by 2×2 pooling with a weighted mean.

    Every output map has four learned pooling weights. Maps (N, C, 2h, 2w) become (N, O, h, w), with replicated borders.

    Both steps are linear. Together they equal one convolution of stride 2 whose kernel is larger by one. The layer is
    computed that way while `fuse` is true, because it needs a quarter of the positions and no full-size map.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.fuse = True
        self.convolution = nn.Conv2d(inputs, outputs, kernel, bias=False)  # `forward` pads the maps first
        self.pooling = nn.Conv2d(outputs, outputs, 2, stride=2, groups=outputs)
        nn.init.constant_(self.pooling.weight, 0.25)

    def forward(self, maps: Tensor) -> Tensor:
        maps = pad_replicate(maps, self.convolution.kernel_size[0] // 2)
        if not self.fuse:
            pooled: Tensor = self.pooling(self.convolution(maps))
            return pooled
        kernel = pooled_kernel(self.convolution.weight, self.pooling.weight)
        return functional.conv2d(maps, kernel, self.pooling.bias, stride=2)

    def set(self, weight: Tensor, pooling: Tensor, bias: Tensor) -> None:
        """Overwrite the weights of the convolution (O, C, k, k) and of the pooling (O, 1, 2, 2), and the bias (O,)."""
        with torch.no_grad():
            self.convolution.weight.copy_(weight)
        set_layer(self.pooling, pooling, bias)

    def set_patches(self, filters: Tensor, bias: Tensor) -> None:
        """Initialise with filters (O, C, 2, 2) of non-overlapping patches.

        The first of the four pooling weights is one and the others are zero, so the pooling only subsamples.
        """
        centre = self.convolution.kernel_size[0] // 2
        weight = JITTER * torch.randn(self.convolution.weight.shape)
        weight[:, :, centre : centre + 2, centre : centre + 2] += filters
        pooling = torch.zeros_like(self.pooling.weight)
        pooling[:, :, 0, 0] = 1
        self.set(weight, pooling, bias)


def pooled_kernel(weight: Tensor, pooling: Tensor) -> Tensor:
    """Return the kernel (O, C, k + 1, k + 1) that a convolution (O, C, k, k) and its pooling (O, 1, 2, 2) amount to."""
    shifts = [(down, right) for down in (0, 1) for right in (0, 1)]
    parts = [
        pooling[:, :, down, right, None, None] * functional.pad(weight, (right, 1 - right, down, 1 - down))
        for down, right in shifts
    ]
    return torch.stack(parts).sum(0)


class Enlargement(nn.Module):
    """A transposed convolution of stride 2 from maps (N, C, h, w) to (N, O, 2h, 2w), with replicated borders.

    Each output depends on 3×3 input positions. While `fuse` is true and there are at most `FEW` outputs, the layer is
    computed as a convolution that gives the four phases of the outputs, which are then interleaved. The sums are the
    same, and processors compute them faster.
    """

    FEW = 4  # outputs up to which the phases are faster

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fuse = True
        self.convolution = nn.ConvTranspose2d(inputs, outputs, 6, stride=2, padding=4)

    def forward(self, maps: Tensor) -> Tensor:
        maps, layer = pad_replicate(maps, 1), self.convolution
        if not self.fuse or layer.out_channels > self.FEW:
            enlarged: Tensor = layer(maps)
            return enlarged
        assert layer.bias is not None
        phases = functional.conv2d(maps, phase_kernel(layer.weight), layer.bias.repeat_interleave(4))
        return functional.pixel_shuffle(phases, 2)

    def set_patches(self, filters: Tensor, bias: Tensor) -> None:
        """Initialise with filters (C, O, 2, 2): the 2×2 patch that each input map adds to the output."""
        weight = JITTER * torch.randn(self.convolution.weight.shape)
        weight[:, :, 2:4, 2:4] += filters
        set_layer(self.convolution, weight, bias)


def phase_kernel(weight: Tensor) -> Tensor:
    """Return the convolution kernel (4 O, C, 3, 3) that gives the four phases of a transposed convolution.

    `weight` (C, O, 6, 6) is the kernel of the transposed convolution, whose stride is 2.
    """
    inputs, outputs = weight.shape[:2]
    # The index along a side of the transposed kernel is 2 (2 - position) + phase.
    by_phase = weight.view(inputs, outputs, 3, 2, 3, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    return by_phase.reshape(4 * outputs, inputs, 3, 3)


def residual_branch(channels: int) -> nn.Sequential:
    """Return a residual branch: group normalisation, SiLU and a 3×3 convolution, twice.

    The last convolution has small initial weights, so the branch initially returns almost zero.
    """
    last = nn.Conv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(BRANCH_SCALE)
    return nn.Sequential(
        nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        nn.GroupNorm(GROUPS, channels), nn.SiLU(), last,
    )  # fmt: skip


class Residual(nn.Module):
    """A residual block of maps (N, C, H, W) that keeps their shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = residual_branch(channels)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = maps + self.branch(maps)
        return result


def pad_replicate(maps: Tensor, margin: int) -> Tensor:
    """Return maps (N, C, H, W) padded by `margin` pixels on every side with their border values."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        # torch 2.13 cannot compile the gradient of replicate padding, so the pixels are indexed instead.
        rows, columns = (
            torch.arange(-margin, side + margin, device=maps.device).clamp(0, side - 1) for side in maps.shape[2:]
        )
        return maps[:, :, rows][:, :, :, columns]
    return functional.pad(maps, [margin] * 4, mode="replicate")


def use_fusion(model: nn.Module, fuse: bool) -> None:
    """Choose for all layers of a model whether they are computed in their fused form, which is equal but faster."""
    for layer in model.modules():
        if isinstance(layer, (PooledConvolution, Enlargement)):
            layer.fuse = fuse


def layers_of(module: nn.Module, kind: type[Layer]) -> list[Layer]:
    """Return the layers of one kind inside a module, in order."""
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def with_negatives(values: Tensor, dimension: int = 0) -> Tensor:
    """Return values followed by their negatives along a dimension: the weights of paired rectifiers."""
    return torch.cat([values, -values], dimension)


def set_layer(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, weight: Tensor, bias: Tensor) -> None:
    """Overwrite the weight and bias of a layer. Raises RuntimeError when the numbers of elements differ."""
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        layer.bias.copy_(bias)
