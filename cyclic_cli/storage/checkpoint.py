"""A model in one safetensors file that describes itself."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.config import RENAMED_SOURCES, Preprocessing, as_plain, build, renamed, train_command, upgraded_settings
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.files import checksum, read_tensors, refuse_newer, write_tensors

CHECKPOINT_FORMAT = 4  # 2 knew no image–text models, 3 had other names


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model in one file: what rebuilds it stands in the header, as JSON."""

    weights: dict[str, np.ndarray]
    architecture: dict[str, Any]  # name, config, image_shape
    preprocessing: Preprocessing
    provenance: dict[str, Any]  # settings without paths, dataset by fingerprint, versions, step, validation
    fingerprint: str = ""  # of weights and architecture; filled in by `write_checkpoint`


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a self-describing `.safetensors` file. The same checkpoint gives the same bytes."""
    description = {
        "format": CHECKPOINT_FORMAT,
        "architecture": checkpoint.architecture,
        "preprocessing": as_plain(checkpoint.preprocessing),
        "provenance": checkpoint.provenance,
        "fingerprint": fingerprint_of(checkpoint.architecture, checkpoint.weights),
    }
    description["checksum"] = checksum(description)
    # One entry of the header holds it all: safetensors writes several in any order.
    write_tensors(path, checkpoint.weights, {"cyclic": json.dumps(description, sort_keys=True)})


def fingerprint_of(architecture: dict[str, Any], weights: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.hexdigest()[:32]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CyclicError when the file is damaged, newer, or no checkpoint of this program."""
    weights, header = read_tensors(path)
    try:
        description = json.loads(header["cyclic"])
        version, architecture = int(description["format"]), description["architecture"]
        shape = [int(number) for number in architecture["image_shape"]]
        if not isinstance(architecture["name"], str) or not isinstance(architecture["config"], dict) or len(shape) != 3:
            raise ValueError("not an architecture")
        refuse_newer(version, CHECKPOINT_FORMAT, path)
        if version == 1 and architecture["name"] != "linear":
            raise CyclicError(f"{path} is of version 0.1.0, whose networks were others.", "Train it again.")
        said = description.pop("checksum", None)  # files of earlier versions have none
        whole = said in (None, checksum(description))
        if not whole or description["fingerprint"] != fingerprint_of(architecture, weights):
            raise CyclicError(f"{path} is damaged: its checksum is another.", "Copy or make it again.")
        if not all(np.isfinite(value).all() for value in weights.values() if value.dtype.kind == "f"):
            raise CyclicError(f"{path} holds weights that are not finite.", "Train it again, with a lower --lr.")
        checkpoint = Checkpoint(
            weights=weights,
            architecture=architecture,
            preprocessing=build(Preprocessing, description["preprocessing"], str(path)),
            provenance=dict(description["provenance"]),
            fingerprint=str(description["fingerprint"]),
        )
        return checkpoint if version >= 4 else _upgraded(checkpoint)
    except (KeyError, ValueError, TypeError) as error:
        raise CyclicError(
            f"{path} is no checkpoint of cyclic.", "Give a run folder or its model.safetensors."
        ) from error


def _upgraded(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of an earlier format under the names of today. The fingerprint stays: embeddings refer to it."""
    config, provenance = checkpoint.architecture["config"], checkpoint.provenance
    provenance = renamed(provenance, RENAMED_SOURCES)
    if "settings" in provenance:
        provenance["settings"] = upgraded_settings(provenance["settings"])
    return replace(
        checkpoint,
        weights={_tensor_name(name): value for name, value in checkpoint.weights.items()},
        architecture=checkpoint.architecture | {"config": upgraded_settings(config)},
        provenance=provenance,
    )


def _tensor_name(name: str) -> str:
    """Today's name of a tensor: encoders were called towers, and a text encoder the tower of its tower."""
    name = re.sub(r"^towers\.", "encoders.", name)
    return re.sub(r"^encoders\.text\.tower\.", "encoders.text.encoder.", name)


def find_checkpoint(path: Path) -> Path:
    """What `--model` names: a run folder's best checkpoint, a folder with exported parts, or the file itself."""
    if path.is_dir():
        if (path / "model.safetensors").is_file():
            return path / "model.safetensors"
        if not any(path.glob("*.onnx")):
            raise CyclicError(f"{path} holds no model.", "Give a run folder, a .safetensors or an .onnx file.")
        return path
    if not path.exists():
        raise CyclicError(f"There is no model {path}.", "Give a run folder, a .safetensors or an .onnx file.")
    return path


def facts_of(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    parameters = sum(int(value.size) for value in checkpoint.weights.values())
    command = _reproduce(checkpoint.provenance)
    architecture = {name: value for name, value in checkpoint.architecture.items() if name != "facts"}  # vocabularies
    return {
        "architecture": architecture,
        "parameters": parameters,
        "bytes": path.stat().st_size,
        "preprocessing": as_plain(checkpoint.preprocessing),
        "fingerprint": checkpoint.fingerprint,
        "provenance": checkpoint.provenance,
        "reproduce": command,
        "reproduces_bit_for_bit": command is not None and not checkpoint.provenance.get("environment_changed", False),
    }


def _reproduce(provenance: dict[str, Any]) -> str | None:
    """The command that reproduces a checkpoint from its dataset; None where an earlier version recorded too little."""
    settings, environment = provenance.get("settings"), provenance.get("environment")
    if not isinstance(settings, dict) or not isinstance(environment, dict):
        return None
    threads, processes = (environment.get(name) for name in ("threads", "processes"))
    if not isinstance(threads, int) or not isinstance(processes, int):
        return None
    command = train_command(settings, threads, processes, str(environment.get("strategy", "auto")))
    further = ["--also DATASET" for _ in provenance.get("also", ())]
    return " ".join([command, *further, *(["--init-from MODEL"] if "init_from" in provenance else [])])


def describe(path: Path) -> dict[str, Any]:
    """What `cyclic info` shows of a checkpoint. Raises CyclicError when it is none, or damaged."""
    return {"kind": "checkpoint", "path": str(path), **facts_of(path)}
