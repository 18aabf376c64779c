"""Nearest neighbours of a query, diverse ones by maximal marginal relevance, and a comparison of both."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cyclic_cli.config import DIVERSITY

CANDIDATES = 20  # nearest rows per result, among which diverse ones are chosen


def nearest(
    query: np.ndarray, blocks: Iterable[np.ndarray], count: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the largest dot product with a query; ties go to the row that comes first.

    Args:
        query: (D,) float32.
        blocks: The N rows, as blocks (n, D) float32.
        count: Number of results, at most.
        allowed: (N,) bool, the rows that may be found; None: all.

    Returns:
        Dot products (K,) in falling order, and numbers (K,) of the rows.
    """
    best, places, first = np.empty(0, np.float32), np.empty(0, np.int64), 0
    for block in blocks:
        products = block @ query
        if allowed is not None:
            products[~allowed[first : first + len(block)]] = -np.inf
        # skips the sort for most rows: few of a block are better than the worst of the best so far
        least = best[-1] if len(best) == count else -np.inf
        better = np.flatnonzero(products > least)
        if len(better) > count:
            cut = np.partition(products[better], len(better) - count)[len(better) - count]
            better = better[products[better] >= cut]
        best, places = np.concatenate([best, products[better]]), np.concatenate([places, better + first])
        order = np.lexsort((places, -best))[:count]
        best, places = best[order], places[order]
        first += len(block)
    return best, places


def maximal_marginal_relevance(similarity: np.ndarray, reports: Any, count: int, diversity: float) -> np.ndarray:
    """The numbers (K,) of chosen candidates, in the order of choice (Carbonell and Goldstein, SIGIR 1998).

    Each choice is the candidate with the largest (1 - λ) · similarity - λ · redundancy. The redundancy is the largest
    cosine similarity of its report to the reports that were chosen before.

    Args:
        similarity: (M,) of each candidate to the query.
        reports: L2-normalised vectors (M, R) of the candidates' reports, an array or a sparse matrix.
        count: Candidates to choose, at most.
        diversity: λ, 0–1.
    """
    chosen: list[int] = []
    redundancy = np.zeros(len(similarity), np.float32)
    remaining = np.ones(len(similarity), bool)
    for _ in range(min(count, len(similarity))):
        score = (1 - diversity) * similarity - diversity * redundancy
        score[~remaining] = -np.inf
        best = int(np.argmax(score))
        chosen.append(best)
        remaining[best] = False
        products = reports @ reports[best].T
        products = products if isinstance(products, np.ndarray) else products.toarray().ravel()
        redundancy = np.maximum(redundancy, products)
    return np.array(chosen, np.int64)


def with_missing_reports(vectors: np.ndarray, has_report: np.ndarray) -> np.ndarray:
    """Vectors (N, R + 1) of all samples, given the L2-normalised vectors (T, R) of the T samples with a report.

    The further dimension makes samples without a report similar to one another: their dot product is 1, and 0 with all
    others. Dot products between reports do not change.

    Args:
        vectors: (T, R).
        has_report: (N,) bool, true for T samples.
    """
    rows = np.zeros((len(has_report), vectors.shape[1] + 1), np.float32)
    rows[has_report, :-1] = vectors
    rows[~has_report, -1] = 1
    return rows


def compare(
    embeddings: np.ndarray,
    reports: Any,
    patients: np.ndarray,
    labels: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray],
    count: int,
) -> dict[str, Any]:
    """Compare samples with their neighbours from other patients, and these neighbours with one another.

    Each sample is a query. Its `count` neighbours are the nearest (`nearest`), and those that maximal marginal
    relevance chooses by their reports with λ = `DIVERSITY` (`diverse`).

    Args:
        embeddings: L2-normalised (N, D).
        reports: L2-normalised vectors (N, R) of the reports, an array or a sparse matrix; None: no `diverse`.
        patients: (N,).
        labels: By name (N,), numbers or text; missing ones are NaN or None.
        groups: By name (N,) ints; samples of one group count as equal, for example those with equal reports.
        count: Neighbours per sample; a sample with fewer candidates is left out.

    Returns:
        For `nearest` and `diverse`, or empty if every sample is left out:

        - `similarity`: the mean cosine similarity;
        - `precision`: by label, the share of neighbours that have the label of the query, where both are known
          (`precision`), and the share expected of random samples (`chance`);
        - `different`: by grouping, the mean number of distinct groups among the neighbours of a sample.
    """
    chosen: dict[str, list[np.ndarray]] = {"nearest": [], "diverse": []}
    queries = []
    for sample in range(len(embeddings)):
        near, numbers = nearest(embeddings[sample], [embeddings], count * CANDIDATES, patients != patients[sample])
        if len(numbers) < count:
            continue
        queries.append(sample)
        chosen["nearest"].append(numbers[:count])
        if reports is not None:
            chosen["diverse"].append(numbers[maximal_marginal_relevance(near, reports[numbers], count, DIVERSITY)])
    found = {}
    for way, rows in chosen.items():
        if rows:
            neighbours = np.stack(rows)
            products = np.einsum("nd,nkd->nk", embeddings[queries], embeddings[neighbours])
            found[way] = {
                "similarity": float(products.mean()),
                "precision": {
                    name: _precision(values, np.array(queries), neighbours) for name, values in labels.items()
                },
                "different": {
                    name: float(np.mean([len(set(row)) for row in values[neighbours].tolist()]))
                    for name, values in groups.items()
                },
            }
    return found


def _precision(values: np.ndarray, queries: np.ndarray, neighbours: np.ndarray) -> dict[str, float | None]:
    """The share of equal labels between queries (Q,) and neighbours (Q, K), and the share expected by chance."""
    missing = np.array([value is None or value != value for value in values.tolist()])
    _, numbered = np.unique(np.where(missing, "", values.astype(str)), return_inverse=True)
    known = ~missing[queries, None] & ~missing[neighbours]
    same = numbered[queries, None] == numbered[neighbours]
    shares = np.bincount(numbered[~missing]) / max(1, (~missing).sum())
    return {
        "precision": float(same[known].mean()) if known.any() else None, "chance": float(np.square(shares).sum()),
    }  # fmt: skip
