"""Sigmoid loss (SigLIP): each combination of an image and a report should be classified as matching or not.

    loss = −1 / P Σ_i Σ_j log σ(z_ij (s a_i·b_j + c)),   z_ij = 1 where i and j match, else −1

over the P pairs (a_i, b_i) of L2-normalised embeddings of every two modalities, with a learned scale s ≤ 100 and a
learned bias c (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023). Several samples may have the
same report text. Therefore i and j also match when a_i and a_j, or b_i and b_j, have equal content.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from cyclic_cli.objectives._pairs import mean, pairs

NEEDS = ("embedding", "scale", "bias")
PER_SAMPLE = False
PAIRS_ONLY = True


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, in nats, of L2-normalised outputs["embedding"], (N, D) by modality.

    outputs["scale"] is the scale s, and outputs["bias"] the bias c.
    """
    scale, bias = outputs["scale"].float(), outputs["bias"].float()

    def classification(first: Tensor, second: Tensor, same_first: Tensor, same_second: Tensor) -> Tensor:
        logits = scale * first @ second.T + bias
        signs = 2.0 * (same_first | same_second) - 1
        return -functional.logsigmoid(signs * logits).sum() / len(logits)

    return mean([classification(*pair) for pair in pairs(outputs, batch)], outputs)
