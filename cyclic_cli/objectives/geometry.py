"""Geometric consistency: two images should be as similar as their reports, and similarities should be symmetric.

    loss = 1 / P Σ_j Σ_k (a_j·a_k − b_j·b_k)² + 1 / P Σ_j Σ_k (a_j·b_k − a_k·b_j)²

over the P pairs (a_i, b_i) of L2-normalised embeddings of every two modalities. The two terms are the in-modal and the
cross-modal consistency of CyCLIP (Goel et al., NeurIPS 2022, equations 3 and 4), where both have the weight 0.25. Both
are sums over P² terms divided by P, so they grow with the batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean, pairs

NEEDS = ("embedding",)
PER_SAMPLE = False
PAIRS_ONLY = True


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, from 0, of L2-normalised outputs["embedding"], (N, D) by modality."""

    def inconsistency(first: Tensor, second: Tensor) -> Tensor:
        in_modal = (first @ first.T - second @ second.T).square().sum()
        across = first @ second.T
        return (in_modal + (across - across.T).square().sum()) / len(first)

    return mean([inconsistency(pair.first, pair.second) for pair in pairs(outputs, batch)], outputs)
