"""Translation: the content decoded from the embedding of a paired sample should equal the content of its partner.

    loss = mean over ordered pairs (a, b) of 1 / P Σ_p error_b(decode_b(embedding_a(x_p)), y_p)

over P paired samples with content x_p in modality a and y_p in modality b. Of a large batch only a random part is
decoded (`JointModel.decoded_share`). Errors are relative to the mean predictor, whose error is 1 (see `modalities`).
From image to text it is the captioning loss of Vinyals et al., "Show and Tell", CVPR 2015. From text to image it is the
regression of images on texts.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors

NEEDS = ("translation",)
PER_SAMPLE = False
PAIRS_ONLY = True


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar mean of outputs["translation"], which holds errors (P,) by (from, to)."""
    return mean_errors(outputs["translation"], outputs)
