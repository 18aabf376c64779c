"""Neighbour cycle: from each value alone to its soft neighbour in another modality, and back to itself.

    loss = mean over ordered pairs (a, b) of −1 / N Σ_i log softmax_k(t a_k · ñ_i)[i]
    ñ_i = Σ_j softmax_j(t a_i · b_j) b_j, brought to unit norm

over the N embeddings a_i and M embeddings b_j that have no partner in the batch, at an inverse temperature t
(cycle-back classification of Dwibedi et al., "Temporal Cycle-Consistency Learning", CVPR 2019). No pair is needed;
the loss is least where the two clouds of embeddings lie upon one another so that neighbours are mutual, so it helps
where pairs have begun to align them, and misleads before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, sharpness: float = 15.0) -> Tensor:
    """Return the scalar loss, nats, of outputs["embedding"], (N, D) of unit norm by modality.

    `sharpness` is the inverse temperature t.
    """

    def of(a: Tensor, b: Tensor) -> Tensor:
        neighbours = functional.normalize((sharpness * a @ b.T).softmax(1) @ b, dim=1)
        return functional.cross_entropy(sharpness * neighbours @ a.T, torch.arange(len(a), device=a.device))

    ways = [of(*way) for a, b in unpaired(outputs, batch) for way in ((a, b), (b, a))]
    return mean(ways, outputs)
