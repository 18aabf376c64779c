"""`cyclic search`: the nearest cases of an embedding file, or near ones whose reports differ from one another.

    query     a text or an image through the model that made the file, or the vector of a key
    nearest   exact: blocks of the file times the query, straight from the Parquet file, the best so far are kept
    diversity  among many near ones, one after another the one that is nearest to the query and whose report is least
              like those chosen before: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998), with likeness
              to the query by images and likeness among answers by reports; shown nearest first

So a doctor who looks at one film is shown films like it that were reported otherwise.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.config import DIVERSITY, UNIT
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.inference import embed
from cyclic_cli.metrics.generated_text import alike
from cyclic_cli.privacy.keys import Keyer, find_secret
from cyclic_cli.search.faiss_index import Approximate
from cyclic_cli.search.neighbours import NEAR, nearest, spread, with_untold
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.embeddings import EmbeddingFile

if TYPE_CHECKING:
    from cyclic_cli.inference.reconstruct import Model

SHORTEST = 8  # digits of the beginning of a key
AGAIN = "Make it again with `cyclic embed`."


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is looked for: a vector (D,) of unit norm, and whose it is, as far as that is known."""

    name: str
    kind: str  # image or text
    vector: np.ndarray
    key: str = ""
    patient: str = ""
    source: str = ""
    text: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One of the cases found."""

    key: str
    patient: str
    similarity: float  # cosine
    text: str | None  # its report, where it is known
    source: str
    kind: str
    split: str
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """What `cyclic search` found."""

    query: str
    results: list[Answer]
    among: int  # cases that were looked through
    diversity: float  # how much their reports were made to differ; 0: they are the nearest
    model: str  # fingerprint
    index: str  # the file


def query_of(
    words: str,
    file: EmbeddingFile,
    load: Callable[[], "Model"],
    allow_burned_in: bool = False,
    report: Report = silent,
) -> Query:
    """What a query names: a case of the file by its key, else an image file, else it is a text itself.

    Args:
        words: The query.
        file: Where it will be looked for.
        load: Gives the model that images and texts go through.
        allow_burned_in: Whether an image that says that text is burned into it is taken.
        report: Gets Note events.

    Raises:
        UsageError: it looks like a path or a key, but there is none; several keys begin like that; or it is a text, and
            the model has no side for texts.
        CyclicError: another model made the file; the image cannot be used.
    """
    known = of_key(words, file)
    if known is not None:
        return known
    is_image = os.path.isfile(words)
    if not is_image and not is_text(words):
        raise UsageError(f"The query is neither a file nor a key of {file.path}, and no text.", "Check what it names.")
    model = load()
    if model.fingerprint != file.facts.model:
        raise CyclicError(f"{file.path} was made by another model than {model.path}.", "Name that one with --model.")
    if is_image:
        return of_image(Path(words), model, file, allow_burned_in, report)
    if "text" not in model.modalities:
        raise UsageError(
            f"The query is neither a file nor a key of {file.path}, and {model.path} has no side for texts.",
            "Name an image, or a key of the file.",
        )
    report(Note("the query is taken as a text: it is neither a file nor a key"))
    return Query(name="text", kind="text", vector=model.embed_texts([words])[0], text=words)


def is_text(query: str) -> bool:
    """Whether a query can only be a text: no folder, no mistyped path, no key of another file."""
    words = query.split()
    odd = len(words) == 1 and re.search(rf"[/\\]|\.\w|^[0-9A-Fa-f]{{{SHORTEST},}}$", words[0])
    return bool(words) and not odd and not os.path.isdir(query)


def of_key(key: str, file: EmbeddingFile) -> Query | None:
    """A case of the file itself, by its image if it has one; None without such a key.

    As tables show keys shortened, the beginning of one will do, from `SHORTEST` digits.

    Raises:
        UsageError: several keys begin like that.
    """
    if re.fullmatch(rf"[0-9a-f]{{{SHORTEST},}}", key):
        similar = file.keys_that_begin(key)
        if len(similar) > 1:
            raise UsageError(f"{len(similar)} keys begin with {key}.", "Give more of the key.")
        key = similar[0] if similar else key
    numbers = np.flatnonzero(file.equal("key", [key]))
    rows = sorted(zip(numbers.tolist(), file.rows(numbers), strict=True), key=lambda one: str(one[1]["kind"]))
    if not rows:
        return None
    number, row = rows[0]
    (vector,) = file.vectors(np.array([number]))
    if not abs(float(np.linalg.norm(vector)) - 1) < UNIT:  # not a number is none either
        raise CyclicError(f"The vector of that key of {file.path} is not of unit norm.", AGAIN)
    return Query(name=key, kind=row["kind"], vector=vector, **_case(row, file))


def _case(row: dict[str, Any], file: EmbeddingFile) -> dict[str, Any]:
    """What is known of a row's case, by the names of `Query`; a dataset's paths are relative to where it was made."""
    return {
        "key": row["key"], "patient": row["patient"] or "", "source": "" if file.facts.dataset else row["source"] or "",
        "text": row.get("text"), "labels": {name: row[name] for name in file.facts.labels},
    }  # fmt: skip


def of_image(
    path: Path,
    model: "Model",
    file: EmbeddingFile,
    allow_burned_in: bool = False,
    report: Report = silent,
) -> Query:
    """An image file, read as `prepare` reads it; where the file holds it, what it says of it is known of the query too.

    Raises:
        CyclicError: it cannot be used.
    """
    keyer = _keyer_of(file, report)
    with embed.scratch_folder() as scratch:
        offered = embed.of_files([path], None, model, keyer or Keyer(b""), scratch, allow_burned_in=allow_burned_in)
        found = list(embed.embed(offered, model, embed.EmbedSummary(), None, report))
    if not found:
        raise CyclicError("The query cannot be used.", "The reason stands above.")
    first = found[0]
    known: dict[str, Any] = {}
    if keyer:
        rows = file.rows(np.flatnonzero(file.equal("key", [first["key"]])))
        known = _case(rows[0], file) if rows else {"key": first["key"], "patient": first["patient"]}
        if not rows and first["patient"] == keyer.key("patient of sample", first["key"]):
            report(Note("the image names no patient: cases of the same one may be found", True))
    vector = np.array(first["vector"], np.float32)
    return Query(name=first["source"], kind="image", vector=vector, **known | {"source": str(path)})


def _keyer_of(file: EmbeddingFile, report: Report) -> Keyer | None:
    """What makes the keys of the file, if it is without a secret or with the user's own."""
    bare = Keyer(b"")
    if file.facts.secret == bare.check():
        return bare
    with suppress(CyclicError):  # there is none, and none can be kept
        own = Keyer(find_secret(None))
        if file.facts.secret == own.check():
            return own
    report(Note("the file's keys were made with another secret: cases of the same patient cannot be left out", True))
    return None


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
    """Find the nearest cases.

    Args:
        query: What is looked for.
        file: Where.
        count: How many.
        where: A condition on the columns of the file.
        kind: Rows to look among: image or text; None: images, where the file has some.
        same_patient: Whether cases of the query's own patient may be found; the query itself never is.
        diversity: From 0, the nearest ones, to 1, those whose reports differ most.
        dataset: Where reports stand, if not in the file.
        approximate: Whether to search by an index of faiss, which is made beside the file where there is none.
        report: Gets Note events.

    Raises:
        UsageError: the condition is none.
        CyclicError: the query has other dimensions than the file; nothing is left to look among; another dataset.
    """
    if query.vector.shape != (file.facts.dimensions,):
        raise CyclicError(
            f"The query has {query.vector.shape[0]} numbers, the vectors of {file.path} have {file.facts.dimensions}.",
            "Search with the model that made the file.",
        )
    if dataset is not None and StoredDataset(dataset).facts.fingerprint != file.facts.dataset:
        raise CyclicError(f"{file.path} is of another dataset than {dataset}.", "Name the one that was embedded.")
    wanted, allowed = _allowed(query, file, where, kind, same_patient)
    similarity, numbers = _nearest(query, file, count * NEAR if diversity else count, allowed, approximate, report)
    if np.abs(similarity).max(initial=0) > 1 + UNIT:
        raise CyclicError(f"{file.path} has vectors that are not of unit norm.", AGAIN)
    rows = file.rows(numbers)
    texts = _reports(rows, file, dataset)
    order, said = np.arange(min(count, len(numbers))), None
    if diversity:
        said = _report_vectors(rows, texts, file)
        if said is None:
            report(Note("no report is known, so the nearest ones are shown: name --dataset, or embed --with-text"))
        else:
            order = np.sort(spread(similarity, said, count, diversity))
    results = [
        Answer(
            key=rows[place]["key"], patient=rows[place]["patient"] or "", similarity=float(similarity[place]),
            text=texts[place], source=rows[place]["source"] or "", kind=wanted, split=rows[place]["split"] or "",
            labels={name: rows[place][name] for name in file.facts.labels},
        )
        for place in order.tolist()
    ]  # fmt: skip
    return SearchSummary(
        query=query.name, results=results, among=int(allowed.sum()), diversity=0.0 if said is None else diversity,
        model=file.facts.model, index=str(file.path),
    )  # fmt: skip


def _allowed(
    query: Query, file: EmbeddingFile, where: str | None, kind: str | None, same_patient: bool
) -> tuple[str, np.ndarray]:
    """The kind of rows that are looked among, and which rows (N,) bool these are. Raises CyclicError for none."""
    shown = file.equal("kind", ["image"])
    wanted = kind or ("image" if shown.any() else "text")
    allowed = (shown if wanted == "image" else file.equal("kind", [wanted])) & ~file.equal("key", [query.key])
    if where is not None:
        allowed &= file.chosen(where)
    if not same_patient and query.patient:
        allowed &= ~file.equal("patient", [query.patient])
    if not allowed.any():
        raise CyclicError(
            f"None of the {len(file)} rows of {file.path} is left to look among.", "Widen --where or --kind."
        )
    return wanted, allowed


def _nearest(
    query: Query, file: EmbeddingFile, count: int, allowed: np.ndarray, approximate: bool, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities (K,), falling, and numbers (K,) of rows; exact too where an index finds fewer than there are."""
    if approximate:
        similarity, numbers = Approximate(file, report).nearest(query.vector, count, allowed)
        if len(numbers) == min(count, int(allowed.sum())):
            return similarity, numbers
    return nearest(query.vector, file.blocks(), count, allowed)


def _reports(rows: list[dict[str, Any]], file: EmbeddingFile, dataset: Path | None) -> list[str | None]:
    """The report of each row: of the file, else of the dataset."""
    if "text" in file.schema.names:
        return [row["text"] for row in rows]
    if dataset is None:
        return [None] * len(rows)
    found = StoredDataset(dataset).samples_of((row["key"] for row in rows), ["has_text", "text"])
    texts = {key: row["text"] for key, row in found.items() if row["has_text"]}
    return [texts.get(row["key"]) for row in rows]


def _report_vectors(rows: list[dict[str, Any]], texts: list[str | None], file: EmbeddingFile) -> Any:
    """What the reports of rows say, as vectors (M, R) of unit norm: the file's own of texts, else of their words.

    Rows without a report are like one another alone; None where no row has any.
    """
    keys = [row["key"] for row in rows]
    numbers = np.flatnonzero(file.equal("kind", ["text"]) & file.equal("key", keys))
    of_key = dict(zip((row["key"] for row in file.rows(numbers)), file.vectors(numbers), strict=True))
    if of_key and set(of_key) >= {key for key, text in zip(keys, texts, strict=True) if text}:
        told = np.array([key in of_key for key in keys])
        return with_untold(np.array([of_key[key] for key in keys if key in of_key]), told)
    return alike([text or "" for text in texts]) if any(texts) else None
