"""Contrastive loss (InfoNCE): a sample should be more similar to its partner than to the others of the batch.

    loss = ½ mean_i [ −Σ_j q_ij log softmax_j(s a_i·b_j) ] + ½ mean_j [ −Σ_i r_ij log softmax_i(s a_i·b_j) ]

over the P pairs (a_i, b_i) of L2-normalised embeddings of every two modalities, with a learned scale s ≤ 100 (Radford
et al., CLIP, ICML 2021; van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018).

Several samples may have the same report text. The target q_i is therefore uniform over the j whose b_j has the same
content as b_i, and r_j is uniform over the i whose a_i has the same content as a_j. Otherwise an image would be pushed
away from the text of its own report. Labels are treated alike in Khosla et al., "Supervised Contrastive Learning",
NeurIPS 2020. Without repeated content q and r are the identity.
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
    """Return the scalar loss, in nats, of outputs["embedding"], (N, D) by modality, at outputs["scale"]."""
    scale = outputs["scale"].float()

    def info_nce(first: Tensor, second: Tensor, same_first: Tensor, same_second: Tensor) -> Tensor:
        logits = scale * first @ second.T
        forth = functional.cross_entropy(logits, _uniform(same_second))
        back = functional.cross_entropy(logits.T, _uniform(same_first))
        return (forth + back) / 2

    return mean([info_nce(*pair) for pair in pairs(outputs, batch)], outputs)


def _uniform(same: Tensor) -> Tensor:
    """Return distributions (P, P), one per row, that are uniform over the entries of equal content, (P, P) bool."""
    return same.float() / same.sum(1, keepdim=True)
