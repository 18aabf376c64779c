"""Agreement of the neighbourhoods of two modalities, by which outputs of a pretrained encoder are chosen.

Outputs whose nearest neighbours are also neighbours by the other modality carry what both modalities share (mutual
k-NN: Huh et al., "The Platonic Representation Hypothesis", ICML 2024).
"""

from __future__ import annotations

import numpy as np

from cyclic_cli.metrics.retrieval import l2_normalised

NEIGHBOURS = 10
MOST = 2000  # pairs that are compared, evenly spaced among all
DECIMALS = 5  # of similarities: equal texts are equally near, whatever the rounding of their codes


def mutual_knn(a: np.ndarray, b: np.ndarray, k: int = NEIGHBOURS, patients: np.ndarray | None = None) -> float:
    """The mean share of a sample's k nearest neighbours in one modality that are also its neighbours in the other.

    Args:
        a: (N, F) features of one modality.
        b: (N, G) features of the other modality; row i of a and row i of b are paired.
        k: Neighbours by cosine of the centred features; fewer where there are fewer samples.
        patients: (N,) the patients. Samples of the same patient then are no neighbours: they are alike in both
            modalities for reasons that other patients do not share.

    Returns:
        0–1; 0 where no sample has neighbours. At most `MOST` samples are compared.
    """
    chosen = np.arange(min(len(a), MOST)) * len(a) // max(1, min(len(a), MOST))
    owner = chosen if patients is None else np.unique(patients[chosen], return_inverse=True)[1]
    banned = owner[:, None] == owner
    masks = [_neighbours(features[chosen].astype(np.float64), banned, k) for features in (a, b)]
    possible = np.minimum((~banned).sum(axis=1), k)
    if not possible.any():
        return 0.0
    return float(((masks[0] & masks[1]).sum(axis=1)[possible > 0] / possible[possible > 0]).mean())


def _neighbours(features: np.ndarray, banned: np.ndarray, k: int) -> np.ndarray:
    """Mask (N, N) of the k nearest neighbours of each row; of equally near ones, the first."""
    unit = l2_normalised(features - features.mean(axis=0))
    similarity = np.where(banned, -np.inf, (unit @ unit.T).round(DECIMALS))
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    mask = np.zeros(banned.shape, dtype=bool)
    np.put_along_axis(mask, nearest, True, axis=1)
    return mask & ~banned
