"""`cyclic demo`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import config as settings
from cyclic_cli import console
from cyclic_cli.commands._options import Json, Quiet, Workers, show
from cyclic_cli.errors import CyclicError


def demo(
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other patients.")] = 0,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="2,000 to 3,000 pixels, as films are; for benchmarks.")
    ] = False,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw chest phantoms as DICOM, with reports and the truth about their findings."""
    from cyclic_cli.events import Progress
    from cyclic_cli.phantom import dataset as phantom

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CyclicError(f"{out} exists and is not empty.", "Name another --out.")
    with console.reporting(quiet) as report:
        summary = phantom.write_demo(
            out, count, seed, full_size, workers or settings.available_cpus(),
            lambda done, total: report(Progress(done, total, "phantoms")),
        )  # fmt: skip
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(summary).items()}
    show("Demo", values, json)
    if not json and not quiet:
        console.say(f"Next: cyclic prepare {out} --already-deidentified --out dataset")
