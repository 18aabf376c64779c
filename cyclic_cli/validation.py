"""How well a model reconstructs images of patients it was not trained on."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli.data import Samples
from cyclic_cli.distributed import Ranks

BATCH = 64


@torch.no_grad()
def validate(
    ranks: Ranks,
    module: nn.Module,
    data: Samples,
    is_stopped: Callable[[], bool],
    seen: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, float] | None:
    """MSE and PSNR (dB) over the image area, without letterbox: means over the images; empty where there are none.

    In float32, whatever the precision of the steps: these are the figures of `cyclic reconstruct`. Processes share the
    images. `is_stopped` is asked before every batch, by all processes; None when it says so. `seen` gets the first
    images (N, C, H, W) of this process and their reconstructions.
    """
    module.eval()
    count, device = len(data), ranks.fabric.device
    part = ranks.part(np.arange(count))
    errors: list[float] = []
    for first in range(0, ranks.largest_part(count), BATCH):
        if is_stopped():
            return None
        numbers = part[first : first + BATCH]
        shown = numbers if len(numbers) else np.arange(1)  # processes act together: for nothing, if need be
        image = data.images(shown).to(device)
        reconstruction = module(image)["reconstruction"].clamp(0, 1)
        if seen and not first:
            seen(image, reconstruction)
        squares = (reconstruction - image).square()
        for square, number in zip(squares, numbers, strict=False):
            rows, columns = data.area(int(number))
            errors.append(float(square[:, rows, columns].mean()))
    module.train()
    if not count:
        return {}
    errors = ranks.gathered(torch.tensor(errors, dtype=torch.float64, device=device), count).tolist()
    decibels = [-10 * math.log10(max(error, 1e-12)) for error in errors]
    return {"mse": sum(errors) / len(errors), "psnr": sum(decibels) / len(decibels)}
