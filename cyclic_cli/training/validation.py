"""How well a model reconstructs, or aligns, what it was not trained on: other patients' images and reports."""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.data.samples import Samples
from cyclic_cli.distributed import Ranks
from cyclic_cli.metrics.retrieval import first_hits

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
    errors: list[float] = []
    for numbers, shown in _batches(ranks, count):
        if is_stopped():
            return None
        image = data.images(shown).to(device)
        reconstruction = module(image)["reconstruction"].clamp(0, 1)
        if seen and not errors:
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


def _batches(ranks: Ranks, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's part of so many values, in batches of numbers (N,), and what is to be computed for each.

    As many batches in every process, since they act together: where there are no numbers left, for nothing.
    """
    part = ranks.part(np.arange(count))
    for first in range(0, ranks.largest_part(count), BATCH):
        numbers = part[first : first + BATCH]
        yield numbers, numbers if len(numbers) else np.arange(1)


def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Numbers (N,), equal where samples with the contents a (N,) and b (N,) are one by either, or by way of others."""
    contents = [np.unique(of, return_inverse=True)[1] for of in (a, b)]
    groups, before = np.arange(len(a)), np.empty(0, int)
    while not np.array_equal(groups, before):
        before = groups
        for content in contents:
            least = np.full(len(a), len(a))
            np.minimum.at(least, content, groups)
            groups = least[content]
    return groups


@torch.no_grad()
def validate_retrieval(
    ranks: Ranks, module: Any, samples: Mapping[str, tuple[Any, np.ndarray]], is_stopped: Callable[[], bool]
) -> dict[str, float] | None:
    """How well the modalities of samples find one another; equal reports, or images, count as one.

    Args:
        ranks: The processes, which share the values.
        module: A joint model.
        samples: By modality, its `Samples`, and for each sample (S,) the number of its value, or UNPAIRED.
        is_stopped: Asked before every batch, by all processes.

    Returns:
        `recall_at_10`, from 0 to 1, and `rank`, the geometric mean of the ranks of the best hits, from 1: means over
        the ordered pairs of modalities; empty where no sample has two; None when `is_stopped` says so.
    """
    module.eval()
    embeddings: dict[str, np.ndarray] = {}
    for name, (values, _) in samples.items():
        parts: list[Tensor] = []
        for numbers, shown in _batches(ranks, len(values)):
            if is_stopped():
                return None
            value = values.load(shown).to(ranks.fabric.device)
            parts.append(module.embed(name, value)[: len(numbers)].float())
        if parts:
            embeddings[name] = ranks.gathered(torch.cat(parts), len(values)).cpu().numpy()
    module.train()
    found = []
    for a, b in permutations(embeddings, 2):
        of_a, of_b = samples[a][1], samples[b][1]
        both = (of_a != UNPAIRED) & (of_b != UNPAIRED)
        if both.any():
            groups = joined(samples[a][0].keys[of_a[both]], samples[b][0].keys[of_b[both]])
            found.append(first_hits(embeddings[a][of_a[both]], embeddings[b][of_b[both]], groups, groups))
    if not found:
        return {}
    return {
        "recall_at_10": float(np.mean([np.mean(ranking <= 10) for ranking in found])),
        "rank": float(np.exp(np.mean([np.mean(np.log(ranking)) for ranking in found]))),
    }
