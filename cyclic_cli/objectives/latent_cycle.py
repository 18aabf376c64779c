"""Latent cycle: what one modality is decoded to in another, encoded again, is where it started.

    loss = mean over ordered pairs (a, b) of 1 / N Σ_n (1 − e_n · encode_b(draw_b(e_n)))
    e_n = embedding of a's n-th value

over all N values of a, paired or not: no partner is needed (Zhu et al., CycleGAN, ICCV 2017, in the code). Text is
drawn as numbers that a gradient passes through (see `text_encoders`), so that the whole cycle learns.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean

NEEDS = ("embedding", "latent_cycle")
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, from 0 to 2, of outputs["latent_cycle"], embeddings (N, D) by (from, to)."""
    return returned(outputs["embedding"], outputs["latent_cycle"], outputs)


def returned(starts: dict[str, Tensor], backs: dict[tuple[str, str], Tensor], outputs: dict[str, Any]) -> Tensor:
    """Mean cosine distance between embeddings and what came back of them."""
    losses = [1 - (starts[a].float() * back.float()).sum(1).mean() for (a, _), back in backs.items() if len(back)]
    return mean(losses, outputs)
