"""`cyclic info`."""

from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli.commands._options import Json, Quiet, show


def info(
    path: Annotated[Path, typer.Argument(help="A data set, a run folder or a checkpoint.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a data set, a run or a checkpoint is."""
    from cyclic_cli.storage import describe

    described = describe(path)
    show(f"{described['kind'].capitalize()} {path}", described, json)
