"""SimCLR: a view of an image should be more similar to another view of it than to the views of other images.

    loss = mean_i [ −log softmax_j(s z_i·z_j) at the partner of i ]

over all views z_i of a batch, L2-normalised projections, where j runs over all views but i itself (Chen et al., "A
Simple Framework for Contrastive Learning of Visual Representations", ICML 2020). `sharpness` is s, the inverse of the
temperature. With more than two views the partners count alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NEEDS = ("projection",)
PER_SAMPLE = False


def loss(outputs: dict[str, Any], batch: dict[str, Any], *, sharpness: float = 5.0) -> Tensor:
    """Return the scalar loss, in nats, of outputs["projection"] (N, V, D): V views of N images."""
    projection = functional.normalize(outputs["projection"].float(), dim=2)
    count, views = projection.shape[:2]
    flat = projection.flatten(0, 1)
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    logs = (sharpness * flat @ flat.T).masked_fill(itself, -torch.inf).log_softmax(1)
    image = torch.arange(count, device=flat.device).repeat_interleave(views)
    partners = (image[:, None] == image[None, :]) & ~itself
    return -logs[partners].mean()
