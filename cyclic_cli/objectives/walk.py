"""Walk: from each value alone to its soft neighbours in another modality, and on to theirs, ends near where it began.

    loss = mean over ordered pairs (a, b) of 1 / N Σ_i KL(T_i ‖ P_i)
    P = softmax_j(t a_i · b_j) softmax_k(t b_j · a_k)        where a walk from a_i over b_j to a_k ends
    T = softmax_k(u a_i · a_k), without a gradient           where it should: with itself and what is like it

over the N embeddings a_i and M embeddings b_j of unit norm that have no partner in the batch (round trips of Haeusser
et al., "Learning by Association", CVPR 2017, whose labels are replaced by likeness, so that all normal cases need not
be told apart). It only asks that walks return, not that they go everywhere: see `visit`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding",)
PER_SAMPLE = False
SMALLEST = 1e-9  # probability, whose logarithm is taken


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, sharpness: float = 10.0, likeness: float = 20.0) -> Tensor:
    """Return the scalar loss, nats, of outputs["embedding"], (N, D) of unit norm by modality.

    `sharpness` is the inverse temperature t of a step, `likeness` that of the goal, u.
    """

    def of(a: Tensor, b: Tensor) -> Tensor:
        likenesses = sharpness * a @ b.T
        ends = (likenesses.softmax(1) @ likenesses.T.softmax(1) + SMALLEST).log()
        goal = (likeness * a.detach() @ a.detach().T).softmax(1)
        return (goal * ((goal + SMALLEST).log() - ends)).sum(1).mean()

    return mean([of(*way) for a, b in unpaired(outputs, batch) for way in ((a, b), (b, a))], outputs)
