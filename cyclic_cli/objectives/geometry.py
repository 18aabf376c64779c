"""Geometry: the similarities of images to one another are those of their reports, and how images see reports is how
reports see images.

    loss = 1 / P Σ_j Σ_k (a_j·a_k − b_j·b_k)² + 1 / P Σ_j Σ_k (a_j·b_k − a_k·b_j)²

over the P pairs (a_i, b_i) of embeddings of unit norm of each two modalities: the in-modal and the cross-modal
consistency of CyCLIP (Goel et al., NeurIPS 2022, equations 3 and 4), which weighs both by 0.25. Both are sums over the
batch divided by its size, so they grow with it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean, pairs

NEEDS = ("embedding",)
PER_SAMPLE = False
PAIRS_ONLY = True


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss of outputs["embedding"], (N, D) of unit norm by modality."""

    def of(first: Tensor, second: Tensor) -> Tensor:
        in_modal = (first @ first.T - second @ second.T).square().sum()
        across = first @ second.T
        return (in_modal + (across - across.T).square().sum()) / len(first)

    return mean([of(pair.first, pair.second) for pair in pairs(outputs, batch)], outputs)
