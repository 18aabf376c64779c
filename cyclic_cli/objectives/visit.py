"""Visit: every value alone is somebody's neighbour.

    loss = mean over ordered pairs (a, b) of −1 / M Σ_j log(M / N Σ_i softmax_j(t a_i · b_j))

over the N embeddings a_i and M embeddings b_j of unit norm that have no partner in the batch: up to a constant the
divergence of where soft neighbours lie from lying everywhere alike (Haeusser et al., "Learning by Association", CVPR
2017). It keeps cycles over neighbours from being all led through a few.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding",)
PER_SAMPLE = False
SMALLEST = 1e-9  # probability, whose logarithm is taken


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, sharpness: float = 10.0) -> Tensor:
    """Return the scalar loss, nats, from 0, of outputs["embedding"], (N, D) of unit norm by modality.

    `sharpness` is the inverse temperature t.
    """

    def of(a: Tensor, b: Tensor) -> Tensor:
        visits = (sharpness * a @ b.T).softmax(1).mean(0) * len(b)  # (M,): 1 where all are visited alike
        return -(visits + SMALLEST).log().mean()

    return mean([of(*way) for a, b in unpaired(outputs, batch) for way in ((a, b), (b, a))], outputs)
