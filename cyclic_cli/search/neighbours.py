"""The neighbours of a query: the nearest, or near ones whose reports differ; and what they have in common."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cyclic_cli.config import DIVERSITY

NEAR = 20  # candidates for each answer that is wanted, among which reports are compared


def nearest(
    query: np.ndarray, blocks: Iterable[np.ndarray], count: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The largest products of a query with rows, and whose they are; of equal ones the first.

    Args:
        query: (D,) float32.
        blocks: The rows, (n, D) float32 at a time.
        count: How many, at most.
        allowed: (N,) bool, which rows may be found; None: all.

    Returns:
        Products (K,), falling, and numbers (K,) of rows.
    """
    best, places, first = np.empty(0, np.float32), np.empty(0, np.int64), 0
    for block in blocks:
        products = block @ query
        if allowed is not None:
            products[~allowed[first : first + len(block)]] = -np.inf
        least = best[-1] if len(best) == count else -np.inf  # most blocks hold few that are better than what is there
        better = np.flatnonzero(products > least)
        if len(better) > count:
            cut = np.partition(products[better], len(better) - count)[len(better) - count]
            better = better[products[better] >= cut]
        best, places = np.concatenate([best, products[better]]), np.concatenate([places, better + first])
        order = np.lexsort((places, -best))[:count]
        best, places = best[order], places[order]
        first += len(block)
    return best, places


def spread(similarity: np.ndarray, reports: Any, count: int, share: float) -> np.ndarray:
    """Maximal marginal relevance: the numbers (K,) of answers, in the order they are chosen.

    Args:
        similarity: (M,) of each candidate to the query.
        reports: (M, R) of unit norm, an array or sparse: what the reports of the candidates say.
        count: Answers, at most.
        share: λ: each is the one with the largest (1 - λ) · similarity - λ · likeness to the report that is most like
            it among those of the answers before.
    """
    chosen: list[int] = []
    likeness = np.zeros(len(similarity), np.float32)
    open_ones = np.ones(len(similarity), bool)
    for _ in range(min(count, len(similarity))):
        score = (1 - share) * similarity - share * likeness
        score[~open_ones] = -np.inf
        best = int(np.argmax(score))
        chosen.append(best)
        open_ones[best] = False
        products = reports @ reports[best].T
        likeness = np.maximum(likeness, products if isinstance(products, np.ndarray) else products.toarray().ravel())
    return np.array(chosen, np.int64)


def with_untold(vectors: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Vectors of reports (T, R) as rows (N, R + 1) of those `told` (N,) bool; the others are like one another.

    T of N are told; products of rows of unit norm are what they were, 1 between two without a report, else 0.
    """
    rows = np.zeros((len(told), vectors.shape[1] + 1), np.float32)
    rows[told, :-1] = vectors
    rows[~told, -1] = 1
    return rows


def compare(
    embeddings: np.ndarray,
    reports: Any,
    patients: np.ndarray,
    labels: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray],
    count: int,
) -> dict[str, Any]:
    """What the neighbours of samples have in common with them, and with one another.

    Each sample asks for its `count` nearest among those of other patients, as they are (`nearest`) and spread over
    different reports with `DIVERSITY` (`diverse`).

    Args:
        embeddings: (N, D) of unit norm.
        reports: (N, R) of unit norm, an array or sparse, what their reports say; None: nothing is spread.
        patients: (N,).
        labels: By name (N,), numbers or text, missing ones NaN or None.
        groups: By name (N,) ints: what counts as one and the same, such as equal findings or equal texts.
        count: Neighbours.

    Returns:
        For `nearest` and `diverse`: `similarity`, its mean; `precision`, by label the share of neighbours that have
        the sample's own value, over samples and neighbours where it is known, and `chance`, the same of any others;
        `different`, by group the mean number of different ones among the neighbours. Empty where nobody has enough.
    """
    chosen: dict[str, list[np.ndarray]] = {"nearest": [], "diverse": []}
    asked = []
    for sample in range(len(embeddings)):
        near, numbers = nearest(embeddings[sample], [embeddings], count * NEAR, patients != patients[sample])
        if len(numbers) < count:
            continue
        asked.append(sample)
        chosen["nearest"].append(numbers[:count])
        if reports is not None:
            chosen["diverse"].append(numbers[spread(near, reports[numbers], count, DIVERSITY)])
    found = {}
    for way, rows in chosen.items():
        if rows:
            neighbours = np.stack(rows)
            products = np.einsum("nd,nkd->nk", embeddings[asked], embeddings[neighbours])
            found[way] = {
                "similarity": float(products.mean()),
                "precision": {name: _precision(values, np.array(asked), neighbours) for name, values in labels.items()},
                "different": {
                    name: float(np.mean([len(set(row)) for row in values[neighbours].tolist()]))
                    for name, values in groups.items()
                },
            }
    return found


def _precision(values: np.ndarray, asked: np.ndarray, neighbours: np.ndarray) -> dict[str, float | None]:
    missing = np.array([value is None or value != value for value in values.tolist()])
    _, numbered = np.unique(np.where(missing, "", values.astype(str)), return_inverse=True)
    there = ~missing[asked, None] & ~missing[neighbours]
    same = numbered[asked, None] == numbered[neighbours]
    shares = np.bincount(numbered[~missing]) / max(1, (~missing).sum())
    return {
        "precision": float(same[there].mean()) if there.any() else None, "chance": float(np.square(shares).sum()),
    }  # fmt: skip
