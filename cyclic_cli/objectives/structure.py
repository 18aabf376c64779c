"""Structure: samples should have the neighbours in the embedding that they have among the fixed codes.

    loss = mean over modalities of 1 / L Σ_l JS(P^l, Q^l) / l
    P_ij = softmax_j((x_i − x̄)·(x_j − x̄) / τ), and Q likewise with the embeddings z in place of the codes x

over the N samples of a modality, with L2-normalised codes x_i, embeddings z_i and a temperature τ. The powers P^l of
the matrices (N, N) are walks of l steps over neighbours. JS is the Jensen–Shannon divergence, the mean over rows. This
is the regulariser of STRUCTURE (Gröger, Wen, Le and Brbić, NeurIPS 2025, arXiv 2506.16895). It needs no pairs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from cyclic_cli.objectives._pairs import mean

NEEDS = ("embedding", "code")
PER_SAMPLE = False
SMALLEST = 1e-12  # added to probabilities before their logarithm


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, levels: int = 1, temperature: float = 0.1) -> Tensor:
    """Return the scalar loss, in nats and from 0, of L2-normalised outputs["embedding"], (N, D) by modality.

    `levels` is L, `temperature` is τ. outputs["code"], (N, P), are the fixed codes.
    """
    codes = outputs["code"]

    def difference(name: str, embedding: Tensor) -> Tensor:
        one = _transitions(functional.normalize(codes[name].float(), dim=1), temperature)
        other = _transitions(embedding.float(), temperature)
        total, walk, other_walk = _divergence(one, other), one, other
        for level in range(2, levels + 1):
            walk, other_walk = walk @ one, other_walk @ other
            total = total + _divergence(walk, other_walk) / level
        return total / levels

    present = {name: one for name, one in outputs["embedding"].items() if name in codes and len(one) > 1}
    return mean([difference(*one) for one in present.items()], outputs)


def _transitions(vectors: Tensor, temperature: float) -> Tensor:
    """Return the probabilities (N, N) of a step from each of N vectors (N, D) to each."""
    centred = vectors - vectors.mean(0)
    return (centred @ centred.T / temperature).softmax(1)


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence () of distributions (N, M), the mean over rows."""
    middle = ((one + other) / 2 + SMALLEST).log()
    forth, back = ((each * ((each + SMALLEST).log() - middle)).sum(1).mean() for each in (one, other))
    return (forth + back) / 2
