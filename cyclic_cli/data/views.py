"""Views of an image for self-supervised training: random crops of the image, each with other grey levels.

Two views of an image differ as two radiographs of a patient may differ: in the part that is shown, a small rotation,
exposure, sharpness and noise. They are not mirrored unless asked, because the side of a finding matters.

The random numbers of a view depend on (seed, epoch, sample key, number of the view) alone, as in `samples`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.data.samples import sample_noise
from cyclic_cli.errors import UsageError

UNIFORM, NORMAL = 6, 5  # random numbers of a view by their distribution, besides those of its noise
RATIO = 0.05  # standard deviation of the logarithm of the aspect ratio
TURN = 0.1  # of the rotation, in radians
EXPONENT = 0.25  # of the logarithm of the exponent of the grey levels (gamma)
CONTRAST = 0.2  # of the logarithm of the factor on deviations from the mean grey level
BRIGHTNESS = 0.05  # of a constant added to the grey levels
NOISE = 0.03  # largest standard deviation of the noise of a pixel
BLUR = 1 / 112  # largest standard deviation of the blur, as a share of the side


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Settings of the views: `modalities.image` of a run."""

    crop: float = 0.4  # smallest share of the image's area that a view shows
    flips: bool = False  # whether half of the views are mirrored

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UsageError(f"modalities.image.crop cannot be {self.crop!r}.", "Give a share above 0 and at most 1.")


def view(
    images: Tensor, keys: np.ndarray, config: ViewConfig, strength: float, seed: int, epoch: int, number: int
) -> Tensor:
    """Return a random view (N, C, H, W) of each image (N, C, H, W), both in [0, 1].

    Args:
        images: The images.
        keys: Their sample keys (N,) uint64.
        config: The settings of the views.
        strength: Factor on all changes but the crop and the mirroring; with 0 there are no others.
        seed: Of the run.
        epoch: The number of the epoch.
        number: The number of the view. Views of the same image with different numbers are independent.
    """
    draws = sample_noise(keys, UNIFORM + NORMAL, seed, epoch, f"view {number}").T
    uniform, normal = torch.special.ndtr(draws[:UNIFORM]), strength * draws[UNIFORM:]
    area, down, right, flip, blur, noise = uniform
    ratio, turn, *exposure = normal
    mirrored = (flip < 0.5) & config.flips
    views = _cropped(images, config.crop + (1 - config.crop) * area, ratio, turn, down, right, mirrored)
    if not strength:
        return views.clamp_(0, 1)
    views = _exposed(views, *exposure)
    views += _by_image(min(1.0, strength) * blur) * (_blurred(views) - views)
    pixels = sample_noise(keys, views[0].numel(), seed, epoch, f"noise of view {number}").view_as(views)
    return views.add_(_by_image(strength * NOISE * noise) * pixels).clamp_(0, 1)


def _cropped(
    images: Tensor, area: Tensor, ratio: Tensor, turn: Tensor, down: Tensor, right: Tensor, mirrored: Tensor
) -> Tensor:
    """The part of each image (N, C, H, W) in a rectangle of a share `area` (N,) of it, resized to the whole size.

    `down` and `right` (N,), from 0 to 1, place the rectangle inside the image; it is turned about its centre. Pixels
    from outside repeat the border.
    """
    stretch = (0.5 * RATIO * ratio).exp()
    height, width = area.sqrt() * stretch, area.sqrt() / stretch
    centre = [(1 - side).clamp(min=0) * (2 * place - 1) for side, place in ((width, right), (height, down))]
    cosine, sine = (TURN * turn).cos(), (TURN * turn).sin()
    across = torch.where(mirrored, -width, width)
    rows = (
        torch.stack([across * cosine, -height * sine, centre[0]], 1),
        torch.stack([across * sine, height * cosine, centre[1]], 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _exposed(images: Tensor, exponent: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Images (N, C, H, W) with other grey levels, changed as the normal numbers (N,) say."""
    levels: Tensor = images.clamp(1e-4, 1) ** _by_image((EXPONENT * exponent).exp())
    mean = levels.mean((1, 2, 3), keepdim=True)
    return (levels - mean) * _by_image((CONTRAST * contrast).exp()) + mean + _by_image(BRIGHTNESS * brightness)


def _by_image(values: Tensor) -> Tensor:
    """Values (N,) of images in a shape that broadcasts over the images (N, C, H, W)."""
    return values[:, None, None, None]


def _blurred(images: Tensor) -> Tensor:
    """Images (N, C, H, W) after a Gaussian blur."""
    deviation = BLUR * images.shape[-1]
    margin = max(1, round(2 * deviation))
    weights = torch.exp(-torch.arange(-margin, margin + 1.0).square() / (2 * deviation**2))
    weights = (weights / weights.sum()).to(images)
    flat = functional.pad(images.flatten(0, 1)[:, None], [margin] * 4, mode="replicate")
    flat = functional.conv2d(functional.conv2d(flat, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return flat.view_as(images)
