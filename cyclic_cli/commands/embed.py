"""The command `cyclic embed`: embeds images and texts."""

import os
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cyclic_cli import console
from cyclic_cli.commands._options import (
    DEVICES,
    SOME_LEFT_OUT,
    BurnedIn,
    Device,
    Model,
    Null,
    Paths,
    Quiet,
    Strict,
    SummaryFile,
    Workers,
    check_some_used,
    check_summary,
    show,
    stream_paths,
    write_summary,
)
from cyclic_cli.errors import UsageError

if TYPE_CHECKING:
    from cyclic_cli.inference.embed_inputs import InputStream
    from cyclic_cli.privacy.keys import Keyer


def embed(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="A dataset folder; or files, folders, quoted glob patterns, or - to read a list of paths from stdin.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    text: Annotated[list[str] | None, typer.Option(help="Text to embed; may be repeated.", show_default=False)] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="File of texts to embed, one per line; may be repeated.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output file: .parquet, .safetensors, .npy or .jsonl.", show_default="JSON Lines on stdout"),
    ] = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Store the reports in the file, next to their embeddings.")
    ] = False,
    already_deidentified: Annotated[
        bool,
        typer.Option("--already-deidentified", help="For files: make patient keys without a secret, as in prepare."),
    ] = False,
    salt_file: Annotated[
        Path | None,
        typer.Option(
            help="For files: file with the secret from which patient keys are made.",
            show_default="$CYCLIC_SALT, or the secret of the user",
        ),
    ] = None,
    allow_burned_in: BurnedIn = False,
    paths: Paths = True,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images or texts per forward pass.", show_default="16 on the CPU, 256 on a GPU"),
    ] = None,
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    summary_file: SummaryFile = None,
    device: Device = "auto",
    null: Null = False,
    strict: Strict = False,
    json: Annotated[
        bool, typer.Option("--json", help="With --out: write the totals to stdout as one JSON object.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Embed the images and texts of a dataset, image files, or texts given on the command line."""
    from cyclic_cli import registry
    from cyclic_cli.environment import is_main_process
    from cyclic_cli.privacy.keys import Keyer, find_secret

    registry.check(device, DEVICES, "device")
    check_summary(summary_file)
    _check_sources(sources or [], text or [], texts or [], out)
    if already_deidentified and salt_file is not None:
        raise UsageError("--already-deidentified uses no secret, but --salt-file gives one.", "Leave one of them out.")
    with console.reporting(quiet) as report:
        from cyclic_cli.inference.embed import embed_stream, embed_to_file
        from cyclic_cli.inference.embed_inputs import (
            concatenated,
            from_dataset,
            from_files,
            reading_processes,
            scratch_folder,
        )
        from cyclic_cli.inference.embed_summary import EmbedSummary
        from cyclic_cli.inference.load import load_model
        from cyclic_cli.inference.typed_texts import checked_words

        loaded = load_model(model, device, report)
        for number, one in enumerate(text or [], 1):
            checked_words(loaded, one, f"text {number}", report)
        summary = EmbedSummary()
        with scratch_folder() as scratch:
            dataset = _dataset_among(sources or [], text or [], texts or [])
            if dataset is not None:
                stream = from_dataset(dataset, loaded, with_text, report)
            else:
                keyer = Keyer(b"" if already_deidentified else find_secret(salt_file))
                streams = []
                if sources:
                    files = stream_paths(sources, null)
                    readers = workers or reading_processes()
                    streams.append(from_files(files, out, loaded, keyer, scratch, paths, allow_burned_in, readers))
                if text or texts:
                    streams.append(_texts_stream(text or [], texts or [], keyer, with_text))
                stream = concatenated(streams)
            if out is None:
                for result in embed_stream(stream, loaded, summary, batch_size, report):
                    console.write_json(result)
            else:
                embed_to_file(stream, loaded, out, summary, with_text, overwrite, batch_size, report)
    if not is_main_process():
        return
    totals = asdict(summary)
    write_summary(summary_file, totals)
    if out is not None:
        show("Embeddings", totals, json)
    check_some_used(summary.inputs, summary.used)
    if strict and summary.rejected:
        raise typer.Exit(SOME_LEFT_OUT)


def _check_sources(sources: list[str], text: list[str], texts: list[Path], out: Path | None) -> None:
    """Raise UsageError if there is nothing to embed, or if several processes cannot share stdin or stdout."""
    from cyclic_cli.environment import place_among_processes

    if any(not one.strip() for one in text):
        raise UsageError("A --text is empty.", "Check the variable it comes from.")
    if not (sources or text or texts):
        raise UsageError("There is nothing to embed.", "Name a dataset, files, - for a list on stdin, or --text.")
    if place_among_processes()[1] > 1 and out is None:
        raise UsageError("Several processes cannot share one stdout.", "Name a file with --out.")
    if "-" in sources and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("torchrun does not pass stdin to its processes.", "Name files, or start it with srun.")


def _dataset_among(sources: list[str], text: list[str], texts: list[Path]) -> Path | None:
    """The dataset folder, if the source is one. Raises UsageError if there is anything else to embed."""
    from cyclic_cli.storage.dataset import is_dataset

    datasets = [Path(source) for source in sources if source and is_dataset(Path(source))]
    if datasets and (len(sources) > 1 or text or texts):
        raise UsageError("A dataset cannot be combined with other sources.", "Embed the dataset alone.")
    return datasets[0] if datasets else None


def _texts_stream(text: list[str], texts: list[Path], keyer: "Keyer", with_text: bool) -> "InputStream":
    """The texts of the command line, then the lines of files, each with a name for the output."""
    from cyclic_cli.inference.embed_inputs import from_texts, read_texts

    given = ((f"text {number}", one) for number, one in enumerate(text, 1))
    lines = (line for path in texts for line in read_texts(path))
    return from_texts(chain(given, lines), keyer, with_text)
