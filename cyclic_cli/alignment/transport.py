"""Transport plans: which texts unpaired images may belong to, so that every sample is reached alike.

A plan is a matrix of probabilities P (N, M). Its rows sum to 1 / N, and its columns to 1 / M. Of all such matrices
it is the one with the largest ⟨P, S⟩ + ε H(P) for similarities S, where H is the entropy (Cuturi, "Sinkhorn Distances",
NeurIPS 2013). Read as walks, N P leads from images to texts and M Pᵀ leads back: a step to the other modality and the
step back have the same probabilities, and no sample is passed over.

The sums are approximate: the iteration stops where columns are within `MARGINAL_ERROR`, or after `STEPS`. With small ε
rows are then off by some per cent.
"""

from __future__ import annotations

import numpy as np

STEPS = 50  # of Sinkhorn's iteration, at most
MARGINAL_ERROR = 0.01  # of the columns, relative to 1 / M, at which the iteration stops
SMALLEST = 1e-30  # keeps the reciprocals of vanishing sums within float32


def transport_plan(similarity: np.ndarray, entropy: float) -> np.ndarray:
    """The plan (N, M) float32, which sums to 1.

    Args:
        similarity: (N, M). Only its differences count.
        entropy: ε, in standard deviations of the similarities: the smaller, the fewer partners a sample has.
    """
    images, texts = similarity.shape
    spread = max(float(similarity.std()), float(np.finfo(np.float32).tiny))
    # The largest exponent of each row is 0, so no row vanishes.
    exponents = (similarity - similarity.max(axis=1, keepdims=True)) / np.float32(entropy * spread)
    plan = np.exp(exponents.astype(np.float32))
    columns = np.ones(texts, np.float32)
    for _ in range(STEPS):
        rows = 1 / np.maximum(images * (plan @ columns), SMALLEST)
        reached = plan.T @ rows
        if np.abs(reached * columns * texts - 1).max() < MARGINAL_ERROR:
            break
        columns = 1 / np.maximum(texts * reached, SMALLEST)
    plan *= rows[:, None]
    plan *= columns
    total: np.ndarray = plan / plan.sum(dtype=np.float64).astype(np.float32)
    return total
