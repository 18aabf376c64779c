"""Anchor: embeddings should stay near those of the closed form.

    loss = mean over modalities of 1 / N Σ_i ‖z_i − z°_i‖²

over the N samples of a modality, with the L2-normalised embeddings z_i and those of the closed form, z°_i. Each term is
2 − 2 cos(z_i, z°_i). It holds embeddings at a starting point as L²-SP holds weights (Li, Grandvalet and Davoine,
"Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018). It needs no pairs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("embedding", "closed_form")
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, from 0 to 4, of L2-normalised outputs["embedding"], (N, D) by modality.

    outputs["closed_form"], of the same shapes, are the embeddings of the closed form.
    """
    distances = {
        name: (outputs["embedding"][name].float() - fixed.float()).square().sum(1)
        for name, fixed in outputs["closed_form"].items()
    }
    return mean_errors(distances, outputs)
