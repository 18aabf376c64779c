"""The command `cyclic export`: writes a checkpoint as ONNX."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import console
from cyclic_cli.commands._options import Checkpoint, Json, Quiet, show

PARTS = "autoencoder, encoder, decoder, image-encoder, text-encoder or all"


def export(
    model: Checkpoint = None,
    to: Annotated[str, typer.Option(help="Output format: onnx.")] = "onnx",
    part: Annotated[str, typer.Option(help=f"Part of the model to export: {PARTS}.")] = "autoencoder",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output file, or output folder with --part all.", show_default="PART.onnx, or the folder exported"
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Dataset for the check, and for the calibration of int8.",
            show_default="synthetic radiographs, drawn for the check",
        ),
    ] = None,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="Include padding, resizing and scaling: the file then takes 8-bit images of any size.",
        ),
    ] = False,
    quantize: Annotated[
        str | None, typer.Option(help="Store numbers with fewer bits: fp16 or int8.", show_default=False)
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, written to the metadata of the file.", show_default=False)
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a model as ONNX for use without torch, and check the file against the checkpoint."""
    from cyclic_cli import registry

    registry.check(to, ("onnx",), "output format")
    with console.reporting(quiet) as report:
        from cyclic_cli.export import task
        from cyclic_cli.inference.load import load_checkpoint

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
