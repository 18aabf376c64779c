"""Helpers of the objectives that compare modalities: the paired and the unpaired samples of a batch, and means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.models._joint import paired_places


class Pairs(NamedTuple):
    """The P paired samples of two modalities: their embeddings (P, D), and which of them have equal content, (P, P)."""

    first: Tensor
    second: Tensor
    same_first: Tensor
    same_second: Tensor


def pairs(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Iterator[Pairs]:
    """Yield the paired samples of every two modalities of a batch that have any."""
    embeddings = outputs["embedding"]
    for a, b in combinations(embeddings, 2):
        in_a, in_b = paired_places(batch["sample"][a], batch["sample"][b])
        if len(in_a):
            contents = batch["content"][a][in_a], batch["content"][b][in_b]
            same = [content[:, None] == content[None, :] for content in contents]
            yield Pairs(embeddings[a][in_a].float(), embeddings[b][in_b].float(), *same)


def unpaired(
    outputs: Mapping[str, Any], batch: Mapping[str, Any], output: str = "embedding"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an output, (N, D) and (M, D), of the unpaired samples of every two modalities of a batch.

    Modalities with fewer than two unpaired samples are left out.
    """
    embeddings = {
        name: embedding[batch["sample"][name] == UNPAIRED].float() for name, embedding in outputs[output].items()
    }
    for a, b in combinations(embeddings, 2):
        if min(len(embeddings[a]), len(embeddings[b])) > 1:
            yield embeddings[a], embeddings[b]


def mean(losses: Iterable[Tensor], outputs: Mapping[str, Any]) -> Tensor:
    """Return the mean of scalars. Without any, return a zero with a gradient, which data-parallel training needs."""
    terms = list(losses)
    if terms:
        return torch.stack(terms).mean()
    return 0 * torch.stack([embedding.float().sum() for embedding in outputs["embedding"].values()]).sum()


def mean_errors(errors: Mapping[Any, Tensor], outputs: Mapping[str, Any]) -> Tensor:
    """Return the mean over modalities, or over pairs of modalities, of the mean of their errors (N,)."""
    return mean([each.float().mean() for each in errors.values() if len(each)], outputs)
