"""Shared by the model files: data-dependent starts in closed form, and the check of image sizes.

Every model starts as (nearly) the best linear code of the training images, found in one pass over them,
and training continues from there. Three ideas make that possible:

- Principal components of a stream: `StreamingComponents`, an incremental singular value decomposition.
- Few images give noisy components. Every image counts with two displaced copies (`with_displaced`), and
  `SmoothPrior` adds pseudo-observations, low-frequency cosine images with the spectrum of the data, as a
  conjugate (inverse-Wishart) prior of the covariance would.
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
RIDGE = 1e-6  # ridge of the least-squares fits, relative to the mean second moment of their inputs
RIDGE_POSITIONS = 0.1  # added to it: this over the number of fitted positions, which counts when they are few
JITTER = 1e-5  # random part of a fitted filter, so that no filter is ever exactly zero and without gradient


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

    Through the eigenvectors of the N × N products of the rows, hence for rows longer than many. Directions
    that the rows do not span are left out.
    """
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    values, vectors = values.flip(0)[:number], vectors.flip(1)[:, :number]
    spanned = int((values > values[0].clamp(min=1e-12) * 1e-7).sum())
    values, vectors = values[:spanned].float(), vectors[:, :spanned].float()
    directions = functional.normalize(vectors.T @ rows, dim=1)
    return directions, values


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


def least_squares(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Fit targets (N, Q, h, w) by a linear map of inputs (N, P, h, w) at each position, without intercept.

    Returns the weight (Q, P) and the second moments of the inputs (P, P), in float64. A slight ridge keeps
    the weight finite where the inputs do not vary.
    """
    rows, columns = targets.transpose(0, 1).flatten(1), inputs.transpose(0, 1).flatten(1)
    positions = columns.shape[1]
    moments = (columns @ columns.T).double() / positions
    cross = (rows @ columns.T).double() / positions
    ridge = (RIDGE + RIDGE_POSITIONS / positions) * moments.diagonal().mean().clamp(min=1e-6)
    weight = torch.linalg.solve(moments + ridge * torch.eye(len(moments)), cross, left=False)
    return weight, moments


def fit_encoding(maps: Tensor, targets: Tensor, channels: int, kernel: int = 3) -> tuple[Tensor, Tensor]:
    """Fit a kernel × kernel (odd) convolution, followed by 2×2 average pooling, to keep most of the targets.

    Reduced-rank regression (Izenman, 1975): the pooled neighbourhoods of `maps` (N, C, 2h, 2w) predict
    `targets` (N, Q, h, w), and the principal directions of the prediction are the new channels. Returns the weight
    (channels, C, kernel, kernel) and the bias (channels,) that centres each channel over the maps.
    """
    count, inputs, height, width = maps.shape
    neighbourhoods = functional.unfold(framed(maps, kernel // 2), kernel)
    neighbourhoods = neighbourhoods.view(count, inputs * kernel**2, height, width)
    pooled = functional.avg_pool2d(neighbourhoods, 2)
    centre = pooled.mean((0, 2, 3))
    regression, moments = least_squares(pooled - centre[:, None, None], centred(targets))
    directions = torch.linalg.eigh(regression @ moments @ regression.T).eigenvectors.flip(1)[:, :channels]
    weight = (directions.T @ regression).float()
    weight = weight + JITTER * torch.randn(weight.shape)
    bias = -weight @ centre
    return weight.view(channels, inputs, kernel, kernel), bias


def framed(maps: Tensor, margin: int) -> Tensor:
    """Return maps (N, C, H, W) with their borders repeated on every side."""
    return functional.pad(maps, [margin] * 4, mode="replicate")


def encoding(inputs: int, outputs: int, kernel: int = 3) -> list[nn.Module]:
    """Return the layers that halve the sides of maps: convolution, ReLU, average pooling."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="replicate")
    return [convolution, nn.ReLU(), nn.AvgPool2d(2)]


def decoding(inputs: int, outputs: int) -> list[nn.Module]:
    """Return the layers that double the sides of maps: a frame of one, and a transposed convolution."""
    return [nn.ReplicationPad2d(1), nn.ConvTranspose2d(inputs, outputs, 6, stride=2, padding=4)]


def encode_linearly(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return what `encoding` makes of maps (N, C, 2h, 2w) without its rectifier: (N, O, h, w)."""
    response = functional.conv2d(framed(maps, weight.shape[2] // 2), weight, bias)
    return functional.avg_pool2d(response, 2)


def decode_linearly(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return what `decoding` makes of maps (N, C, h, w): (N, O, 2h, 2w)."""
    return functional.conv_transpose2d(framed(maps, 1), weight, bias, stride=2, padding=4)


def patches(images: Tensor, stride: int, margin: int = 0) -> Tensor:
    """Return square patches of images (N, C, H, W), one every `stride` pixels, with a margin on each side.

    The result is (N, C (stride + 2 margin)², H / stride, W / stride).
    """
    count, _, height, width = images.shape
    columns = functional.unfold(images, stride + 2 * margin, padding=margin, stride=stride)
    return columns.view(count, -1, height // stride, width // stride)


def fit_decoding(maps: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a transposed convolution of stride 2 by least squares: maps (N, C, h, w), targets (N, O, 2h, 2w).

    Returns the weight (C, O, 6, 6), for maps framed by 1 and a padding of 4, and the bias (O,):
    each target sees 3×3 positions.
    """
    count, inputs, height, width = maps.shape
    outputs = targets.shape[1]
    neighbourhoods = functional.unfold(framed(maps, 1), 3).view(count, inputs * 9, height, width)
    phases = functional.pixel_unshuffle(targets, 2)  # (N, 4 O, h, w)
    centre = neighbourhoods.mean((0, 2, 3))
    regression, _ = least_squares(neighbourhoods - centre[:, None, None], centred(phases))
    # Each of the 4 phases would have an intercept of its own; a convolution has one, so fit around that.
    intercepts = phases.mean((0, 2, 3)) - regression.float() @ centre
    bias = intercepts.view(outputs, 4).mean(1)
    regression, _ = least_squares(neighbourhoods, phases - bias.repeat_interleave(4)[:, None, None])
    # (O, 2, 2, C, 3, 3): phase of the target, position of the input; kernel index = 2 (2 - position) + phase
    kernel = regression.float().view(outputs, 2, 2, inputs, 3, 3).flip(4, 5).permute(3, 0, 4, 1, 5, 2)
    weight = kernel.reshape(inputs, outputs, 6, 6)
    return weight + JITTER * torch.randn(weight.shape), bias


def centred(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W) less the mean of each channel over samples and positions."""
    return maps - maps.mean((0, 2, 3), keepdim=True)


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
