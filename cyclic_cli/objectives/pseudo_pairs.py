"""Pseudo-pairs: an unpaired sample should be similar to the partners of the paired samples that resemble it.

    loss = mean over ordered pairs (a, b) of −1 / N Σ_i Σ_p w_ip log softmax_p(s a_i · b_p)
    w_ip = softmax_p(t a_i · a_p), without a gradient

over the N unpaired samples a_i of modality a and the P pairs (a_p, b_p) of the batch. The method is that of Mo et al.,
"S-CLIP", NeurIPS 2023, with a softmax in place of optimal transport.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

from torch import Tensor

from cyclic_cli.data.mixture import UNPAIRED
from cyclic_cli.models._joint import paired_places
from cyclic_cli.objectives._pairs import mean

NEEDS = ("embedding", "scale")
PER_SAMPLE = False
NEEDS_PAIRS = True


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, sharpness: float = 15.0) -> Tensor:
    """Return the scalar loss, in nats, of L2-normalised outputs["embedding"], (N, D) by modality.

    `sharpness` is the inverse temperature t; outputs["scale"] is the learned scale s.
    """
    embeddings, samples = outputs["embedding"], batch["sample"]
    losses = []
    for a, b in permutations(embeddings, 2):
        in_a, in_b = paired_places(samples[a], samples[b])
        unpaired = embeddings[a][samples[a] == UNPAIRED].float()
        if len(in_a) and len(unpaired):
            weights = (sharpness * unpaired.detach() @ embeddings[a][in_a].detach().float().T).softmax(1)
            log_softmax = (outputs["scale"].float() * unpaired @ embeddings[b][in_b].float().T).log_softmax(1)
            losses.append(-(weights * log_softmax).sum(1).mean())
    return mean(losses, outputs)
