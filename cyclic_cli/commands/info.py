"""The command `cyclic info`: describes a file or folder that other commands wrote."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli.commands._options import Json, Quiet, show
from cyclic_cli.errors import CyclicError


def info(
    path: Annotated[
        Path,
        typer.Argument(
            help="Dataset folder, run folder, .safetensors file, .onnx file, or .parquet file of embeddings."
        ),
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Describe a dataset, a run, a checkpoint, an exported model or a file of embeddings."""
    described = _describe(path)
    kind = described["kind"]
    show(f"{kind[0].upper()}{kind[1:]} {path}", described, json)


def _describe(path: Path) -> dict[str, Any]:
    """The description of a stored file or folder. Raises CyclicError if no command of this program wrote it."""
    if path.suffix == ".onnx":
        from cyclic_cli.storage import onnx_file

        return onnx_file.describe(path)
    if path.suffix == ".parquet":
        from cyclic_cli.storage import embeddings

        return embeddings.describe(path)

    from cyclic_cli.storage import checkpoint, dataset, run

    if dataset.is_dataset(path):
        return dataset.describe(path)
    if path.is_dir() and (path / "config.yaml").exists():
        return run.describe(path)
    if (path / ".unfinished").is_dir():
        raise CyclicError(f"{path} is an unfinished dataset.", "Repeat the `cyclic prepare` command that started it.")
    if path.is_dir() and not (path / "model.safetensors").exists():
        raise CyclicError(
            f"{path} is neither a dataset nor a run.", "Give a dataset, a run folder or a .safetensors file."
        )
    return checkpoint.describe(checkpoint.find_checkpoint(path))
