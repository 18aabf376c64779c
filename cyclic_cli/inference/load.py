"""Load trained models: checkpoints with torch, exported models with ONNX Runtime."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import UsageError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.inference.names import distinct
from cyclic_cli.storage.checkpoint import find_checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.run import RunFolder

if TYPE_CHECKING:
    from cyclic_cli.inference.onnx_model import OnnxModel
    from cyclic_cli.inference.torch_model import TorchModel

    Model = TorchModel | OnnxModel

PACKAGED_MODEL = Path(__file__).parents[1] / "assets" / "default.safetensors"
PACKAGED_EXPORT = PACKAGED_MODEL.with_suffix(".onnx")  # the same model, for commands that run without torch


def load_model(named: Path | None, device: str = "auto", report: Report = silent) -> "Model":
    """Load a model.

    Args:
        named: An `.onnx` file or a folder of such files, which ONNX Runtime runs; or a run folder or checkpoint, which
            torch runs. None takes `$CYCLIC_MODEL`, else `runs/latest`, else the packaged model.
        device: auto, cpu or cuda.
        report: Gets a Note that says which model is taken when none is named.

    Raises:
        CyclicError: the model cannot be found or loaded.
    """
    path = find_checkpoint(named) if named else _find_unnamed(PACKAGED_EXPORT, report)
    if path.suffix == ".onnx" or path.is_dir():
        from cyclic_cli.inference.onnx_model import OnnxModel

        return OnnxModel(path, device)
    from cyclic_cli.inference.torch_model import TorchModel

    return TorchModel(path, device)


def load_checkpoint(named: Path | None, device: str = "auto", report: Report = silent) -> "TorchModel":
    """Load a model for work that needs torch. Arguments are those of `load_model`, but for exported models.

    Raises:
        UsageError: the model is an exported one.
        CyclicError: the model cannot be found or loaded.
    """
    from cyclic_cli.inference.torch_model import TorchModel

    path = find_checkpoint(named) if named else _find_unnamed(PACKAGED_MODEL, report)
    if path.suffix == ".onnx" or path.is_dir():
        raise UsageError(
            f"{path} is an exported model, but this command needs a checkpoint.",
            "Name a run folder or .safetensors file.",
        )
    return TorchModel(path, device)


def load_models(named: list[Path], device: str = "auto", report: Report = silent) -> "dict[str, Model]":
    """Load models that are to be compared on the same images.

    Args:
        named: See `load_model`; an empty list takes one model, as None does there.
        device: auto, cpu or cuda.
        report: Gets a Note that says which model is taken when none is named.

    Returns:
        The models, by the name of their run folder or file.

    Raises:
        UsageError: the models differ in their preprocessing.
        CyclicError: a model cannot be found or loaded, or has no image encoder.
    """
    checkpoints = [find_checkpoint(path) for path in named] or [_find_unnamed(PACKAGED_EXPORT, report)]
    places = [_named_after(path) for path in checkpoints]
    names = distinct([place.name for place in places], [[place.parent.name] for place in places])
    models = {name: load_model(path, device) for name, path in zip(names, checkpoints, strict=True)}
    for model in models.values():
        model.require("image")
    (first, one), *others = models.items()
    for name, other in others:
        differing = _differing(one.preprocessing, other.preprocessing, but=["rendering"])  # theirs is of the past
        if differing:
            raise UsageError(
                f"The models {first} and {name} differ in their preprocessing: {', '.join(differing)}.",
                "Compare models that were trained on one dataset.",
            )
    return models


def using_cache(model: "Model", report: Report = silent) -> AbstractContextManager[object]:
    """See `TorchModel.using_cache`; of an exported model there is no cache."""
    using = getattr(model, "using_cache", None)
    found: AbstractContextManager[object] = using(report) if using else nullcontext()
    return found


def check_fits(stored: StoredDataset, model: "Model", report: Report = silent) -> None:
    """Check that a model can be applied to the images of a dataset; warn when their preprocessing differs.

    Raises:
        UsageError: the model takes images of another size.
    """
    size, wanted = stored.facts.preprocessing.size, model.preprocessing.size
    if "image" in model.modalities and size != wanted:
        raise UsageError(
            f"The dataset has images of {size} × {size} pixels, the model takes {wanted} × {wanted}.",
            f"Prepare it with --size {wanted}.",
        )
    if differing := _differing(stored.facts.preprocessing, model.preprocessing):
        report(Note(f"dataset and model differ in their preprocessing: {', '.join(differing)}", warning=True))


def _differing(one: Preprocessing, other: Preprocessing, but: Sequence[str] = ()) -> list[str]:
    """The settings in which two preprocessings differ, with both values, except those named in `but`."""
    ours, theirs = asdict(one), asdict(other)
    return [f"{key} {ours[key]} and {theirs[key]}" for key in ours if key not in but and ours[key] != theirs[key]]


def _named_after(checkpoint: Path) -> Path:
    """The path whose name a model gets: its run folder, or its file without suffix when that lies in no run folder."""
    in_run = RunFolder(checkpoint.parent).best == checkpoint
    return (checkpoint.parent if in_run else checkpoint.with_suffix("")).resolve()


def _find_unnamed(packaged: Path, report: Report) -> Path:
    """The model to use when the user names none; `packaged` is the last resort."""
    if os.environ.get("CYCLIC_MODEL"):
        return find_checkpoint(Path(os.environ["CYCLIC_MODEL"]))
    latest = Path("runs/latest")
    if latest.is_dir():
        report(Note(f"model: runs/latest, which is {latest.resolve().name}"))
        return find_checkpoint(latest)
    report(Note("model: the packaged model (trained on chest radiographs, real and synthetic)"))
    return packaged
