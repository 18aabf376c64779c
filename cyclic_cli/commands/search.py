"""The command `cyclic search`: finds similar cases in a file of embeddings."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli import console, registry
from cyclic_cli.commands._options import DEVICES, BurnedIn, Device, Json, Model, Quiet
from cyclic_cli.config import DIVERSITY
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note

PAGES = (".html", ".htm")
FIRST_LINES = 2  # of a report that the table shows


def search(
    query: Annotated[str, typer.Argument(help="An image file, a key of a case in the embeddings, or a text.")],
    file: Annotated[Path, typer.Option("--in", help="Parquet file of embeddings, as `cyclic embed` writes it.")],
    count: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of cases to find.")] = 5,
    diversity: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Diversity of the reports of the cases (λ of maximal marginal relevance): 0 finds the nearest cases.",
        ),
    ] = DIVERSITY,
    where: Annotated[
        str | None,
        typer.Option(help="Condition on columns, such as \"split == 'test' and nodule > 0\".", show_default=False),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Embeddings to search: image or text.", show_default="image, if there are any")
    ] = None,
    same_patient: Annotated[
        bool,
        typer.Option(
            "--same-patient/--not-same-patient", help="Whether other cases of the query's patient may be found."
        ),
    ] = False,
    model: Model = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Dataset that was embedded, for reports and images.", show_default="only what the file holds"
        ),
    ] = None,
    index: Annotated[
        str,
        typer.Option(help="exact, or faiss: an approximate index beside the file, for more than a million vectors."),
    ] = "exact",
    page: Annotated[
        Path | None, typer.Option(help="HTML page to write, with images and reports.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    allow_burned_in: BurnedIn = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the cases in a file of embeddings that are similar to an image, a text or another case."""
    registry.check(device, DEVICES, "device")
    registry.check(index, ("exact", "faiss"), "index")
    if kind:
        registry.check(kind, ("image", "text"), "kind of embeddings")
    if page and page.suffix.lower() not in PAGES:
        raise UsageError(f"{page} is not the name of an HTML page.", "Let it end in .html.")
    if page and page.exists() and not overwrite:
        raise CyclicError(f"{page} exists.", "Add --overwrite, or name another --page.")
    with console.reporting(quiet) as report:
        from cyclic_cli.inference.load import load_model
        from cyclic_cli.search import task
        from cyclic_cli.search.query import resolve_query
        from cyclic_cli.storage.embeddings import EmbeddingFile

        opened = EmbeddingFile(file)
        resolved = resolve_query(query, opened, lambda: load_model(model, device, report), allow_burned_in, report)
        found = task.search(
            resolved, opened, count, where, kind, same_patient, diversity, dataset, index == "faiss", report
        )
        if page:
            from cyclic_cli.search.page import write_page

            write_page(page, resolved, found, opened, dataset, where, report)
            report(Note(f"page: {page}"))
    if json:
        console.write_json(asdict(found))
    else:
        console.columns(["similarity", "key", "patient", "labels", "report"], [_row(one) for one in found.results])


def _row(answer: Any) -> dict[str, Any]:
    from cyclic_cli.search.page import shown_labels

    lines = " ".join((answer.text or "").split("\n")[:FIRST_LINES])
    return {
        "similarity": answer.similarity, "key": answer.key[:12], "patient": answer.patient[:8],
        "labels": ", ".join(shown_labels(answer.labels)), "report": lines,
    }  # fmt: skip
