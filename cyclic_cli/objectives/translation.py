"""Translation: one modality decoded from the embedding of another, against the partner it is paired with.

    loss = mean over ordered pairs (a, b) of 1 / P Σ_p error_b(decode_b(embedding_a(x_p)), y_p)

over P samples that have both, of a large batch some drawn at random; an error of 1 is that of the best constant
(`modalities`). For reports it is the captioning loss of image-to-text models (Vinyals et al., "Show and Tell", CVPR
2015), for images regression on a text.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("translation",)
PER_SAMPLE = False
PAIRS_ONLY = True


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar mean of outputs["translation"], errors (P,) by (from, to)."""
    return mean_errors(outputs["translation"], outputs)
