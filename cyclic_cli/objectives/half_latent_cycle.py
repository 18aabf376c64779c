"""Half latent cycle: the encoder of a modality should recover the embedding from which content was decoded.

The loss is that of `latent_cycle`, but neither the initial embedding nor the decoded content has a gradient. Only the
encoder that reads the decoded content is trained. This is training on pseudo-pairs, the "half-cycle" of ITIT (Li et
al., ICLR 2024, section 3).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives.latent_cycle import cosine_distance

NEEDS = ("embedding", "half_latent_cycle")
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, from 0 to 2, of outputs["half_latent_cycle"], embeddings (N, D) by (from, to)."""
    targets = {name: embedding.detach() for name, embedding in outputs["embedding"].items()}
    return cosine_distance(targets, outputs["half_latent_cycle"], outputs)
