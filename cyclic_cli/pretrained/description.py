"""Describes a pretrained encoder for `cyclic info`: what it is, what it takes, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclic_cli.errors import CyclicError, UsageError

if TYPE_CHECKING:  # these modules load torch, which a look at the names of files does not need
    from cyclic_cli.pretrained.encoder import Geometry, PretrainedEncoder

SETTINGS = ("config.json", "modules.json", "open_clip_config.json")  # one of them lies in every folder with an encoder
NOT_STATED = "not stated"


def is_encoder(path: Path) -> bool:
    """Whether a path looks like a pretrained encoder of another program, or names outputs of one: `FILE.onnx#NAME`."""
    if ".onnx#" in path.name:
        return True
    if path.suffix == ".onnx":
        from cyclic_cli.storage import onnx_file

        return path.is_file() and not onnx_file.is_described(path)
    return any((path / name).is_file() for name in SETTINGS)


def describe(path: Path) -> dict[str, Any]:
    """The output of `cyclic info` for an encoder; for an image–text model with a table for each half.

    Raises:
        CyclicError: the file or folder cannot be used as an encoder of images or texts; the message says why.
    """
    from cyclic_cli.pretrained.encoder import MODALITIES

    found: dict[str, dict[str, Any]] = {}
    errors: dict[str, CyclicError] = {}
    for modality in MODALITIES:
        try:
            found[modality] = _described(path, modality)
        except CyclicError as error:
            errors[modality] = error
    if not found:
        raise _explained(path, [*errors.values()])
    kind = f"{' and '.join(found)} encoder"
    damaged = {name: {"unusable": error.message} for name, error in errors.items() if not _is_of_other(error)}
    halves = found | damaged
    return {"kind": kind, "path": str(path), **(halves if len(halves) > 1 else halves.popitem()[1])}


def _is_of_other(error: CyclicError) -> bool:
    """Whether an error only says that an encoder is of the other modality, or that an option is wrong."""
    return isinstance(error, UsageError)


def _explained(path: Path, errors: list[CyclicError]) -> CyclicError:
    """The error that says why a path is no encoder."""
    error = next((one for one in errors if not _is_of_other(one)), errors[0])
    if path.suffix != ".onnx":
        return error
    return CyclicError(f"{path} lacks the metadata of cyclic, and is no encoder. {error.message}", error.hint)


def _described(path: Path, modality: str) -> dict[str, Any]:
    encoder, is_normalised = _opened(path, modality)
    facts = encoder.facts
    described: dict[str, Any] = {
        "format": facts.kind,
        "family": facts.family,
        "licence": facts.licence or NOT_STATED,
        "outputs": {output.name: output.dims for output in facts.outputs},
        "parameters": _parameters(encoder),
        "fingerprint": facts.fingerprint,
        "can_be_trained": encoder.trainable,
    }
    if facts.geometry is not None:
        described |= _shown(facts.geometry, is_normalised)
    if facts.window is not None:
        described["tokens"] = facts.window
    return described


def _opened(path: Path, modality: str) -> tuple[PretrainedEncoder, bool]:
    """An encoder, and whether its normalisation is stated. Without one it can be described, but not used."""
    from cyclic_cli.pretrained.find import open_encoder
    from cyclic_cli.pretrained.geometry import NORMALISATION

    try:
        return open_encoder(str(path), modality, None, {}), True
    except UsageError as error:
        if modality != "image" or NORMALISATION not in error.hint:
            raise
    return open_encoder(str(path), modality, None, {"mean": 0.0, "std": 1.0}), False


def _parameters(encoder: PretrainedEncoder) -> int:
    from cyclic_cli.pretrained.onnx_graph import OnnxEncoder

    if isinstance(encoder, OnnxEncoder):
        return encoder.parameter_count()
    return sum(parameter.numel() for parameter in encoder.parameters())


def _shown(geometry: Geometry, is_normalised: bool) -> dict[str, Any]:
    from cyclic_cli.pretrained.geometry import NORMALISATION

    return {
        "size": geometry.native,
        "channels": geometry.channels,
        "mean": list(geometry.mean) if is_normalised else NOT_STATED,
        "std": list(geometry.std) if is_normalised else NOT_STATED,
        **({} if is_normalised else {"train_with": NORMALISATION}),
        "prepare": f"cyclic prepare --size {geometry.native}",
    }
