"""`cyclic reconstruct`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import console, registry
from cyclic_cli.commands._options import SOME_LEFT_OUT, JsonLines, Null, Quiet, Sources, Strict, paths_of
from cyclic_cli.errors import CyclicError


def reconstruct(
    scans: Sources,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run folder or .safetensors file; may be repeated, to compare.",
            show_default="$CYCLIC_MODEL, runs/latest, the package's",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the outputs.")] = Path("reconstructions"),
    form: Annotated[str, typer.Option("--format", help="png (with original and difference) or npy.")] = "png",
    sheet: Annotated[
        Path | None, typer.Option(help="A PNG to write of the first 24 scans together.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs of the same name.")] = False,
    paths: Annotated[
        bool, typer.Option("--paths/--no-paths", help="Name scans by their path, or by a running number.")
    ] = True,
    summary_file: Annotated[
        Path | None, typer.Option("--summary", help="Write the totals there, as JSON.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    null: Null = False,
    strict: Strict = False,
    json: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Reconstruct scans with one model or several, and measure the error of each."""
    from cyclic_cli import inference
    from cyclic_cli.storage import write_text

    registry.check(device, ("auto", "cpu", "cuda"), "device")
    registry.check(form, inference.FORMS, "output form")
    results: list[inference.Reconstruction] = []
    summary = inference.ReconstructSummary()
    with console.talk(quiet) as report:
        models = inference.load_models(model or [], device, report)
        for result in inference.reconstruct(
            paths_of(scans, null), models, out, summary, form, overwrite, paths, sheet, report
        ):
            if json:
                console.write_json(asdict(result))
            else:
                results.append(result)
    if summary_file:
        write_text(summary_file, console.as_json(asdict(summary)) + "\n")
    if results:
        names = ["source", *(["model"] if len(models) > 1 else []), "output", "mse", "psnr", "ssim"]
        console.columns(names, [asdict(result) for result in results])
    if not summary.used:
        if not summary.inputs:
            raise CyclicError("There are no files in what was named.", "Give files, or folders that hold some.")
        raise CyclicError(f"None of {summary.inputs} inputs could be used.", "Each was named above, with the reason.")
    if strict and summary.rejected:
        raise typer.Exit(SOME_LEFT_OUT)
