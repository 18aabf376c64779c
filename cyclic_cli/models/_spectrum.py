"""Linear codes fitted to the power spectrum of images.

Up to their borders, what a chain of convolutions of total stride s loses of images depends on their spectrum alone.
With S(f) the spectrum and T the chain, there and back, the expected squared error per pixel of a stationary process is

    mean over the s² phases p of  ‖ (1 − T) S^½ δ_p ‖²,

where S^½ δ_p is the square root of the covariance, an image, displaced by p: s² small images stand for all. So a
quasi-Newton method (Liu and Nocedal, "On the limited memory BFGS method", 1989) finds overlapping filters in seconds
that stochastic gradients would not find in many epochs. Without limits on their length the best filters of M maps
keep, of each s² frequencies that alias, the M strongest (Tsatsanis and Giannakis, "Principal component filter banks",
1995).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 32  # of the windows whose spectra are averaged, pixels; longer where the code is coarse
POSITIONS = 4  # of the code along such a side, at least
HISTORY = 50  # steps that the quasi-Newton method remembers


def covariance_roots(images: Tensor, stride: int) -> Tensor:
    """Return the square root of the covariance of images (N, C, H, W) at every phase: (stride² C, C, side, side).

    The side is a multiple of the stride. The images are periodic; to a chain of convolutions of
    that stride with periodic borders, their summed squared error is that of one pixel of such images, times
    stride² (the phases).
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
    values, vectors = torch.linalg.eigh(total / (count * window.double().square().sum()))
    root = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mH
    kernels = torch.fft.ifft2(root.permute(3, 2, 0, 1)).real.float()
    return torch.cat([kernels.roll((down, right), (2, 3)) for down in range(stride) for right in range(stride)])


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int) -> None:
    """Lower a loss of the parameters, which are changed in place; where it leads nowhere they stay as they were."""
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
    """Return maps (N, C, H, W) continued periodically on every side."""
    return functional.pad(maps, [margin] * 4, mode="circular")
