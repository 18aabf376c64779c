"""`cyclic export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import console
from cyclic_cli.commands._options import Checkpoint, Json, Quiet, show

PARTS = "autoencoder, encoder, decoder, image-encoder, text-encoder or all"


def export(
    model: Checkpoint = None,
    to: Annotated[str, typer.Option(help="The form: onnx.")] = "onnx",
    part: Annotated[str, typer.Option(help=f"What of the model: {PARTS}.")] = "autoencoder",
    out: Annotated[
        Path | None,
        typer.Option(help="The file; with --part all the folder.", show_default="PART.onnx, or the folder exported"),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Dataset to check it with, and to take int8's ranges from.", show_default="phantoms, drawn for it"
        ),
    ] = None,
    with_preprocessing: Annotated[
        bool,
        typer.Option("--with-preprocessing", help="Put letterbox, reduction and scaling inside: it takes any size."),
    ] = False,
    quantize: Annotated[str | None, typer.Option(help="fp16 or int8: fewer bits a number.", show_default=False)] = None,
    licence: Annotated[
        str, typer.Option(help="Of the weights: a line for the file's metadata.", show_default=False)
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of the same name.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as ONNX, checked against the original, for programs without torch."""
    from cyclic_cli import registry

    registry.check(to, ("onnx",), "form")
    with console.reporting(quiet) as report:
        from cyclic_cli.export import task
        from cyclic_cli.inference.reconstruct import load_checkpoint

        loaded = load_checkpoint(model, "cpu", report)
        place = out or Path("exported" if part == "all" else f"{part}.onnx")
        summary = asdict(
            task.export(
                loaded, place, part, dataset, with_preprocessing, quantize or "float32", licence, overwrite, report
            )
        )
    if json:
        console.write_json(summary)
        return
    parts = summary.pop("parts")
    show("Export", summary, json)
    rows = [{"part": name, **figures} for name, figures in parts.items()]
    console.columns(list(dict.fromkeys(key for row in rows for key in row)), rows)
