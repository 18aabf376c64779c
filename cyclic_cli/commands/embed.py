"""`cyclic embed`."""

import os
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import console
from cyclic_cli.commands._options import (
    SOME_LEFT_OUT,
    BurnedIn,
    Device,
    Model,
    Null,
    OptionalSources,
    Paths,
    Quiet,
    Strict,
    SummaryFile,
    Workers,
    check_summary,
    show,
    stream_paths,
    write_summary,
)
from cyclic_cli.errors import CyclicError, UsageError


def embed(
    sources: OptionalSources = None,
    model: Model = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to embed; may be repeated.", show_default=False)
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="A file with a text a line; may be repeated.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A .parquet, .safetensors, .npy or .jsonl file.", show_default="JSON Lines on stdout, as they come"
        ),
    ] = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Write reports into the file, beside their vectors.")
    ] = False,
    already_deidentified: Annotated[
        bool, typer.Option("--already-deidentified", help="Of files: make keys without a secret, as prepare does.")
    ] = False,
    salt_file: Annotated[
        Path | None,
        typer.Option(help="Of files: secret behind the keys.", show_default="$CYCLIC_SALT, else the user's own"),
    ] = None,
    allow_burned_in: BurnedIn = False,
    paths: Paths = True,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="How many go through the model together.", show_default="found out"),
    ] = None,
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of the same name.")] = False,
    summary_file: SummaryFile = None,
    device: Device = "auto",
    null: Null = False,
    strict: Strict = False,
    json: Annotated[
        bool, typer.Option("--json", help="With --out: put the totals on stdout as one JSON object.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Turn images and texts into vectors: of a dataset, of files, or of what is said here."""
    from cyclic_cli import registry
    from cyclic_cli.config import is_main_process, place_among_processes
    from cyclic_cli.privacy.keys import Keyer, find_secret

    registry.check(device, ("auto", "cpu", "cuda"), "device")
    check_summary(summary_file)
    if any(not one.strip() for one in text or []):
        raise UsageError("A --text is empty.", "Check the variable it comes from.")
    if not (sources or text or texts):
        raise UsageError("There is nothing to embed.", "Name a dataset, files, - for a list on stdin, or --text.")
    if place_among_processes()[1] > 1 and out is None:
        raise UsageError("Several processes have no one stdout.", "Name a file with --out.")
    if "-" in (sources or []) and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("torchrun gives its processes no stdin of their own.", "Name files, or start it with srun.")
    if already_deidentified and salt_file is not None:
        raise UsageError("--already-deidentified uses no secret, but --salt-file gives one.", "Leave one of them out.")
    with console.reporting(quiet) as report:
        from cyclic_cli.inference import embed as task
        from cyclic_cli.inference.reconstruct import load_model
        from cyclic_cli.storage.dataset import is_dataset

        loaded = load_model(model, device, report)
        summary = task.EmbedSummary()
        with task.scratch_folder() as scratch:
            offers = []
            stored = [Path(source) for source in sources or [] if source and is_dataset(Path(source))]
            if stored and (len(sources or []) > 1 or text or texts):
                raise UsageError("A dataset is embedded by itself.", "Name nothing beside it.")
            if stored:
                offers.append(task.of_dataset(stored[0], loaded, with_text, report))
            else:
                keyer = Keyer(b"" if already_deidentified else find_secret(salt_file))
                if sources:
                    files = stream_paths(sources, null)
                    readers = workers or task.reading_processes()
                    offers.append(task.of_files(files, out, loaded, keyer, scratch, paths, allow_burned_in, readers))
                if text or texts:
                    said = ((f"text {number}", one) for number, one in enumerate(text or [], 1))
                    lines = (line for path in texts or [] for line in task.read_texts(path))
                    offers.append(task.of_texts(chain(said, lines), keyer, with_text))
            offered = task.joined(offers)
            if out is None:
                for result in task.embed(offered, loaded, summary, batch_size, report):
                    console.write_json(result)
            else:
                task.embed_to_file(offered, loaded, out, summary, with_text, overwrite, batch_size, report)
    if not is_main_process():
        return
    totals = asdict(summary)
    write_summary(summary_file, totals)
    if out is not None:
        show("Embeddings", totals, json)
    if not summary.used:
        hint = "Each was named above, with the reason." if summary.inputs else "Give files, or folders that hold some."
        raise CyclicError(f"None of {summary.inputs} inputs could be used.", hint)
    if strict and summary.rejected:
        raise typer.Exit(SOME_LEFT_OUT)
