"""`cyclic search`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli import console, registry
from cyclic_cli.commands._options import BurnedIn, Device, Json, Model, Quiet
from cyclic_cli.config import DIVERSITY
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note

PAGES = (".html", ".htm")
FIRST_LINES = 2  # of a report, in the table


def search(
    query: Annotated[str, typer.Argument(help="An image file, a key of the file, or a text.")],
    file: Annotated[Path, typer.Option("--in", help="Embeddings, as a Parquet file of `cyclic embed`.")],
    count: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many cases.")] = 5,
    diversity: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="How much their reports shall differ from one another: 0 takes the nearest cases."
        ),
    ] = DIVERSITY,
    where: Annotated[
        str | None,
        typer.Option(help="A condition on columns, such as \"split == 'test' and nodule > 0\".", show_default=False),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What is looked through: image or text.", show_default="image, if there are some")
    ] = None,
    same_patient: Annotated[
        bool, typer.Option("--same-patient/--not-same-patient", help="Whether the query's own patient may be found.")
    ] = False,
    model: Model = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Dataset of the file, for reports and pictures.", show_default="what the file holds"),
    ] = None,
    index: Annotated[
        str, typer.Option(help="exact, or faiss: past a million vectors, by an index beside the file.")
    ] = "exact",
    page: Annotated[
        Path | None, typer.Option(help="An HTML page to write: pictures and reports.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page of the same name.")] = False,
    allow_burned_in: BurnedIn = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the cases of an embedding file that are like an image, a text, or another case."""
    registry.check(device, ("auto", "cpu", "cuda"), "device")
    registry.check(index, ("exact", "faiss"), "index")
    if kind:
        registry.check(kind, ("image", "text"), "kind")
    if page and page.suffix.lower() not in PAGES:
        raise UsageError(f"{page} is no name of a page.", "Let it end in .html.")
    if page and page.exists() and not overwrite:
        raise CyclicError(f"{page} exists.", "Add --overwrite, or name another --page.")
    with console.reporting(quiet) as report:
        from cyclic_cli.inference.reconstruct import load_model
        from cyclic_cli.search import task
        from cyclic_cli.storage.embeddings import EmbeddingFile

        opened = EmbeddingFile(file)
        asked = task.query_of(query, opened, lambda: load_model(model, device, report), allow_burned_in, report)
        found = task.search(
            asked, opened, count, where, kind, same_patient, diversity, dataset, index == "faiss", report
        )
        if page:
            from cyclic_cli.search.page import write_page

            write_page(page, asked, found, opened, dataset, where, report)
            report(Note(f"page: {page}"))
    if json:
        console.write_json(asdict(found))
    else:
        console.columns(["similarity", "key", "patient", "findings", "report"], [_row(one) for one in found.results])


def _row(answer: Any) -> dict[str, Any]:
    from cyclic_cli.search.page import findings

    lines = " ".join((answer.text or "").split("\n")[:FIRST_LINES])
    return {
        "similarity": answer.similarity, "key": answer.key[:12], "patient": answer.patient[:8],
        "findings": ", ".join(findings(answer.labels)), "report": lines,
    }  # fmt: skip
