"""Wasserstein: the embeddings of values alone are spread alike in all modalities, seen along random lines.

    loss = mean over directions u of 1 / Q Σ_q (F_a,u⁻¹(q) − F_b,u⁻¹(q))²

the squared 2-Wasserstein distance between the projections a_i·u and b_j·u of the embeddings of each two modalities
that have no partner in the batch, by the quantiles of both (sliced Wasserstein distance: Rabin et al., SSVM 2011;
Bonneel et al., JMIV 2015). The directions are others in every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.objectives._pairs import alone, mean

NEEDS = ("embedding",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, directions: int = 64) -> Tensor:
    """Return the scalar loss of outputs["embedding"], (N, D) of unit norm by modality, along random `directions`."""

    def of(a: Tensor, b: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(batch["step"])
        along = functional.normalize(torch.randn(a.shape[1], directions, generator=generator), dim=0).to(a)
        quantiles = torch.linspace(0, 1, min(len(a), len(b))).to(a)
        gaps = torch.quantile(a @ along, quantiles, dim=0) - torch.quantile(b @ along, quantiles, dim=0)
        return gaps.square().mean()

    return mean([of(a, b) for a, b in alone(outputs, batch)], outputs)
