"""Pseudo-pairs: a value alone takes for its partner what the partners of similar paired samples point to.

    loss = mean over ordered pairs (a, b) of −1 / N Σ_i Σ_p w_ip log softmax_p(s a_i · b_p)
    w_ip = softmax_p(t a_i · a_p), without a gradient

over the N values of a without a partner and the P pairs (a_p, b_p) of the batch (Mo et al., "S-CLIP", NeurIPS 2023,
with a softmax in place of optimal transport).
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

from torch import Tensor

from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.models._joint import linked
from cyclic_cli.objectives._pairs import mean

NEEDS = ("embedding", "scale")
PER_SAMPLE = False
NEEDS_PAIRS = True


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, sharpness: float = 15.0) -> Tensor:
    """Return the scalar loss, nats, of outputs["embedding"], (N, D) of unit norm by modality.

    `sharpness` is the inverse temperature t.
    """
    embeddings, samples = outputs["embedding"], batch["sample"]
    losses = []
    for a, b in permutations(embeddings, 2):
        of_a, of_b = linked(samples[a], samples[b])
        without = embeddings[a][samples[a] == UNPAIRED].float()
        if len(of_a) and len(without):
            shares = (sharpness * without.detach() @ embeddings[a][of_a].detach().float().T).softmax(1)
            likely = (outputs["scale"].float() * without @ embeddings[b][of_b].float().T).log_softmax(1)
            losses.append(-(shares * likely).sum(1).mean())
    return mean(losses, outputs)
