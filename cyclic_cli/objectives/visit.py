"""Visit loss (association learning): every unpaired sample should be visited by walks from the other modality.

    loss = mean over ordered pairs (a, b) of −1 / M Σ_j log(M / N Σ_i softmax_j(t a_i · b_j))

over the N embeddings a_i and M embeddings b_j, L2-normalised, of the unpaired samples of every two modalities, with an
inverse temperature t. The loss is the Kullback–Leibler divergence between a uniform distribution over the b_j and
the probabilities that walks visit them. Up to a constant it is the visit loss of Haeusser et al., "Learning by
Association", CVPR 2017. It prevents walks that all pass through a few samples, which the walker loss (`walk`) would
allow.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding",)
PER_SAMPLE = False
SMALLEST = 1e-9  # added to probabilities before their logarithm


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, sharpness: float = 10.0) -> Tensor:
    """Return the scalar loss, in nats and from 0, of L2-normalised outputs["embedding"], (N, D) by modality.

    `sharpness` is the inverse temperature t.
    """

    def visit_loss(a: Tensor, b: Tensor) -> Tensor:
        visits = (sharpness * a @ b.T).softmax(1).mean(0) * len(b)  # (M,), all 1 when the visits are uniform
        return -(visits + SMALLEST).log().mean()

    return mean([visit_loss(*pair) for a, b in unpaired(outputs, batch) for pair in ((a, b), (b, a))], outputs)
