"""Resolve the query of `cyclic search`: a key of the embedding file, an image file, or a text."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.config import NORM_TOLERANCE
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.inference.embed import embed_stream
from cyclic_cli.inference.embed_inputs import from_files, scratch_folder
from cyclic_cli.inference.embed_summary import EmbedSummary
from cyclic_cli.inference.typed_texts import checked_words
from cyclic_cli.privacy.keys import Keyer, find_secret
from cyclic_cli.storage.embeddings import EmbeddingFile

if TYPE_CHECKING:
    from cyclic_cli.inference.load import Model

SHORTEST = 8  # hexadecimal digits from which the beginning of a key is accepted
REMAKE = "Make the file again with `cyclic embed`."


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is searched for: an L2-normalised vector (D,), and its case as far as that is known."""

    name: str
    kind: str  # image or text
    vector: np.ndarray
    key: str = ""
    patient: str = ""
    source: str = ""
    text: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    unknown_words: list[str] = field(default_factory=list)  # of a text: the words that the model does not know


def resolve_query(
    words: str,
    file: EmbeddingFile,
    load: Callable[[], "Model"],
    allow_burned_in: bool = False,
    report: Report = silent,
) -> Query:
    """Take the query as a key of the file; if there is no such key, as an image file; else as a text.

    Args:
        words: The query, as the user gave it.
        file: The embeddings that will be searched.
        load: Loads the model that embeds images and texts; not called for a key.
        allow_burned_in: Whether an image is used whose header says that text is burned into it.
        report: Gets Note events.

    Raises:
        UsageError: the query looks like a path or a key, but does not exist; it begins several keys; or it is a text,
            and the model has no text encoder or knows none of its words.
        CyclicError: another model made the file; the image cannot be used.
    """
    case = query_by_key(words, file)
    if case is not None:
        return case
    is_image = os.path.isfile(words)
    if not is_image and not _is_text(words):
        raise UsageError(f"The query is not a file, a key of {file.path} or a text.", "Check the path or the key.")
    model = load()
    if model.fingerprint != file.facts.model:
        raise CyclicError(f"{file.path} was made by another model than {model.path}.", "Name that one with --model.")
    if is_image:
        return query_by_image(Path(words), model, file, allow_burned_in, report)
    if "text" not in model.modalities:
        raise UsageError(
            f"The query is neither a file nor a key of {file.path}, and {model.path} has no text encoder.",
            "Name an image, or a key of the file.",
        )
    report(Note("the query is taken as a text: it is neither a file nor a key"))
    unknown = checked_words(model, words, "the query", report)
    vector = model.embed_texts([words])[0]
    return Query(name="text", kind="text", vector=vector, text=words, unknown_words=unknown)


def _is_text(query: str) -> bool:
    """Whether a query can only be a text, and is not a folder, a mistyped path or a key of another file."""
    words = query.split()
    like_path_or_key = len(words) == 1 and re.search(rf"[/\\]|\.\w|^[0-9A-Fa-f]{{{SHORTEST},}}$", words[0])
    return bool(words) and not like_path_or_key and not os.path.isdir(query)


def query_by_key(key: str, file: EmbeddingFile) -> Query | None:
    """A case of the file, by its image if it has one; None if the file has no such key.

    The first `SHORTEST` or more digits of a key are enough, because tables show keys shortened.

    Raises:
        UsageError: several keys begin with these digits.
        CyclicError: the vector of the case is not L2-normalised.
    """
    if re.fullmatch(rf"[0-9a-f]{{{SHORTEST},}}", key):
        similar = file.keys_that_begin(key)
        if len(similar) > 1:
            raise UsageError(f"{len(similar)} keys begin with {key}.", "Give more of the key.")
        key = similar[0] if similar else key
    numbers = np.flatnonzero(file.equal("key", [key]))
    # "image" sorts before "text"
    rows = sorted(zip(numbers.tolist(), file.rows(numbers), strict=True), key=lambda one: str(one[1]["kind"]))
    if not rows:
        return None
    number, row = rows[0]
    (vector,) = file.vectors(np.array([number]))
    if not abs(float(np.linalg.norm(vector)) - 1) < NORM_TOLERANCE:  # written so that NaN is refused too
        raise CyclicError(f"The vector of that key of {file.path} is not L2-normalised.", REMAKE)
    return Query(name=key, kind=row["kind"], vector=vector, **_case(row, file))


def _case(row: dict[str, Any], file: EmbeddingFile) -> dict[str, Any]:
    """The case of a row, as fields of `Query`.

    The source is left out for embeddings of a dataset: its paths are relative to the folder it was prepared from.
    """
    return {
        "key": row["key"], "patient": row["patient"] or "", "source": "" if file.facts.dataset else row["source"] or "",
        "text": row.get("text"), "labels": {name: row[name] for name in file.facts.labels},
    }  # fmt: skip


def query_by_image(
    path: Path,
    model: "Model",
    file: EmbeddingFile,
    allow_burned_in: bool = False,
    report: Report = silent,
) -> Query:
    """An image file, read as `prepare` reads it. If the file of embeddings holds the image, its case is taken from it.

    Raises:
        CyclicError: the image cannot be used.
    """
    keyer = _keyer_of(file, report)
    with scratch_folder() as scratch:
        stream = from_files([path], None, model, keyer or Keyer(b""), scratch, allow_burned_in=allow_burned_in)
        embedded = list(embed_stream(stream, model, EmbedSummary(), None, report))
    if not embedded:
        raise CyclicError("The query image cannot be used.", "See the warning above.")
    first = embedded[0]
    case: dict[str, Any] = {}
    if keyer:
        rows = file.rows(np.flatnonzero(file.equal("key", [first["key"]])))
        case = _case(rows[0], file) if rows else {"key": first["key"], "patient": first["patient"]}
        if not rows and first["patient"] == keyer.key("patient of sample", first["key"]):
            report(Note("the image names no patient: cases of the same patient may be found", True))
    vector = np.array(first["vector"], np.float32)
    return Query(name=first["source"], kind="image", vector=vector, **case | {"source": str(path)})


def _keyer_of(file: EmbeddingFile, report: Report) -> Keyer | None:
    """The keyer that made the keys of the file; None if they were made with a secret that is not the user's."""
    without_secret = Keyer(b"")
    if file.facts.secret == without_secret.check():
        return without_secret
    with suppress(CyclicError):  # the user has no secret, and none can be stored
        own = Keyer(find_secret(None))
        if file.facts.secret == own.check():
            return own
    report(Note("the file's keys were made with another secret: cases of the same patient cannot be left out", True))
    return None
