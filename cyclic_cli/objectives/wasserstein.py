"""Wasserstein: the embeddings of values alone are spread alike in all modalities, seen along random lines.

    loss = mean over directions u of ∫ (F_a,u⁻¹(q) − F_b,u⁻¹(q))² dq        over q from 0 to 1

the squared 2-Wasserstein distance between the projections a_i·u and b_j·u of the embeddings of each two modalities
that have no partner in the batch, by the quantiles of both (sliced Wasserstein distance: Rabin et al., SSVM 2011;
Bonneel et al., JMIV 2015). The directions are others in every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, directions: int = 64) -> Tensor:
    """Return the scalar loss of outputs["embedding"], (N, D) of unit norm by modality, along random `directions`."""

    def of(a: Tensor, b: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(batch["step"])
        along = functional.normalize(torch.randn(a.shape[1], directions, generator=generator), dim=0).to(a)
        steps = [torch.arange(1, len(cloud) + 1, dtype=torch.float64) / len(cloud) for cloud in (a, b)]  # of each F⁻¹
        ends = torch.cat(steps).sort().values
        widths = ends.diff(prepend=ends.new_zeros(1))
        middles = ends - widths / 2  # between two steps both F⁻¹ are constant
        at_a, at_b = ((middles * len(cloud)).long().clamp(max=len(cloud) - 1).to(a.device) for cloud in (a, b))
        gaps = (a @ along).sort(0).values[at_a] - (b @ along).sort(0).values[at_b]
        return (widths.to(a)[:, None] * gaps.square()).sum(0).mean()

    return mean([of(a, b) for a, b in unpaired(outputs, batch)], outputs)
