"""Measures how well a model reconstructs and aligns images and reports of patients it was not trained on."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.data.samples import Samples
from cyclic_cli.distributed import Ranks
from cyclic_cli.metrics.retrieval import first_hits
from cyclic_cli.training.learner import ShowImages

BATCH = 64


@torch.no_grad()
def validate(
    ranks: Ranks,
    module: nn.Module,
    data: Samples,
    is_stopped: Callable[[], bool],
    show: ShowImages | None = None,
) -> dict[str, float] | None:
    """MSE, and PSNR in dB, over the image area without the letterbox.

    They are computed in float32, whatever the precision of the steps, so they equal those of `cyclic reconstruct`.

    Args:
        ranks: The processes, which share the images.
        module: Gives `reconstruction` for images (N, C, H, W).
        data: The images.
        is_stopped: All processes call it before every batch.
        show: Called with the first images of this process and their reconstructions.

    Returns:
        `mse` and `psnr`, means over the images; empty without images; None when `is_stopped` returned True.
    """
    module.eval()
    count, device = len(data), ranks.fabric.device
    errors: list[float] = []
    for numbers, loaded in in_batches(ranks, count):
        if is_stopped():
            return None
        image = data.images(loaded).to(device)
        reconstruction = module(image)["reconstruction"].clamp(0, 1)
        if show and not errors:
            show(image, reconstruction)
        squares = (reconstruction - image).square()
        for square, number in zip(squares, numbers, strict=False):
            rows, columns = data.area(int(number))
            errors.append(float(square[:, rows, columns].mean()))
    module.train()
    if not count:
        return {}
    return _means(ranks.gathered(torch.tensor(errors, dtype=torch.float64, device=device), count).tolist())


@torch.no_grad()
def errors_of_drawings(
    decode: Callable[[Tensor], Tensor], codes: np.ndarray, data: Samples, device: torch.device
) -> dict[str, float]:
    """`mse` and `psnr` as in `validate`, of images that are decoded from codes (N, code) of the samples."""
    errors: list[float] = []
    for first in range(0, len(data), BATCH):
        numbers = np.arange(first, min(first + BATCH, len(data)))
        decoded = decode(torch.from_numpy(np.asarray(codes[numbers])).to(device)).clamp(0, 1).cpu()
        for square, number in zip((decoded - data.images(numbers)).square(), numbers, strict=True):
            rows, columns = data.area(int(number))
            errors.append(float(square[:, rows, columns].mean()))
    return _means(errors)


def _means(errors: Sequence[float]) -> dict[str, float]:
    """The mean of mean squared errors, and of their PSNR in dB; empty without errors."""
    if not errors:
        return {}
    decibels = [-10 * math.log10(max(error, 1e-12)) for error in errors]
    return {"mse": sum(errors) / len(errors), "psnr": sum(decibels) / len(decibels)}


def in_batches(ranks: Ranks, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's part of `count` samples in batches: their numbers (N,), and the numbers (M,) to load.

    Every process has the same number of batches, because they communicate in each. A process
    with no samples left loads sample 0 and discards the result.
    """
    part = ranks.part(np.arange(count))
    for first in range(0, ranks.largest_part(count), BATCH):
        numbers = part[first : first + BATCH]
        yield numbers, numbers if len(numbers) else np.arange(1)


def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Group numbers (N,) of samples. Samples with equal `a` (N,) or equal `b` (N,) share a group, also indirectly."""
    contents = [np.unique(keys, return_inverse=True)[1] for keys in (a, b)]
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
    """Retrieval of each sample's partner between modalities. Any sample with an equal image or report is a hit.

    Args:
        ranks: The processes, which share the samples.
        module: An image–text model.
        samples: By modality, its `Samples`, and for each sample (S,) the number of its item, or UNPAIRED.
        is_stopped: All processes call it before every batch.

    Returns:
        Means over the ordered pairs of modalities: `recall_at_10`, from 0 to 1, and `rank`, the geometric mean rank of
        the best hit, from 1. Empty where no sample has two modalities; None when `is_stopped` returned True.
    """
    module.eval()
    embeddings: dict[str, np.ndarray] = {}
    for name, (items, _) in samples.items():
        parts: list[Tensor] = []
        for numbers, loaded in in_batches(ranks, len(items)):
            if is_stopped():
                return None
            item = items.load(loaded).to(ranks.fabric.device)
            parts.append(module.embed(name, item)[: len(numbers)].float())
        if parts:
            embeddings[name] = ranks.gathered(torch.cat(parts), len(items)).cpu().numpy()
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
