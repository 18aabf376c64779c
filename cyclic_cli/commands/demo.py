"""The command `cyclic demo`: draws synthetic chest radiographs with reports."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import console, environment
from cyclic_cli.commands._options import Json, Quiet, Workers, show
from cyclic_cli.errors import CyclicError


def demo(
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed. Another seed draws other patients.")] = 0,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Draw 2,000 to 3,000 pixels per side, as detectors do; for benchmarks.")
    ] = False,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw synthetic chest radiographs as DICOM files, with reports and a table of their findings."""
    from cyclic_cli.events import Progress
    from cyclic_cli.phantom import dataset as phantom

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CyclicError(f"{out} exists and is not empty.", "Name another --out.")
    with console.reporting(quiet) as report:
        summary = phantom.write_demo(
            out, count, seed, full_size, workers or environment.available_cpus(),
            lambda done, total: report(Progress(done, total, "synthetic radiographs")),
        )  # fmt: skip
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(summary).items()}
    show("Demo", values, json)
    if not json and not quiet:
        console.print_line(f"Next: cyclic prepare {out} --already-deidentified --out dataset")
