"""`cyclic info`."""

from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli.commands._options import Json, Quiet, show


def info(
    path: Annotated[
        Path, typer.Argument(help="A data set, a run folder, a checkpoint, an .onnx file or embeddings (.parquet).")
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a data set, a run, a checkpoint, an exported model or a file of embeddings is."""
    if path.suffix == ".onnx":
        from cyclic_cli.onnx_file import describe
    elif path.suffix == ".parquet":
        from cyclic_cli.embedding_file import describe
    else:
        from cyclic_cli.storage import describe

    described = describe(path)
    kind = described["kind"]
    show(f"{kind[0].upper()}{kind[1:]} {path}", described, json)
