"""What the objectives share that compare modalities: mean values, and the pairs of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.models._joint import linked


class Pairs(NamedTuple):
    """Samples with both of two modalities: embeddings (P, D) each, and which contents equal which, (P, P) bool."""

    first: Tensor
    second: Tensor
    same_first: Tensor
    same_second: Tensor


def pairs(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Iterator[Pairs]:
    """The paired samples of each two modalities of a batch, those without any left out."""
    embeddings = outputs["embedding"]
    for a, b in combinations(embeddings, 2):
        of_a, of_b = linked(batch["sample"][a], batch["sample"][b])
        if len(of_a):
            contents = batch["content"][a][of_a], batch["content"][b][of_b]
            same = [content[:, None] == content[None, :] for content in contents]
            yield Pairs(embeddings[a][of_a].float(), embeddings[b][of_b].float(), *same)


def unpaired(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The embeddings (N, D) and (M, D) of the values alone of each two modalities of a batch that have two or more."""
    without = {
        name: embedding[batch["sample"][name] == UNPAIRED].float() for name, embedding in outputs["embedding"].items()
    }
    for a, b in combinations(without, 2):
        if min(len(without[a]), len(without[b])) > 1:
            yield without[a], without[b]


def mean(losses: Iterable[Tensor], outputs: Mapping[str, Any]) -> Tensor:
    """The mean of scalars; a zero that a gradient reaches where there are none."""
    several = list(losses)
    if several:
        return torch.stack(several).mean()
    return 0 * torch.stack([embedding.float().sum() for embedding in outputs["embedding"].values()]).sum()


def mean_errors(errors: Mapping[Any, Tensor], outputs: Mapping[str, Any]) -> Tensor:
    """The mean over modalities, or over pairs of them, of the mean over samples of errors (N,)."""
    return mean([some.float().mean() for some in errors.values() if len(some)], outputs)
