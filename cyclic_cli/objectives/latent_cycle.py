"""Latent cycle: an embedding that is decoded to another modality and encoded again should not change.

    loss = mean over ordered pairs (a, b) of 1 / N Σ_n (1 − e_n · encode_b(decode_b(e_n)))

over the embeddings e_n of all N samples of modality a, paired or not. It is the cycle consistency of CycleGAN (Zhu et
al., ICCV 2017), measured between embeddings. Text is decoded to a form that gradients pass through (`soft_decode` of
the text encoders), so the whole cycle is trained.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean

NEEDS = ("embedding", "latent_cycle")
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, from 0 to 2, of outputs["latent_cycle"], embeddings (N, D) by (from, to)."""
    return cosine_distance(outputs["embedding"], outputs["latent_cycle"], outputs)


def cosine_distance(
    targets: dict[str, Tensor], cycled: dict[tuple[str, str], Tensor], outputs: dict[str, Any]
) -> Tensor:
    """Return the mean cosine distance between embeddings, by modality, and embeddings after a cycle, by (from, to)."""
    losses = [1 - (targets[a].float() * after.float()).sum(1).mean() for (a, _), after in cycled.items() if len(after)]
    return mean(losses, outputs)
