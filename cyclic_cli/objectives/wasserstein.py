"""Sliced Wasserstein distance: the embeddings of all modalities should have the same distribution.

    loss = mean over directions u of ∫ (F_a,u⁻¹(q) − F_b,u⁻¹(q))² dq        over q from 0 to 1

where F_a,u⁻¹ is the quantile function of the projections a_i·u. The embeddings a_i and b_j are those of the unpaired
samples of every two modalities. The integral is the squared 2-Wasserstein distance between the two sets of projections
(Rabin et al., SSVM 2011; Bonneel et al., JMIV 2015). Every step draws new random directions.
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
    """Return the scalar loss, from 0, of L2-normalised outputs["embedding"], (N, D) by modality.

    `directions` is the number of random directions; batch["step"] is their seed.
    """

    def sliced_distance(a: Tensor, b: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(batch["step"])
        along = functional.normalize(torch.randn(a.shape[1], directions, generator=generator), dim=0).to(a)
        # Both quantile functions are constant between the places q of their steps, so the integral is a finite sum.
        steps = [torch.arange(1, len(each) + 1, dtype=torch.float64) / len(each) for each in (a, b)]
        ends = torch.cat(steps).sort().values
        widths = ends.diff(prepend=ends.new_zeros(1))
        middles = ends - widths / 2
        at_a, at_b = ((middles * len(each)).long().clamp(max=len(each) - 1).to(a.device) for each in (a, b))
        gaps = (a @ along).sort(0).values[at_a] - (b @ along).sort(0).values[at_b]
        return (widths.to(a)[:, None] * gaps.square()).sum(0).mean()

    return mean([sliced_distance(a, b) for a, b in unpaired(outputs, batch)], outputs)
