"""`cyclic reconstruct`."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli import console, registry
from cyclic_cli.commands._options import (
    SOME_LEFT_OUT,
    Device,
    JsonLines,
    Null,
    OptionalSources,
    Paths,
    Quiet,
    Strict,
    SummaryFile,
    check_summary,
    paths_of,
    write_summary,
)
from cyclic_cli.errors import CyclicError, UsageError


def reconstruct(
    scans: OptionalSources = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run folder, .safetensors or .onnx file; may be repeated, to compare.",
            show_default="$CYCLIC_MODEL, runs/latest, the package's",
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(help="image; or, with a joint model, text: what it would write of a scan.")
    ] = "image",
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="With a joint model: a text to draw, in place of scans; may be repeated.", show_default=False
        ),
    ] = None,
    beams: Annotated[
        int, typer.Option(min=1, max=64, help="Of texts: candidates kept at each token; 1 is greedy.")
    ] = 1,
    length: Annotated[
        int | None, typer.Option(min=1, help="Of texts: tokens, at most.", show_default="as in training")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the outputs.")] = Path("reconstructions"),
    form: Annotated[str, typer.Option("--format", help="png (with original and difference) or npy.")] = "png",
    sheet: Annotated[
        Path | None, typer.Option(help="A PNG to write of the first 24 scans together.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs of the same name.")] = False,
    paths: Paths = True,
    summary_file: SummaryFile = None,
    device: Device = "auto",
    null: Null = False,
    strict: Strict = False,
    json: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Reconstruct scans with one model or several, and measure the error of each."""
    from cyclic_cli.inference import reconstruct as inference

    registry.check(device, ("auto", "cpu", "cuda"), "device")
    check_summary(summary_file)
    registry.check(form, inference.FORMS, "output form")
    registry.check(to, ("image", "text"), "thing to reconstruct to")
    if bool(scans) == bool(text):
        raise UsageError("Scans and --text exclude one another, and one is needed.", "Give scans, or --text.")
    if text and to != "image":
        raise UsageError("A text is drawn to an image alone.", "Leave --to out.")
    if (text or to == "text") and (sheet or form != "png"):
        raise UsageError("--sheet and --format are for reconstructions of scans as images.", "Leave them out.")
    summary = inference.ReconstructSummary()
    with console.reporting(quiet) as report:
        if text or to == "text":
            from cyclic_cli.inference import translate

            if model and len(model) > 1:
                raise UsageError("Texts are written and drawn by one model.", "Name one --model.")
            one = inference.load_checkpoint(model[0] if model else None, device, report)
            results: Iterable[Any] = (
                translate.draw_texts(text, one, out, overwrite, report)
                if text
                else translate.write_texts(paths_of(scans or [], null), one, summary, beams, length, paths, report)
            )
            columns = ["output", "remark"] if text else ["source", "text", "remark"]
        else:
            models = inference.load_models(model or [], device, report)
            results = inference.reconstruct(
                paths_of(scans or [], null), models, out, summary, form, overwrite, paths, sheet, report
            )
            columns = ["source", *(["model"] if len(models) > 1 else []), "output", "mse", "psnr", "ssim"]
        done = _shown(results, json)
    write_summary(summary_file, asdict(summary))
    if done and not json:
        console.columns(columns, done)
    if text:
        return
    if not summary.used:
        if not summary.inputs:
            raise CyclicError("There are no files in what was named.", "Give files, or folders that hold some.")
        raise CyclicError(f"None of {summary.inputs} inputs could be used.", "Each was named above, with the reason.")
    if strict and summary.rejected:
        raise typer.Exit(SOME_LEFT_OUT)


def _shown(results: Iterable[Any], json: bool) -> list[dict[str, Any]]:
    """The results as rows of a table; with `json` each is put on stdout at once, and none is kept."""
    rows = []
    for result in results:
        if json:
            console.write_json(asdict(result))
        else:
            rows.append(asdict(result))
    return rows
