"""The command `cyclic info`: describes a file or folder that other commands wrote."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli import console
from cyclic_cli.commands import _closed_form
from cyclic_cli.commands._options import Json, Quiet, show
from cyclic_cli.errors import CyclicError, UsageError


def info(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="Dataset folder, run folder, .safetensors file, .onnx file, .parquet file of embeddings, or folder or "
            ".onnx file of a pretrained encoder.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Describe the cache of features that encoders gave: sizes and last use.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="With --cache: remove it, except what another process uses.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Describe a dataset, a run, a checkpoint, an exported model, embeddings, an encoder; or the cache of features."""
    if cache == (path is not None) or (remove and not cache):
        raise UsageError(
            "Either a path or --cache must be given, and --remove only with --cache.",
            "Try: cyclic info PATH, or: cyclic info --cache",
        )
    if path is None:
        from cyclic_cli.codes import cache_size

        described = cache_size.remove() if remove else cache_size.describe()
        path = Path(described["path"])
        if not json and "by_encoder" in described:
            named = {_name_of(key, one): _for_people(one) for key, one in described["by_encoder"].items()}
            described = described | {"by_encoder": named}
        if described.get("kept"):
            console.print_line(f"{described['kept']} of the encoders are in use and stay: repeat this later.", "yellow")
    else:
        described = _describe(path)
    if not json:
        described = _with_lines(described)
    kind = described["kind"]
    show(f"{kind[0].upper()}{kind[1:]} {path}", described, json)


def _with_lines(described: Any) -> Any:
    """A description with the closed form of a model as lines for people."""
    if not isinstance(described, dict):
        return described
    return {
        name: _closed_form.shown(value) if name == "alignment" and isinstance(value, dict) else _with_lines(value)
        for name, value in described.items()
    }


def _name_of(key: str, encoder: dict[str, Any]) -> str:
    """What an encoder of the cache is called: its name, and enough of its key to tell it from others of this name."""
    return f"{encoder['encoder']} {key[:8]}" if encoder["encoder"] else key[:8]


def _for_people(encoder: dict[str, Any]) -> dict[str, Any]:
    """What people want to know about an encoder of the cache, without what nobody wrote down."""
    from cyclic_cli.codes.cache_size import as_text

    shown = {
        "modality": encoder["modality"], "device": encoder["device"], "torch": encoder["torch"],
        "items": encoder["items"], "size": as_text(encoder["bytes"]), "last use": encoder["last_use"],
        "in use": encoder["in_use"],
    }  # fmt: skip
    return {name: value for name, value in shown.items() if value is not None}


def _describe(path: Path) -> dict[str, Any]:
    """The description of a file or folder that this program wrote, or of an encoder. Raises CyclicError of others."""
    from cyclic_cli.pretrained import description

    is_encoder = description.is_encoder(path)
    if path.suffix == ".onnx" and not is_encoder:
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
    if is_encoder:
        return description.describe(path)
    if path.is_dir() and not (path / "model.safetensors").exists():
        raise CyclicError(
            f"{path} is neither a dataset nor a run nor an encoder.",
            "Give one of these, a .safetensors, .onnx or .parquet file; an encoder's folder has a config.json.",
        )
    return checkpoint.describe(checkpoint.find_checkpoint(path))
