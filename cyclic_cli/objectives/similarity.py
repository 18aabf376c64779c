"""Structural similarity: the reconstruction should have the local structure of the image, measured by 1 − SSIM.

    loss = 1 / N Σ_n (1 − mean over the inner positions of SSIM_n)

    SSIM = (2 μx μy + C1) (2 σxy + C2) / ((μx² + μy² + C1) (σx² + σy² + C2)),   C1 = 0.01², C2 = 0.03²

where μ, σ² and σxy are the mean, variance and covariance under a Gaussian window of 11×11 pixels with σ = 1.5, for
images in [0, 1] (Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP
13(4), 2004). Inner positions are those whose window lies completely inside the image. `metrics.reconstruction.ssim` has
the same formula. `cyclic reconstruct` evaluates it on clamped images without their letterbox; the loss includes the
letterbox and does not clamp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cyclic_cli.metrics.reconstruction import SIGMA, WINDOW
from cyclic_cli.objectives._pixels import compared

NEEDS = ("reconstruction",)
PER_SAMPLE = True
JOINT = False

C1, C2 = 0.01**2, 0.03**2


def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Return the scalar 1 − SSIM, from 0 to 2, of outputs["reconstruction"] and batch["image"], both (N, C, H, W).

    Sides are at least 11 pixels. Raises ValueError when the shapes differ.
    """
    reconstruction, image = compared(outputs, batch)
    # Variances are small differences of large numbers, so they are computed in single precision or better.
    with torch.autocast(image.device.type, enabled=False):
        x, y = (value.to(torch.promote_types(value.dtype, torch.float32)) for value in (reconstruction, image))
        rows, columns = _blurring(x.shape[-2], x), _blurring(x.shape[-1], x)
        mean_x, mean_y, squares, product = (
            rows @ value @ columns.T for value in (x, y, x.square() + y.square(), x * y)
        )  # (N, C, H - 10, W - 10)
        mean_product, mean_squares = mean_x * mean_y, mean_x.square() + mean_y.square()
        numerator = (2 * mean_product + C1) * (2 * (product - mean_product) + C2)
        denominator = (mean_squares + C1) * (squares - mean_squares + C2)
        return 1 - (numerator / denominator).mean()


def _blurring(side: int, like: Tensor) -> Tensor:
    """Return the Gaussian window along a side of an image as a band matrix (side - 10, side).

    On a CPU a product with this matrix takes a tenth of the time of a convolution with one channel. On a GPU it keeps
    float32 precision, while convolutions round to TF32.
    """
    position = torch.arange(side, dtype=like.dtype, device=like.device)
    centre = position[WINDOW // 2 : side - WINDOW // 2, None]
    distance = position - centre
    weights = torch.exp(-distance.square() / (2 * SIGMA**2)) * (distance.abs() <= WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)
