"""Contrastive: each sample finds its partner among those of the batch, by a softmax over similarities (InfoNCE).

    loss = ½ mean_i [ −Σ_j q_ij log softmax_j(s a_i·b_j) ] + ½ mean_j [ −Σ_i r_ij log softmax_i(s a_i·b_j) ]

over the P pairs (a_i, b_i) of embeddings of unit norm of each two modalities, with a learned scale s ≤ 100 (Radford et
al., CLIP, ICML 2021; van den Oord et al., 2018). Reports repeat: q_i spreads evenly over the j whose b_j has the same
content as b_i, r_j over the i whose a_i has that of a_j, so that nobody is pushed away from the very words of their
own report (as for labels in Khosla et al., NeurIPS 2020). Without repetitions q and r are the identity.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from cyclic_cli.objectives._pairs import mean, pairs

NEEDS = ("embedding", "scale")
PER_SAMPLE = False
PAIRS_ONLY = True


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, nats, of outputs["embedding"], (N, D) by modality, at outputs["scale"]."""
    scale = outputs["scale"].float()

    def of(first: Tensor, second: Tensor, same_first: Tensor, same_second: Tensor) -> Tensor:
        logits = scale * first @ second.T
        forth = functional.cross_entropy(logits, _even(same_second))
        back = functional.cross_entropy(logits.T, _even(same_first))
        return (forth + back) / 2

    return mean([of(*pair) for pair in pairs(outputs, batch)], outputs)


def _even(same: Tensor) -> Tensor:
    """Rows (P, P) of equal shares over those that are the same."""
    return same.float() / same.sum(1, keepdim=True)
