"""Discrepancy (MMD): the embeddings of all modalities should have the same distribution.

    loss = 1 / N² Σ_ij k(a_i, a_j) + 1 / M² Σ_ij k(b_i, b_j) − 2 / (N M) Σ_ij k(a_i, b_j)
    k(x, y) = mean_t exp(t (x·y − 1))

over the N and M L2-normalised embeddings of the unpaired samples of every two modalities. This is distribution matching
by the squared maximum mean discrepancy, in its biased estimate (Gretton et al., "A Kernel Two-Sample Test", JMLR 2012).
On the sphere k is a Gaussian kernel. Several values of t, which is inverse to the squared width, cover coarse and fine
differences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cyclic_cli.objectives._pairs import mean, unpaired

NEEDS = ("embedding",)
PER_SAMPLE = False
SHARPNESSES = (1.0, 4.0, 16.0)  # values of t


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar loss, from 0 to 2, of L2-normalised outputs["embedding"], (N, D) by modality."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        cosines = x @ y.T
        return torch.stack([(sharpness * (cosines - 1)).exp().mean() for sharpness in SHARPNESSES]).mean()

    return mean([kernel(a, a) + kernel(b, b) - 2 * kernel(a, b) for a, b in unpaired(outputs, batch)], outputs)
