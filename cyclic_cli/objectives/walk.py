"""Walker loss (association learning): a random walk to the other modality and back should end near its first sample.

    loss = mean over ordered pairs (a, b) of 1 / N Σ_i KL(T_i ‖ P_i)
    P_ik = Σ_j softmax_j(t a_i · b_j) softmax_k(t b_j · a_k)     probability that a walk from a_i over b ends at a_k
    T_ik = softmax_k(u a_i · a_k), without a gradient            target: a_i itself and the samples that resemble it

over the N embeddings a_i and M embeddings b_j, L2-normalised, of the unpaired samples of every two modalities, at
inverse temperatures t and u. The walks are those of Haeusser et al., "Learning by Association", CVPR 2017. There the
targets come from class labels. Here they come from similarity, so that a walk may end at another normal case, for
example. The loss does not ask that walks reach every sample; the visit loss (`visit`) does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding",)
PER_SAMPLE = False
SMALLEST = 1e-9  # added to probabilities before their logarithm


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, sharpness: float = 10.0, likeness: float = 20.0) -> Tensor:
    """Return the scalar loss, in nats, of L2-normalised outputs["embedding"], (N, D) by modality.

    `sharpness` is the inverse temperature t of the steps of a walk, and `likeness` that of the target, u.
    """

    def walker_loss(a: Tensor, b: Tensor) -> Tensor:
        logits = sharpness * a @ b.T
        log_ends = (logits.softmax(1) @ logits.T.softmax(1) + SMALLEST).log()
        target = (likeness * a.detach() @ a.detach().T).softmax(1)
        return (target * ((target + SMALLEST).log() - log_ends)).sum(1).mean()

    return mean([walker_loss(*pair) for a, b in unpaired(outputs, batch) for pair in ((a, b), (b, a))], outputs)
