"""Neighbour cycle: the nearest neighbour in another modality should have the original sample as its own neighbour.

    loss = mean over ordered pairs (a, b) of −1 / N Σ_i log softmax_k(t a_k · ñ_i)[i]
    ñ_i = Σ_j softmax_j(t a_i · b_j) b_j, L2-normalised: the soft nearest neighbour of a_i

over the N embeddings a_i and M embeddings b_j of the unpaired samples of every two modalities, with an inverse
temperature t. This is the cycle-back classification of Dwibedi et al. ("Temporal Cycle-Consistency Learning", CVPR
2019).

The loss is smallest when the two sets of embeddings coincide and neighbours are mutual. It needs no pairs. It helps
once other objectives have begun to align the modalities; before that it may align the wrong samples.
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
    """Return the scalar loss, in nats, of L2-normalised outputs["embedding"], (N, D) by modality.

    `sharpness` is the inverse temperature t.
    """

    def cycle_back(a: Tensor, b: Tensor) -> Tensor:
        neighbours = functional.normalize((sharpness * a @ b.T).softmax(1) @ b, dim=1)
        return functional.cross_entropy(sharpness * neighbours @ a.T, torch.arange(len(a), device=a.device))

    losses = [cycle_back(*pair) for a, b in unpaired(outputs, batch) for pair in ((a, b), (b, a))]
    return mean(losses, outputs)
