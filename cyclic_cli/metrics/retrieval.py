"""Measure cross-modal retrieval: recall@k under several protocols, and the consistency of two modalities.

Reports repeat, so recall depends on what counts as a hit. `protocols` assigns every sample to a group under each rule,
and the samples of one group are hits for one another. Ties are ranked worst case, and similarities that float32 cannot
tell apart count as ties: otherwise repeated reports or a collapsed model would score by chance. Similarities are
computed in blocks of rows, never as a whole matrix. Undefined values, such as the recall of no queries, are None.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

TIE = 1e-6  # smaller differences of cosine similarities are ties: a text in another batch differs by about 1e-7
BLOCK = 2**22  # similarities that are in memory at the same time
DRAWS = 1000  # bootstrap samples
NEIGHBOURS = 10


@dataclass(frozen=True)
class Recall:
    """Retrieval of hits from a gallery. Recall@1, @5 and @10 are shares of the queries, 0–1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mrr: float  # mean reciprocal rank
    queries: int  # that have a hit in the gallery; the others are left out
    pool: int  # items of the gallery
    random_r10: float  # expected recall@10 of a random ranking
    ci95_r10: tuple[float, float]  # bootstrap interval over the patients of the queries


def recall_at_k(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_groups: np.ndarray,
    gallery_groups: np.ndarray,
    patients: np.ndarray,
) -> Recall | None:
    """Rank the gallery by its cosine similarity to each query, and count how often a hit is among the first k.

    Args:
        queries: L2-normalised (Q, D) float32.
        gallery: L2-normalised (G, D) float32.
        query_groups: (Q,) ints; a gallery item of the same group is a hit.
        gallery_groups: (G,) ints.
        patients: (Q,) the patients of the queries, which the bootstrap resamples.

    Returns:
        None if no query has a hit in the gallery.
    """
    groups, sizes = np.unique(gallery_groups, return_counts=True)
    has_hit = np.isin(query_groups, groups)
    if not has_hit.any():
        return None
    queries, query_groups, patients = queries[has_hit], query_groups[has_hit], patients[has_hit]
    ranks = first_hits(queries, gallery, query_groups, gallery_groups)
    return Recall(
        r1=float(np.mean(ranks <= 1)),
        r5=float(np.mean(ranks <= 5)),
        r10=float(np.mean(ranks <= 10)),
        median_rank=float(np.median(ranks)),
        mrr=float(np.mean(1 / ranks)),
        queries=len(queries),
        pool=len(gallery),
        random_r10=_random_recall(sizes[np.searchsorted(groups, query_groups)], len(gallery), 10),
        ci95_r10=patient_interval(patients, lambda weights: float(np.average(ranks <= 10, weights=weights))),
    )


def first_hits(
    queries: np.ndarray, gallery: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray
) -> np.ndarray:
    """The rank (Q,) of the best hit of each query, from 1; ties count as worse ranks. Every query must have a hit.

    Arguments are those of `recall_at_k`.
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    for rows, similarity in _similarities(queries, gallery):
        hits = query_groups[rows, None] == gallery_groups
        best = np.where(hits, similarity, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + (~hits & ~(similarity <= best - TIE)).sum(axis=1)  # written so that NaN ranks last
    return ranks


def l2_normalised(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) float32 divided by their L2 norm; a zero vector stays zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), dtype=np.float32)


def _similarities(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The dot products of the queries with the whole gallery, in blocks: the rows of a block, and its (rows, G)."""
    size = max(1, BLOCK // len(gallery))
    for first in range(0, len(queries), size):
        rows = slice(first, min(first + size, len(queries)))
        yield rows, queries[rows] @ gallery.T


def _random_recall(hits: np.ndarray, pool: int, k: int) -> float:
    """Mean probability that `k` items drawn from the pool contain at least one of `hits` (Q,): hypergeometric."""
    drawn = np.arange(min(k, pool))
    missed = np.prod(np.maximum(pool - hits[:, None] - drawn, 0) / (pool - drawn), axis=1)
    return float(np.mean(1 - missed))


def patient_interval(patients: np.ndarray, statistic: Callable[[np.ndarray], float | None]) -> tuple[float, float]:
    """A 95 % percentile interval by bootstrap over patients (Efron, Annals of Statistics 1979).

    Args:
        patients: (N,) the patient of each sample.
        statistic: A function of weights (N,), which count how often each sample was drawn. None: the statistic is not
            defined for a draw, which is then left out.
    """
    names, owner = np.unique(patients, return_inverse=True)
    generator = np.random.default_rng(0)
    values = []
    for _ in range(DRAWS):
        drawn = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        values.append(statistic(drawn[owner]))
    low, high = np.percentile([value for value in values if value is not None], [2.5, 97.5])
    return float(low), float(high)


def protocols(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The groups (N,) of samples under each protocol; the samples of one group are hits for one another.

    Args:
        columns: `text`, `study` and `patient` (N,) of the index, and `labels` (N, L) float with NaN where missing.

    Returns:
        `strict` (only the paired sample is a hit), `same_text`, `same_study`, `same_patient`, and `same_labels` if any
        label is known. Under `same_labels` all labels must be equal, and the same ones missing; a sample without labels
        is a group of its own.
    """
    groups = {"strict": np.arange(len(columns["text"]))}
    groups |= {f"same_{name}": _numbered(columns[name].tolist()) for name in ("text", "study", "patient")}
    labels = columns.get("labels")
    if labels is not None and labels.size and not np.isnan(labels).all():
        groups["same_labels"] = _numbered(
            place if np.isnan(row).all() else tuple(None if np.isnan(value) else value for value in row)
            for place, row in enumerate(labels)
        )
    return groups


def _numbered(values: Iterable[Hashable]) -> np.ndarray:
    """A number for each value; equal values get the same number."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def repeated(groups: np.ndarray) -> int:
    """The number of samples in groups of two or more; under `same_text`, the number of repeated reports."""
    sizes = np.unique(groups, return_counts=True)[1]
    return int(sizes[sizes > 1].sum())


def cross_modal_consistency(a: np.ndarray, b: np.ndarray) -> dict[str, float] | None:
    """Agreement of two modalities about the same samples.

    Args:
        a: L2-normalised embeddings (N, D) float32 of one modality.
        b: L2-normalised embeddings (N, D) float32 of the other modality; row i of a and row i of b are paired.

    Returns:
        None for fewer than two samples, else

        - `knn_overlap`: the share of a sample's ten nearest neighbours in a that are also among its ten nearest in b;
          ties between neighbours are broken arbitrarily;
        - `cycle_rank` and `cycle_r1`: each sample of a is mapped to its nearest neighbour in b, which need not be its
          paired sample. Then a is ranked by similarity to that neighbour. `cycle_rank` is the median rank of the sample
          itself, `cycle_r1` the share of samples with rank 1;
        - `asymmetry`: ‖S − Sᵀ‖² / ‖S‖² of the similarities S = a bᵀ, the cross-modal term of CyCLIP (Goel et al.,
          NeurIPS 2022) without its scale. It is 0 if S is symmetric, 2 if the inner product of S and Sᵀ is 0, and up
          to 4.
    """
    if len(a) < 2:
        return None
    count = min(NEIGHBOURS, len(a) - 1)
    shared, nearest, own = 0, np.empty(len(a), dtype=np.int64), np.arange(len(a))
    blocks = zip(_similarities(a, a), _similarities(b, b), _similarities(a, b), strict=True)
    for (rows, of_a), (_, of_b), (_, across) in blocks:
        nearest[rows] = across.argmax(axis=1)
        shared += int((_neighbours(of_a, own[rows], count) & _neighbours(of_b, own[rows], count)).sum())
    ranks = first_hits(b[nearest], a, own, own)
    product = (b.T @ a).astype(np.float64)  # tr(S S) = tr((bᵀa)²) and ‖S‖² = tr(aᵀa bᵀb), without an (N, N) matrix
    size = np.sum((a.T @ a).astype(np.float64) * (b.T @ b))
    return {
        "knn_overlap": shared / (len(a) * count),
        "cycle_rank": float(np.median(ranks)),
        "cycle_r1": float(np.mean(ranks == 1)),
        "asymmetry": float(2 - 2 * np.sum(product * product.T) / size),
    }


def _neighbours(similarity: np.ndarray, own: np.ndarray, count: int) -> np.ndarray:
    """Mask (rows, N) of the `count` most similar samples of each row, without the sample itself.

    Args:
        similarity: (rows, N); changed in place.
        own: (rows,) the column of each row's own sample.
        count: Neighbours per row.
    """
    rows = np.arange(len(own))
    similarity[rows, own] = -np.inf
    mask = np.zeros(similarity.shape, dtype=bool)
    mask[rows[:, None], np.argpartition(-similarity, count - 1, axis=1)[:, :count]] = True
    return mask
