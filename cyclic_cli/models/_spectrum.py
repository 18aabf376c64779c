"""Fits the filters of linear convolutional autoencoders to the power spectrum of images.

The error of a linear chain of convolutions depends only on the power spectrum of the images, except at their borders.
Let S(f) be the spectrum, T the chain of encoder and decoder, and s its total stride. For a stationary process the
expected squared error per pixel is

    mean over the s² phases p of  ‖ (1 − T) S^½ δ_p ‖²,

where the image S^½ δ_p is the square root of the covariance, displaced by p. The s² small images S^½ δ_p therefore
replace the whole dataset. A quasi-Newton method (Liu and Nocedal, "On the limited memory BFGS method", 1989) then finds
overlapping filters in seconds, while stochastic gradient descent would not find them in many epochs.

The optimum for filters of unlimited length is known. Of every s² frequencies that alias, M maps keep the M strongest
(Tsatsanis and Giannakis, "Principal component filter banks", 1995).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.linear_algebra import eigh_of_tensor

SIDE = 32  # pixels: side of the windows whose spectra are averaged; larger for codes with a large stride
POSITIONS = 4  # minimum number of code positions along the side of a window
HISTORY = 50  # earlier steps that the quasi-Newton method stores


def covariance_roots(images: Tensor, stride: int) -> Tensor:
    """Return the square root of the covariance of images (N, C, H, W) at every phase, (stride² C, C, side, side).

    The side is a multiple of the stride, and the returned images are periodic. Take a chain of convolutions with this
    total stride and periodic borders. Its squared error summed over the returned images, divided by stride², is the
    expected squared error of one pixel (all channels) of the images.
    """
    side = min(max(SIDE, POSITIONS * stride), *images.shape[2:]) // stride * stride
    window = torch.hann_window(side, device=images.device).outer(torch.hann_window(side, device=images.device))
    mean = images.mean((0, 2, 3), keepdim=True)
    total, count = torch.zeros(()), 0
    for image in torch.split(images - mean, 8):
        crops = image.unfold(2, side, side // 2).unfold(3, side, side // 2).flatten(2, 3).transpose(1, 2).flatten(0, 1)
        waves = torch.fft.fft2((crops * window).double())
        total = total + torch.einsum("ncij,ndij->ijcd", waves, waves.conj())
        count += len(crops)
    values, vectors = eigh_of_tensor(total / (count * window.double().square().sum()))
    root = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mH
    kernels = torch.fft.ifft2(root.permute(3, 2, 0, 1)).real.float()
    return torch.cat([kernels.roll((down, right), (2, 3)) for down in range(stride) for right in range(stride)])


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int) -> None:
    """Minimise a loss over the parameters, which are changed in place.

    When the loss does not decrease, or is not a number, the parameters keep their initial values.
    """
    before = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    method = torch.optim.LBFGS(
        parameters, max_iter=iterations, history_size=HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip

    def closure() -> Tensor:
        method.zero_grad()
        value = loss()
        torch.autograd.backward(value)
        return value

    start = float(loss().detach())
    if start > 0:
        method.step(closure)  # type: ignore[no-untyped-call]
    better = start > 0 and float(loss().detach()) < start
    for parameter, old in zip(parameters, before, strict=True):
        parameter.requires_grad_(False)
        if not better:
            parameter.copy_(old)


def periodic(maps: Tensor, margin: int) -> Tensor:
    """Return maps (N, C, H, W) padded periodically by `margin` pixels on every side."""
    return functional.pad(maps, [margin] * 4, mode="circular")
