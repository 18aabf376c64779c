"""Shared by the model files: layers, data-dependent starts in closed form, and the check of image sizes.

Every model starts as (nearly) the best linear code of the training images, found in one pass over them,
and training continues from there. These ideas make that possible:

- Principal components of a stream: `StreamingComponents`, an incremental singular value decomposition.
- Few images give noisy components. Every image counts with two displaced copies (`with_displaced`), and
  `SmoothPrior` adds pseudo-observations, low-frequency cosine images with the spectrum of the data, as a
  conjugate (inverse-Wishart) prior of the covariance would.
- Convolutions that halve the sides of maps start as principal components of 2×2 patches, those that double
  them as the transposes, so that a chain of them starts as an orthonormal transform of blocks.
- Rectifiers are made transparent: a hidden unit z is held as the pair (relu(z), relu(-z)), whose difference
  is z again, the "looks linear" initialisation of Balduzzi et al., "The Shattered Gradients Problem" (2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = TypeVar("Layer", bound=nn.Module)

SMALLEST_SIDE = 32  # pixels
SAMPLE = 64 * 224 * 224  # pixels (of one channel) of the images from which convolutions are fitted
DISPLACEMENT = 1 / 28  # standard deviation of the displaced copies of an image, as a share of its side
CAPACITY = 512  # directions the streaming decomposition keeps between merges
PRIOR_IMAGES = 200.0  # how many images the smooth prior counts for, when the components are taken
CHUNKS = 16  # parts in which images of the smooth prior pass through a model
PRIOR_FREQUENCIES = 32  # cosine frequencies per axis in the smooth prior
GROUPS = 8  # of channels that are normalised together, in residual branches
BRANCH_SCALE = 0.003  # of the last convolution of a residual branch, relative to its usual start
JITTER = 1e-5  # random part of a fitted weight, so that none is ever exactly zero and without gradient


def check_image_shape(image_shape: tuple[int, int, int], multiple: int) -> None:
    """Raise ValueError unless (channels, height, width) has a channel and sides of multiples of `multiple`."""
    channels, height, width = image_shape
    if channels < 1:
        raise ValueError(f"images need at least one channel, not {channels}")
    for name, side in (("height", height), ("width", width)):
        if side < SMALLEST_SIDE:
            raise ValueError(f"the {name} of the images is {side} pixels; at least {SMALLEST_SIDE} are needed")
        if side % multiple:
            raise ValueError(f"the {name} of the images is {side} pixels; it must be a multiple of {multiple}")


def take_sample(images: Iterable[Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
    """Return the first images of a stream of batches, and the whole stream again from its start.

    The sample holds as many images (N, C, H, W) as have `SAMPLE` pixels together. The stream is consumed
    once: the batches read for the sample are held and given out again. Raises ValueError when it is empty.
    """
    stream = iter(images)
    held: list[Tensor] = []
    for batch in stream:
        held.append(batch.float())
        wanted = max(1, SAMPLE // (batch.shape[2] * batch.shape[3]))
        if sum(map(len, held)) >= wanted:
            break
    if not sum(map(len, held)):
        raise ValueError("there are no images to initialise the model from")
    return torch.cat(held)[:wanted], chain(held, stream)


def with_displaced(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) and two copies, displaced by opposite random shifts: (3N, C, H, W)."""
    height, width = images.shape[2:]
    down, right = torch.randn(2).mul(DISPLACEMENT).tolist()
    shift = (round(down * height), round(right * width))
    opposite = (-shift[0], -shift[1])
    return torch.cat([images, images.roll(shift, (2, 3)), images.roll(opposite, (2, 3))])


class StreamingComponents:
    """Principal components of a stream of vectors, in memory bounded by `capacity` of them.

    Centred vectors are collected as rows; when more than twice the capacity are held, they are merged into
    the `capacity` directions of the largest variance. Exact for up to twice the capacity of vectors. The mean is
    corrected as in Ross et al., "Incremental Learning for Robust Visual Tracking" (2008), by one extra row.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.count = 0
        self.mean = torch.zeros(0)
        self.rows: list[Tensor] = []

    def update(self, vectors: Tensor) -> None:
        """Take in a batch of vectors (N, P)."""
        arrived, batch_mean = len(vectors), vectors.mean(0)
        self.rows.append(vectors - batch_mean)
        if self.count:
            total = self.count + arrived
            shift = batch_mean - self.mean
            self.rows.append(shift[None] * (self.count * arrived / total) ** 0.5)
            self.mean = self.mean + shift * (arrived / total)
        else:
            self.mean = batch_mean
        self.count += arrived
        if sum(map(len, self.rows)) > 2 * self.capacity:
            directions, variances = principal_directions(torch.cat(self.rows), self.capacity)
            self.rows = [directions * variances.sqrt()[:, None]]

    def components(self, number: int, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `number` orthonormal directions (number, P) and the variance along each, largest first.

        `prior` (K, P) are pseudo-observations about the mean. Directions beyond the rank are random.
        """
        rows = torch.cat([*self.rows, prior] if prior is not None else self.rows)
        directions, scatter = principal_directions(rows, number)
        variances = torch.zeros(number)
        observations = self.count + (PRIOR_IMAGES if prior is not None else 0.0)
        variances[: len(scatter)] = scatter / observations
        missing = torch.randn(number - len(directions), directions.shape[1])
        orthonormal = torch.linalg.qr(torch.cat([directions, missing]).T).Q.T
        orthonormal[: len(directions)] = directions  # as they were: the factorisation may turn their signs
        return orthonormal, variances


def principal_directions(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return up to `number` principal directions (K, P) of rows (N, P), and the summed squares along each.

    Through the eigenvectors of the products of the rows, N × N, or of the columns, P × P, if those are fewer.
    Directions that the rows do not span are left out; products in float32 leave 1e-7 of the largest value in them.
    """
    by_columns = rows.shape[1] < len(rows)
    values, vectors = torch.linalg.eigh((rows.T @ rows if by_columns else rows @ rows.T).double())
    values, vectors = values.flip(0)[:number], vectors.flip(1)[:, :number]
    spanned = int((values > values[0].clamp(min=1e-12) * 1e-6).sum())
    values, vectors = values[:spanned].float(), vectors[:, :spanned].float()
    return (vectors.T if by_columns else functional.normalize(vectors.T @ rows, dim=1)), values


def image_components(
    images: Iterable[Tensor], image_shape: tuple[int, int, int], number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return directions (number, C · H · W) of batches of images (N, C, H, W), their mean, and the scale of a code.

    They are the principal components of the images, steadied by displaced copies and the smooth prior. Divided by
    the scale (), the numbers of a code have a root mean square of about one together. Raises ValueError without images.
    """
    prior, observed = SmoothPrior(image_shape), StreamingComponents()
    for batch in images:
        prior.update(batch.float())
        observed.update(with_displaced(batch.float()).flatten(1))
    if not observed.count:
        raise ValueError("there are no images to initialise the model from")
    directions, variances = observed.components(number, prior.images().flatten(1))
    return directions, observed.mean, code_scale(variances)


def code_scale(variances: Tensor) -> Tensor:
    """Return the one scale () of all numbers of a code with these variances: distances stay those of the images."""
    return variances.mean().sqrt().clamp(min=1e-3)


class SmoothPrior:
    """Pseudo-observations for a covariance of images: low-frequency cosines with the spectrum of the data."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.channels, height, width = image_shape
        self.vertical, self.horizontal = cosine_basis(height), cosine_basis(width)
        self.count = 0
        self.total = torch.zeros(self.channels, len(self.vertical), len(self.horizontal), dtype=torch.float64)
        self.squares = torch.zeros_like(self.total)

    def update(self, images: Tensor) -> None:
        """Take in the spectrum of a batch of images (N, C, H, W)."""
        spectrum = (self.vertical @ images @ self.horizontal.T).double()
        self.count += len(images)
        self.total += spectrum.sum(0)
        self.squares += spectrum.square().sum(0)

    def images(self) -> Tensor:
        """Return (K, C, H, W): a cosine image per channel and frequency, together worth `PRIOR_IMAGES` images."""
        power = (self.squares / self.count - (self.total / self.count).square()).clamp(min=0).float()
        rows, columns = torch.meshgrid(torch.arange(power.shape[1]), torch.arange(power.shape[2]), indexing="ij")
        low = rows.square() + columns.square() < PRIOR_FREQUENCIES**2
        rows, columns = rows[low], columns[low]
        cosines = self.vertical[rows][:, :, None] * self.horizontal[columns][:, None, :]  # (K, H, W)
        result = torch.zeros(self.channels, len(cosines), self.channels, *cosines.shape[1:])
        for channel in range(self.channels):
            deviation = (PRIOR_IMAGES * power[channel, rows, columns]).sqrt()
            result[channel, :, channel] = deviation[:, None, None] * cosines
        return result.flatten(0, 1)


def cosine_basis(length: int) -> Tensor:
    """Return the orthonormal cosines (DCT-II) of the lowest frequencies over `length` pixels, one a row."""
    frequency = torch.arange(min(PRIOR_FREQUENCIES, length), dtype=torch.float64)[:, None]
    basis = torch.cos(torch.pi * (torch.arange(length) + 0.5) * frequency / length)
    return functional.normalize(basis, dim=1).float()


class PooledConvolution(nn.Module):
    """A convolution of odd kernel, then 2×2 pooling by a weighted mean: one set of learned weights for each map.

    Maps (N, C, 2h, 2w) become (N, O, h, w); borders are repeated. Both steps are linear, so they are also one
    convolution of stride 2 with a kernel larger by one, at a quarter of the positions and without a map of full
    size. It is computed so while `fuse` is true.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.fuse = True
        self.convolution = nn.Conv2d(inputs, outputs, kernel, bias=False)  # of framed maps
        self.pooling = nn.Conv2d(outputs, outputs, 2, stride=2, groups=outputs)
        nn.init.constant_(self.pooling.weight, 0.25)

    def forward(self, maps: Tensor) -> Tensor:
        maps = framed(maps, self.convolution.kernel_size[0] // 2)
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
        """Set to filters (O, C, 2, 2) of patches side by side: the first pooling weight is one, the others zero."""
        centre = self.convolution.kernel_size[0] // 2
        weight = JITTER * torch.randn(self.convolution.weight.shape)
        weight[:, :, centre : centre + 2, centre : centre + 2] += filters
        pooling = torch.zeros_like(self.pooling.weight)
        pooling[:, :, 0, 0] = 1
        self.set(weight, pooling, bias)


def pooled_kernel(weight: Tensor, pooling: Tensor) -> Tensor:
    """Return the kernel (O, C, k + 1, k + 1) of a convolution (O, C, k, k) and its pooling (O, 1, 2, 2) together."""
    shifts = [(down, right) for down in (0, 1) for right in (0, 1)]
    parts = [
        pooling[:, :, down, right, None, None] * functional.pad(weight, (right, 1 - right, down, 1 - down))
        for down, right in shifts
    ]
    return torch.stack(parts).sum(0)


class Enlargement(nn.Module):
    """A transposed convolution of stride 2 that sees 3×3 positions: maps (N, C, h, w) to (N, O, 2h, 2w).

    Borders are repeated. While `fuse` is true and the outputs are few, it is computed as a convolution to the four
    phases of the outputs, which are then interleaved: the same sums, which processors find easier.
    """

    FEW = 4  # outputs

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fuse = True
        self.convolution = nn.ConvTranspose2d(inputs, outputs, 6, stride=2, padding=4)

    def forward(self, maps: Tensor) -> Tensor:
        maps, layer = framed(maps, 1), self.convolution
        if not self.fuse or layer.out_channels > self.FEW:
            enlarged: Tensor = layer(maps)
            return enlarged
        assert layer.bias is not None
        phases = functional.conv2d(maps, phase_kernel(layer.weight), layer.bias.repeat_interleave(4))
        return functional.pixel_shuffle(phases, 2)

    def set_patches(self, filters: Tensor, bias: Tensor) -> None:
        """Set to filters (C, O, 2, 2), the patch that each input draws, side by side."""
        weight = JITTER * torch.randn(self.convolution.weight.shape)
        weight[:, :, 2:4, 2:4] += filters
        set_layer(self.convolution, weight, bias)


def phase_kernel(weight: Tensor) -> Tensor:
    """Return the convolution (4 O, C, 3, 3) to the phases of a transposed convolution (C, O, 6, 6) of stride 2."""
    inputs, outputs = weight.shape[:2]
    # Index of the kernel: 2 (2 - position) + phase.
    by_phase = weight.view(inputs, outputs, 3, 2, 3, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    return by_phase.reshape(4 * outputs, inputs, 3, 3)


def residual_branch(channels: int) -> nn.Sequential:
    """Return two convolutions, each after normalisation over groups and SiLU, that give nearly zero at the start."""
    last = nn.Conv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(BRANCH_SCALE)
    return nn.Sequential(
        nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        nn.GroupNorm(GROUPS, channels), nn.SiLU(), last,
    )  # fmt: skip


def framed(maps: Tensor, margin: int) -> Tensor:
    """Return maps (N, C, H, W) with their borders repeated on every side."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        # The gradient of the padding does not compile (torch 2.13).
        rows, columns = (
            torch.arange(-margin, side + margin, device=maps.device).clamp(0, side - 1) for side in maps.shape[2:]
        )
        return maps[:, :, rows][:, :, :, columns]
    return functional.pad(maps, [margin] * 4, mode="replicate")


def use_fusion(model: nn.Module, fuse: bool) -> None:
    """Let the layers of a model that can be computed in a faster, equal way do so, or not."""
    for layer in model.modules():
        if isinstance(layer, (PooledConvolution, Enlargement)):
            layer.fuse = fuse


def patch_components(maps: Tensor, number: int, side: int = 2) -> tuple[Tensor, Tensor]:
    """Return the principal components of the patches, side by side, of maps (N, C, H, W), and the mean of the maps.

    The components (number, C, side, side) are orthonormal, of largest variance first; beyond the C · side² that
    exist they are zero. The mean is (C,).
    """
    mean = maps.mean((0, 2, 3))
    columns = functional.pixel_unshuffle(maps - mean[:, None, None], side).transpose(0, 1).flatten(1)
    vectors = torch.linalg.eigh((columns @ columns.T).double()).eigenvectors.flip(1).float()
    components = torch.zeros(number, len(columns))
    kept = min(components.shape)
    components[:kept] = vectors.T[:kept]
    return components.view(number, -1, side, side), mean


def layers_of(module: nn.Module, kind: type[Layer]) -> list[Layer]:
    """Return the layers of one kind inside a module, in order."""
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def paired(values: Tensor, dimension: int = 0) -> Tensor:
    """Return the values and their negatives along a dimension: the outputs, or inputs, of rectifier pairs."""
    return torch.cat([values, -values], dimension)


def set_layer(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, weight: Tensor, bias: Tensor) -> None:
    """Overwrite the weight and bias of a layer; raises RuntimeError when the shapes differ."""
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        layer.bias.copy_(bias)
