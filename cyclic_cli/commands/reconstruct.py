"""The command `cyclic reconstruct`: applies a decoder to scans or to texts."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli import console, registry
from cyclic_cli.commands._options import (
    DEFAULT_MODEL,
    DEVICES,
    SOME_LEFT_OUT,
    Device,
    JsonLines,
    Null,
    OptionalSources,
    Paths,
    Quiet,
    Strict,
    SummaryFile,
    check_some_used,
    check_summary,
    paths_of,
    write_summary,
)
from cyclic_cli.errors import UsageError
from cyclic_cli.events import Note


def reconstruct(
    scans: OptionalSources = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run folder, .safetensors file or .onnx file; may be repeated to compare models.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(help="Output for each scan: image, or text, which an image–text model generates.")
    ] = "image",
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text from which an image–text model generates an image, in place of scans; may be repeated.",
            show_default=False,
        ),
    ] = None,
    beams: Annotated[
        int, typer.Option(min=1, max=64, help="For texts: beams of the beam search; 1 is greedy decoding.")
    ] = 1,
    length: Annotated[
        int | None, typer.Option(min=1, help="For texts: tokens, at most.", show_default="the limit of the training")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the outputs.")] = Path("reconstructions"),
    form: Annotated[
        str,
        typer.Option(
            "--format", help="Output format: png (original, reconstruction and difference) or npy (the reconstruction)."
        ),
    ] = "png",
    sheet: Annotated[
        Path | None, typer.Option(help="PNG contact sheet to write, with the first 24 scans.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    paths: Paths = True,
    summary_file: SummaryFile = None,
    device: Device = "auto",
    null: Null = False,
    strict: Strict = False,
    json: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Reconstruct scans with one or several models, and measure the errors."""
    from cyclic_cli.imaging.guesses import lines_of
    from cyclic_cli.inference.load import load_checkpoint, load_models
    from cyclic_cli.inference.reconstruct import FORMS, ReconstructSummary, reconstruct_scans

    registry.check(device, DEVICES, "device")
    check_summary(summary_file)
    registry.check(form, FORMS, "output format")
    registry.check(to, ("image", "text"), "output of --to")
    _check_combination(scans, text, to, is_default_output=form == "png" and sheet is None)
    summary = ReconstructSummary()
    with console.reporting(quiet) as report:
        if text or to == "text":
            from cyclic_cli.inference.translate import generate_images, generate_texts

            if model and len(model) > 1:
                raise UsageError("Only one model at a time translates between images and texts.", "Name one --model.")
            one = load_checkpoint(model[0] if model else None, device, report)
            results: Iterable[Any] = (
                generate_images(text, one, out, overwrite, report)
                if text
                else generate_texts(paths_of(scans or [], null), one, summary, beams, length, paths, report)
            )
            columns = ["output", "remark"] if text else ["source", "text", "remark"]
        else:
            models = load_models(model or [], device, report)
            results = reconstruct_scans(
                paths_of(scans or [], null), models, out, summary, form, overwrite, paths, sheet, report
            )
            columns = ["source", *(["model"] if len(models) > 1 else []), "output", "mse", "psnr", "ssim"]
        rows = _rows(results, json)
        for line in lines_of(summary.guessed):
            report(Note(line))
    write_summary(summary_file, asdict(summary))
    if rows and not json:
        console.columns(columns, rows)
    if text:
        return
    check_some_used(summary.inputs, summary.used)
    if strict and summary.rejected:
        raise typer.Exit(SOME_LEFT_OUT)


def _check_combination(scans: list[str] | None, text: list[str] | None, to: str, is_default_output: bool) -> None:
    """Raise UsageError for options that cannot be combined."""
    if bool(scans) == bool(text):
        raise UsageError("Either scans or --text must be given, not both.", "Give scans, or --text.")
    if text and to != "image":
        raise UsageError("A text can only be turned into an image.", "Leave --to out.")
    if (text or to == "text") and not is_default_output:
        raise UsageError("--sheet and --format only apply to reconstructed scans.", "Leave them out.")


def _rows(results: Iterable[Any], json: bool) -> list[dict[str, Any]]:
    """The results as rows of a table. With `json`, each result is written to stdout at once, and none is kept."""
    rows = []
    for result in results:
        if json:
            console.write_json(asdict(result))
        else:
            rows.append(asdict(result))
    return rows
