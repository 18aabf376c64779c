"""Discrepancy: the embeddings of values alone are spread alike in all modalities (maximum mean discrepancy).

    loss = 1 / N² Σ_ij k(a_i, a_j) + 1 / M² Σ_ij k(b_i, b_j) − 2 / (N M) Σ_ij k(a_i, b_j)
    k(x, y) = mean_t exp(t (x·y − 1))

over the N and M embeddings of unit norm of each two modalities that have no partner in the batch (Gretton et al., "A
Kernel Two-Sample Test", JMLR 2012, the biased estimate). On the sphere k is a Gaussian kernel; several widths t
together see coarse and fine differences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding",)
PER_SAMPLE = False
WIDTHS = (1.0, 4.0, 16.0)


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, from 0 to 2, of outputs["embedding"], (N, D) of unit norm by modality."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        cosines = x @ y.T
        return torch.stack([(width * (cosines - 1)).exp().mean() for width in WIDTHS]).mean()

    return mean([kernel(a, a) + kernel(b, b) - 2 * kernel(a, b) for a, b in unpaired(outputs, batch)], outputs)
