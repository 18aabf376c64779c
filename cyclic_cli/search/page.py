"""Write the results of `cyclic search` as one self-contained HTML page: the query and the cases, with their reports.

Pictures are taken from the dataset, or read again from the files that were embedded. Words of a report that differ from
the report of the query are marked.
"""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.errors import InputError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.imaging import readers
from cyclic_cli.imaging.readers import as_png
from cyclic_cli.metrics.generated_text import marked_differences
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.files import write_text

if TYPE_CHECKING:
    from cyclic_cli.search.query import Query
    from cyclic_cli.search.task import SearchSummary
    from cyclic_cli.storage.embeddings import EmbeddingFile

TEMPLATE = "search.html"
LARGEST = 512  # pixels of a picture's side
SHOWN_FROM = 0.5  # a numeric label above this value is shown


def write_page(
    path: Path,
    query: "Query",
    found: "SearchSummary",
    file: "EmbeddingFile",
    dataset: Path | None,
    where: str | None = None,
    report: Report = silent,
) -> None:
    """Write the page.

    Args:
        path: An `.html` file.
        query: The query.
        found: The results.
        file: The embeddings that were searched.
        dataset: The dataset that was embedded, for pictures, and for the query's report. None: the source files are
            read again.
        where: The condition that the cases fulfil.
        report: Gets a Note when no case has a picture.

    Raises:
        CyclicError: the page cannot be written.
    """
    import jinja2

    stored = StoredDataset(dataset) if dataset else None
    keys = [query.key, *(answer.key for answer in found.results)]
    samples = stored.samples_of(keys, ["has_image", "shard", "row", "has_text", "text"]) if stored else {}
    pictures = _Pictures(file, stored, samples)
    own = samples.get(query.key, {"has_text": False})
    text = query.text or (own["text"] if own["has_text"] else None)
    base = text or (found.results[0].text if found.results else None) or ""
    shown_query = {
        "kind": query.kind, "labels": shown_labels(query.labels),
        "words": [(text, False)] if text else [],
        "picture": pictures.of(query.key, query.source) if query.kind == "image" else "",
    }  # fmt: skip
    answers = [
        {
            "key": answer.key, "patient": answer.patient, "split": answer.split, "similarity": answer.similarity,
            "labels": shown_labels(answer.labels),
            "picture": pictures.of(answer.key, "" if file.facts.dataset else answer.source),
            "words": marked_differences(answer.text, base) if answer.text else [],
        }
        for answer in found.results
    ]  # fmt: skip
    if not any(answer["picture"] for answer in answers):
        report(Note(f"no picture is available{': name the --dataset' if dataset is None else ''}", True))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cyclic_cli", "assets"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        query=shown_query, answers=answers, among=found.among, diversity=found.diversity, where=where or "",
        file=file.path.name, model=found.model[:8], base="the query" if text else "the report of the first case",
    )  # fmt: skip
    write_text(path, page)


def shown_labels(labels: dict[str, Any]) -> list[str]:
    """The labels of a case as text: numeric ones above `SHOWN_FROM` by their name, others as `name: value`."""
    shown = []
    for name, value in labels.items():
        if isinstance(value, str) and value:
            shown.append(f"{name}: {value}")
        elif isinstance(value, int | float) and value > SHOWN_FROM:
            shown.append(name.replace("_", " "))
    return shown


class _Pictures:
    """The pictures of cases, as base64 of a PNG; empty if there is none."""

    def __init__(self, file: "EmbeddingFile", stored: StoredDataset | None, samples: dict[str, dict[str, Any]]) -> None:
        """`samples` are rows of the dataset's index by their keys."""
        self.preprocessing, self.stored = file.facts.preprocessing, stored
        self.places = {key: (one["shard"], one["row"]) for key, one in samples.items() if one["has_image"]}

    def of(self, key: str, source: str) -> str:
        """The picture of a case; `source` is the file to read if the dataset does not hold it, or empty."""
        if self.stored and key in self.places:
            shard, row = self.places[key]
            pixels = self.stored.images(np.array([shard]), np.array([row]))[0, 0]
        else:
            try:
                picture = readers.read(readers.content_of(Path(source)), self.preprocessing) if source else None
            except InputError:
                picture = None
            if picture is None:
                return ""
            pixels = readers.fit(picture, self.preprocessing)[0]
        step = max(1, -(-max(pixels.shape) // LARGEST))
        grey = np.rint(readers.as_float(pixels[::step, ::step]) * 255).astype(np.uint8)
        return base64.b64encode(as_png(grey)).decode()
