"""Half latent cycle: the latent cycle whose way back alone learns.

The loss is that of `latent_cycle`, but where it starts and what is drawn on the way count as given: the encoder of b
learns to read what its decoder draws, and nothing else learns. It is training on pseudo-pairs, the "half-cycle" of
ITIT (Li et al., ICLR 2024, section 3).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives.latent_cycle import returned

NEEDS = ("embedding", "half_latent_cycle")
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, from 0 to 2, of outputs["half_latent_cycle"], embeddings (N, D) by (from, to)."""
    starts = {name: embedding.detach() for name, embedding in outputs["embedding"].items()}
    return returned(starts, outputs["half_latent_cycle"], outputs)
