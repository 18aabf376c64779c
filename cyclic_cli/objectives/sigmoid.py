"""Sigmoid: every pair of a batch is judged by itself, as belonging together or not (SigLIP).

    loss = −1 / P Σ_i Σ_j log σ(z_ij (s a_i·b_j + c)),   z_ij = 1 where i and j belong together, else −1

over the P pairs (a_i, b_i) of embeddings of unit norm of each two modalities, with a learned scale s ≤ 100 and bias c
(Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023). Reports repeat: i and j belong together
too where both have the same content on either side.
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
    """Return the scalar loss, nats, of outputs["embedding"], (N, D) by modality, at a scale and a bias."""
    scale, bias = outputs["scale"].float(), outputs["bias"].float()

    def of(first: Tensor, second: Tensor, same_first: Tensor, same_second: Tensor) -> Tensor:
        logits = scale * first @ second.T + bias
        together = 2.0 * (same_first | same_second) - 1
        return -functional.logsigmoid(together * logits).sum() / len(logits)

    return mean([of(*pair) for pair in pairs(outputs, batch)], outputs)
