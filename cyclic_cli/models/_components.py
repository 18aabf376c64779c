"""Principal components of training images, from which the architectures are initialised.

Every architecture is initialised as (nearly) the best linear code of the training images, found in one pass over them.
Training continues from there.

- `StreamingComponents` finds the principal components of a stream of vectors by an incremental singular value
  decomposition.
- The components of few images are noisy, so two measures regularise them. `with_displaced` adds two displaced copies
  of every image. `SmoothPrior` adds pseudo-observations: low-frequency cosine images with the spectrum of the data.
  They act like a conjugate (inverse-Wishart) prior of the covariance.
- `patch_components` gives the filters of strided convolutions: the principal components of image patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.linear_algebra import eigh_of_tensor

SAMPLE = 64 * 224 * 224  # pixels (of one channel) of the images from which convolutions are fitted
DISPLACEMENT = 1 / 28  # standard deviation of the displacement of the copies, as a fraction of the image side
CAPACITY = 512  # directions that the streaming decomposition keeps between merges
PRIOR_IMAGES = 200.0  # number of images that the smooth prior counts as
PRIOR_FREQUENCIES = 32  # cosine frequencies per axis in the smooth prior
CHUNKS = 16  # the images of the smooth prior pass through a model in this many chunks, to save memory


def take_sample(images: Iterable[Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
    """Return the first images of a stream of batches, and the whole stream including them.

    The sample (N, C, H, W) has as many images as together hold `SAMPLE` pixels. The stream is read only once: the
    batches of the sample are kept and yielded again. Raises ValueError when the stream is empty.
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
    """Return images (N, C, H, W) and two copies of them displaced by opposite random shifts, (3N, C, H, W)."""
    height, width = images.shape[2:]
    down, right = torch.randn(2).mul(DISPLACEMENT).tolist()
    shift = (round(down * height), round(right * width))
    opposite = (-shift[0], -shift[1])
    return torch.cat([images, images.roll(shift, (2, 3)), images.roll(opposite, (2, 3))])


class StreamingComponents:
    """Principal components of a stream of vectors, with memory for about 2 `capacity` vectors.

    Centred vectors are collected as rows. When there are more than 2 `capacity` rows, they are merged into the
    `capacity` directions of largest variance, so the result is exact for shorter streams. Each batch adds one row that
    corrects for the change of the mean (Ross et al., "Incremental Learning for Robust Visual Tracking", IJCV 2008).
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.count = 0
        self.mean = torch.zeros(0)
        self.rows: list[Tensor] = []

    def update(self, vectors: Tensor) -> None:
        """Add a batch of vectors (N, P)."""
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

        `prior` (K, P) holds pseudo-observations as differences from the mean. Where the vectors span fewer directions,
        the remaining ones are random.
        """
        rows = torch.cat([*self.rows, prior] if prior is not None else self.rows)
        directions, scatter = principal_directions(rows, number)
        variances = torch.zeros(number)
        observations = self.count + (PRIOR_IMAGES if prior is not None else 0.0)
        variances[: len(scatter)] = scatter / observations
        missing = torch.randn(number - len(directions), directions.shape[1])
        orthonormal = torch.linalg.qr(torch.cat([directions, missing]).T).Q.T
        orthonormal[: len(directions)] = directions  # the QR factorisation may have flipped their signs
        return orthonormal, variances


def principal_directions(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return up to `number` principal directions (K, P) of rows (N, P), and the sum of squares along each.

    They are computed from the eigenvectors of the smaller Gram matrix, N × N or P × P. Directions that the rows do not
    span are left out. Their eigenvalues are not exactly zero, because products in float32 have relative errors of
    about 1e-7.
    """
    by_columns = rows.shape[1] < len(rows)
    values, vectors = eigh_of_tensor((rows.T @ rows if by_columns else rows @ rows.T).double())
    values, vectors = values.flip(0)[:number], vectors.flip(1)[:, :number]
    spanned = int((values > values[0].clamp(min=1e-12) * 1e-6).sum())
    values, vectors = values[:spanned].float(), vectors[:, :spanned].float()
    return (vectors.T if by_columns else functional.normalize(vectors.T @ rows, dim=1)), values


def image_components(
    images: Iterable[Tensor], image_shape: tuple[int, int, int], number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the principal components of images, their mean, and the scale of a code.

    Args:
        images: Batches (N, C, H, W).
        image_shape: (C, H, W).
        number: Number of components.

    Returns:
        directions: (number, C · H · W), the components. Displaced copies and the smooth prior regularise them.
        mean: (C · H · W,).
        scale: (). A code divided by it has a root mean square of about one.

    Raises:
        ValueError: There are no images.
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
    """Return one common scale () for the dimensions of a code with these variances.

    A common scale keeps the distances between codes proportional to the distances between the images.
    """
    return variances.mean().sqrt().clamp(min=1e-3)


class SmoothPrior:
    """A prior for the covariance of images, as pseudo-observations: low-frequency cosines with the data's spectrum."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.channels, height, width = image_shape
        self.vertical, self.horizontal = cosine_basis(height), cosine_basis(width)
        self.count = 0
        self.total = torch.zeros(self.channels, len(self.vertical), len(self.horizontal), dtype=torch.float64)
        self.squares = torch.zeros_like(self.total)

    def update(self, images: Tensor) -> None:
        """Add the spectrum of a batch of images (N, C, H, W)."""
        spectrum = (self.vertical @ images @ self.horizontal.T).double()
        self.count += len(images)
        self.total += spectrum.sum(0)
        self.squares += spectrum.square().sum(0)

    def images(self) -> Tensor:
        """Return (K, C, H, W): one cosine image per channel and frequency. Together they count as `PRIOR_IMAGES`."""
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
    """Return the orthonormal cosines (DCT-II) of the lowest frequencies over `length` pixels, one per row."""
    frequency = torch.arange(min(PRIOR_FREQUENCIES, length), dtype=torch.float64)[:, None]
    basis = torch.cos(torch.pi * (torch.arange(length) + 0.5) * frequency / length)
    return functional.normalize(basis, dim=1).float()


def patch_components(maps: Tensor, number: int, side: int = 2) -> tuple[Tensor, Tensor]:
    """Return the principal components of the non-overlapping patches of maps (N, C, H, W), and the mean of the maps.

    The components (number, C, side, side) are orthonormal and sorted by variance, largest first. At most C · side²
    components exist; the others are zero. The mean is (C,).
    """
    mean = maps.mean((0, 2, 3))
    columns = functional.pixel_unshuffle(maps - mean[:, None, None], side).transpose(0, 1).flatten(1)
    vectors = eigh_of_tensor((columns @ columns.T).double())[1].flip(1).float()
    components = torch.zeros(number, len(columns))
    kept = min(components.shape)
    components[:kept] = vectors.T[:kept]
    return components.view(number, -1, side, side), mean
