"""Search an embedding file for the nearest cases of a query, or for near cases with diverse reports.

    query        `query.py`: a key, an image or a text, as a vector
    candidates   the rows with the largest cosine similarity to the query; exact, over blocks of the Parquet file, or
                 approximate by an index of faiss (`neighbours.py`, `faiss_index.py`)
    diversity    maximal marginal relevance among the candidates (Carbonell and Goldstein, SIGIR 1998): similarity to
                 the query is measured between embeddings, redundancy between reports; results are ordered by similarity
    page         `page.py`: the results as HTML

Diversity shows a reader of a radiograph similar radiographs that were reported differently.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.config import DIVERSITY, NORM_TOLERANCE
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.metrics.generated_text import tfidf
from cyclic_cli.search.faiss_index import Approximate
from cyclic_cli.search.neighbours import CANDIDATES, maximal_marginal_relevance, nearest, with_missing_reports
from cyclic_cli.search.query import REMAKE, Query
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.embeddings import EmbeddingFile


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One case that was found."""

    key: str
    patient: str
    similarity: float  # cosine
    text: str | None  # the report; None if it is not known
    source: str
    kind: str
    split: str
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """The result of `cyclic search`."""

    query: str
    unknown_words: list[str]  # of a query that is a text: the words that the model does not know
    results: list[Answer]
    among: int  # number of rows that were searched
    diversity: float  # λ of maximal marginal relevance; 0: the results are the nearest cases
    model: str  # fingerprint
    index: str  # path of the embedding file


def search(
    query: Query,
    file: EmbeddingFile,
    count: int,
    where: str | None = None,
    kind: str | None = None,
    same_patient: bool = False,
    diversity: float = DIVERSITY,
    dataset: Path | None = None,
    approximate: bool = False,
    report: Report = silent,
) -> SearchSummary:
    """Find the nearest cases of a query, or near cases with diverse reports. The query itself is never found.

    Args:
        query: The vector, and its case as far as that is known.
        file: The embeddings to search.
        count: Number of results, at most.
        where: A condition on the columns of the file.
        kind: Rows to search: image or text; None: images if the file has any, else texts.
        same_patient: Whether other cases of the query's patient may be found.
        diversity: λ of maximal marginal relevance: 0 finds the nearest cases, 1 those whose reports differ most.
        dataset: The dataset that was embedded, whose reports are used if the file has none.
        approximate: Whether to search by an index of faiss, which is built beside the file if there is none.
        report: Gets Note events.

    Raises:
        UsageError: the condition is not valid.
        CyclicError: the query has another dimension than the file; no rows are left to search; the file is of another
            dataset; its vectors are not L2-normalised.
    """
    _check_fits(query, file, dataset)
    kind, allowed = _searched_rows(query, file, where, kind, same_patient)
    candidates = count * CANDIDATES if diversity else count
    similarity, numbers = _nearest(query, file, candidates, allowed, approximate, report)
    if np.abs(similarity).max(initial=0) > 1 + NORM_TOLERANCE:
        raise CyclicError(f"{file.path} has vectors that are not L2-normalised.", REMAKE)
    rows = file.rows(numbers)
    texts = _reports(rows, file, dataset)
    vectors = _report_vectors(rows, texts, file) if diversity else None
    if diversity and vectors is None:
        report(Note("no report is known, so the nearest cases are shown: name --dataset, or embed --with-text"))
    if vectors is None:
        diversity, order = 0.0, np.arange(min(count, len(numbers)))
    else:
        order = np.sort(maximal_marginal_relevance(similarity, vectors, count, diversity))
    results = [_answer(rows[place], kind, float(similarity[place]), texts[place], file) for place in order.tolist()]
    return SearchSummary(
        query=query.name, unknown_words=query.unknown_words, results=results, among=int(allowed.sum()),
        diversity=diversity, model=file.facts.model, index=str(file.path),
    )  # fmt: skip


def _check_fits(query: Query, file: EmbeddingFile, dataset: Path | None) -> None:
    """Raise CyclicError if the query has another dimension than the file, or the file was made from another dataset."""
    if query.vector.shape != (file.facts.dimensions,):
        raise CyclicError(
            f"The query has {query.vector.shape[0]} dimensions, the vectors of {file.path} have "
            f"{file.facts.dimensions}.",
            "Search with the model that made the file.",
        )
    if dataset is not None and StoredDataset(dataset).facts.fingerprint != file.facts.dataset:
        raise CyclicError(
            f"{file.path} was made from another dataset than {dataset}.", "Name the dataset that was embedded."
        )


def _searched_rows(
    query: Query, file: EmbeddingFile, where: str | None, kind: str | None, same_patient: bool
) -> tuple[str, np.ndarray]:
    """The kind of rows to search, and which rows (N,) bool may be found. Raises CyclicError if there are none."""
    images = file.equal("kind", ["image"])
    kind = kind or ("image" if images.any() else "text")
    allowed = (images if kind == "image" else file.equal("kind", [kind])) & ~file.equal("key", [query.key])
    if where is not None:
        allowed &= file.chosen(where)
    if not same_patient and query.patient:
        allowed &= ~file.equal("patient", [query.patient])
    if not allowed.any():
        raise CyclicError(f"None of the {len(file)} rows of {file.path} is left to search.", "Widen --where or --kind.")
    return kind, allowed


def _nearest(
    query: Query, file: EmbeddingFile, count: int, allowed: np.ndarray, approximate: bool, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities (K,) in falling order, and numbers (K,) of the rows.

    When the approximate search finds fewer rows than there are, the exact search is made instead.
    """
    if approximate:
        similarity, numbers = Approximate(file, report).nearest(query.vector, count, allowed)
        if len(numbers) == min(count, int(allowed.sum())):
            return similarity, numbers
    return nearest(query.vector, file.blocks(), count, allowed)


def _reports(rows: list[dict[str, Any]], file: EmbeddingFile, dataset: Path | None) -> list[str | None]:
    """The report of each row, from the file or else from the dataset; None where it is not known."""
    if "text" in file.schema.names:
        return [row["text"] for row in rows]
    if dataset is None:
        return [None] * len(rows)
    found = StoredDataset(dataset).samples_of((row["key"] for row in rows), ["has_text", "text"])
    texts = {key: row["text"] for key, row in found.items() if row["has_text"]}
    return [texts.get(row["key"]) for row in rows]


def _report_vectors(rows: list[dict[str, Any]], texts: list[str | None], file: EmbeddingFile) -> Any:
    """L2-normalised vectors (M, R) of the rows' reports; None if no row has a report.

    They are the file's embeddings of the texts if it has all of them, else TF-IDF vectors of the words. Rows without a
    report are similar to one another only.
    """
    keys = [row["key"] for row in rows]
    numbers = np.flatnonzero(file.equal("kind", ["text"]) & file.equal("key", keys))
    embedded = dict(zip((row["key"] for row in file.rows(numbers)), file.vectors(numbers), strict=True))
    if embedded and set(embedded) >= {key for key, text in zip(keys, texts, strict=True) if text}:
        has_report = np.array([key in embedded for key in keys])
        return with_missing_reports(np.array([embedded[key] for key in keys if key in embedded]), has_report)
    return tfidf([text or "" for text in texts]) if any(texts) else None


def _answer(row: dict[str, Any], kind: str, similarity: float, text: str | None, file: EmbeddingFile) -> Answer:
    return Answer(
        key=row["key"], patient=row["patient"] or "", similarity=similarity, text=text, source=row["source"] or "",
        kind=kind, split=row["split"] or "", labels={name: row[name] for name in file.facts.labels},
    )  # fmt: skip
