"""How well embeddings find their partners: recall@k under a named protocol, and how consistent two modalities are.

Reports repeat, so recall depends on what counts as a hit: `protocols` gives every sample the group it shares with its
hits under each rule. Ties rank worst case, and similarities closer than float32 can tell are ties, so that neither
repeated reports nor a collapsed model score by luck. Similarities are made in blocks of rows, never as a whole matrix.
What is not defined, such as the recall of no queries, is None.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

TIE = 1e-6  # similarities of unit vectors that differ by less are equal: the same text in another batch differs by 1e-7
BLOCK = 2**22  # similarities that are held at once
DRAWS = 1000  # of the bootstrap
NEIGHBOURS = 10


@dataclass(frozen=True)
class Recall:
    """How well queries found a hit in a gallery. Recall at 1, 5 and 10 are shares, 0–1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    queries: int  # with a hit in the gallery: the others are left out
    pool: int  # items of the gallery
    random_r10: float  # expected of a random ranking
    ci95_r10: tuple[float, float]  # bootstrap over the queries' patients


def recall(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_groups: np.ndarray,
    gallery_groups: np.ndarray,
    patients: np.ndarray,
) -> Recall | None:
    """Rank a gallery for each query by the dot product, and say how near the top its first hit stands.

    Args:
        queries: (Q, D) float32 of unit norm.
        gallery: (G, D) likewise.
        query_groups: (Q,) ints; a gallery item of the same group is a hit.
        gallery_groups: (G,) ints.
        patients: (Q,) whom the queries are of, which the interval resamples.
    """
    groups, sizes = np.unique(gallery_groups, return_counts=True)
    asked = np.isin(query_groups, groups)
    if not asked.any():
        return None
    queries, query_groups, patients = queries[asked], query_groups[asked], patients[asked]
    ranks = first_hits(queries, gallery, query_groups, gallery_groups)
    return Recall(
        r1=float(np.mean(ranks <= 1)),
        r5=float(np.mean(ranks <= 5)),
        r10=float(np.mean(ranks <= 10)),
        median_rank=float(np.median(ranks)),
        queries=len(queries),
        pool=len(gallery),
        random_r10=_random_recall(sizes[np.searchsorted(groups, query_groups)], len(gallery), 10),
        ci95_r10=patient_interval(patients, lambda weights: float(np.average(ranks <= 10, weights=weights))),
    )


def first_hits(
    queries: np.ndarray, gallery: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray
) -> np.ndarray:
    """The rank (Q,) of each query's best hit: 1 + how many non-hits are at least as similar. All have a hit."""
    ranks = np.empty(len(queries), dtype=np.int64)
    for rows, similarity in _similarities(queries, gallery):
        hits = query_groups[rows, None] == gallery_groups
        best = np.where(hits, similarity, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + (~hits & ~(similarity <= best - TIE)).sum(axis=1)  # of NaN the worst as well
    return ranks


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) at norm one, float32; zero stays zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), dtype=np.float32)


def _similarities(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The dot products of some rows of queries with the whole gallery, in blocks: which rows, and (rows, G)."""
    size = max(1, BLOCK // len(gallery))
    for first in range(0, len(queries), size):
        rows = slice(first, min(first + size, len(queries)))
        yield rows, queries[rows] @ gallery.T


def _random_recall(hits: np.ndarray, pool: int, k: int) -> float:
    """The mean chance that `k` items drawn of a pool hold at least one of a query's `hits` (Q,): hypergeometric."""
    drawn = np.arange(min(k, pool))
    missed = np.prod(np.maximum(pool - hits[:, None] - drawn, 0) / (pool - drawn), axis=1)
    return float(np.mean(1 - missed))


def patient_interval(patients: np.ndarray, statistic: Callable[[np.ndarray], float | None]) -> tuple[float, float]:
    """A 95 % percentile interval by resampling patients with replacement (Efron, Annals of Statistics 1979).

    Args:
        patients: (N,) whom each sample is of.
        statistic: Of weights (N,): how often each sample was drawn; None where a draw has none, which is left out.
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
    """The groups (N,) of some samples under each protocol; samples of one group are each other's hits.

    Args:
        columns: `text`, `study` and `patient` (N,) of the index, and `labels` (N, L) float with NaN where not known.

    Returns:
        `strict` (only its own partner), `same_text`, `same_study`, `same_patient`, and where there are labels
        `same_labels`: all are equal, and missing in the same places; a sample without any is a group of its own.
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
    """A number for each value, the same for equal ones."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def repeated(groups: np.ndarray) -> int:
    """How many samples share their group with another one: under `same_text`, the number of repeated reports."""
    sizes = np.unique(groups, return_counts=True)[1]
    return int(sizes[sizes > 1].sum())


def consistency(a: np.ndarray, b: np.ndarray) -> dict[str, float] | None:
    """How alike two modalities see the same samples, from paired embeddings (N, D) float32 of unit norm.

    Returns:
        None for fewer than two samples, else

        - `knn_overlap`: the share of a sample's ten nearest in a that are among its ten nearest in b. Which
          of equally near ones are the nearest is arbitrary;
        - `cycle_rank` and `cycle_r1`: from each sample of a to the nearest in b, its own partner or not, and
          back: the median rank of the sample among a by similarity to that one, and the share that it ranks first;
        - `asymmetry`: ‖S − Sᵀ‖² / ‖S‖² of the similarities S = a bᵀ, the term of CyCLIP (Goel et al., NeurIPS 2022)
          without its scale: 0 where S is symmetric, 2 where its two halves have nothing in common.
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
    product = (b.T @ a).astype(np.float64)  # tr(S S) = tr((bᵀa)²) and ‖S‖² = tr(aᵀa bᵀb) need no (N, N)
    size = np.sum((a.T @ a).astype(np.float64) * (b.T @ b))
    return {
        "knn_overlap": shared / (len(a) * count),
        "cycle_rank": float(np.median(ranks)),
        "cycle_r1": float(np.mean(ranks == 1)),
        "asymmetry": float(2 - 2 * np.sum(product * product.T) / size),
    }


def _neighbours(similarity: np.ndarray, own: np.ndarray, count: int) -> np.ndarray:
    """Mask (rows, N) of the `count` most similar samples of each row but its `own` (rows,); changes `similarity`."""
    rows = np.arange(len(own))
    similarity[rows, own] = -np.inf
    mask = np.zeros(similarity.shape, dtype=bool)
    mask[rows[:, None], np.argpartition(-similarity, count - 1, axis=1)[:, :count]] = True
    return mask
