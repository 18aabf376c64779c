"""Reads and writes checkpoints: a model in one safetensors file whose header has all that is needed to rebuild it."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.config import Preprocessing, as_plain, stored_preprocessing, train_command
from cyclic_cli.earlier_names import upgraded_provenance, upgraded_settings
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.files import checksum, read_tensors, refuse_newer, write_tensors

CHECKPOINT_FORMAT = 5  # format 2 had no image–text models; 3 other names of tensors and settings, 4 of settings


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model: its weights, and the metadata in the header of its file."""

    weights: dict[str, np.ndarray]
    architecture: dict[str, Any]  # name, config, image_shape
    preprocessing: Preprocessing
    provenance: dict[str, Any]  # settings without paths, fingerprints of datasets, versions, step, validation
    fingerprint: str = ""  # of weights and architecture; filled in by `write_checkpoint`


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint. Equal checkpoints give equal bytes. Raises CyclicError when writing fails."""
    description = {
        "format": CHECKPOINT_FORMAT,
        "architecture": checkpoint.architecture,
        "preprocessing": as_plain(checkpoint.preprocessing),
        "provenance": checkpoint.provenance,
        "fingerprint": fingerprint_of(checkpoint.architecture, checkpoint.weights),
    }
    description["checksum"] = checksum(description)
    # All metadata are one header entry, because safetensors writes several entries in a random order.
    write_tensors(path, checkpoint.weights, {"cyclic": json.dumps(description, sort_keys=True)})


def fingerprint_of(architecture: dict[str, Any], weights: dict[str, np.ndarray]) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of architecture and weights."""
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.hexdigest()[:32]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CyclicError if the file is damaged, too new, or not a checkpoint of this program."""
    weights, header = read_tensors(path)
    try:
        description = json.loads(header["cyclic"])
        version, architecture = int(description["format"]), description["architecture"]
        shape = [int(number) for number in architecture["image_shape"]]
        if not isinstance(architecture["name"], str) or not isinstance(architecture["config"], dict) or len(shape) != 3:
            raise ValueError("not an architecture")
        refuse_newer(version, CHECKPOINT_FORMAT, path)
        if version == 1 and architecture["name"] != "linear":
            raise CyclicError(f"{path} is of version 0.1.0, which had different networks.", "Train it again.")
        recorded = description.pop("checksum", None)  # files of earlier versions have none
        intact = recorded in (None, checksum(description))
        if not intact or description["fingerprint"] != fingerprint_of(architecture, weights):
            raise CyclicError(f"{path} is damaged: its checksum does not match.", "Copy or make it again.")
        if not all(np.isfinite(value).all() for value in weights.values() if value.dtype.kind == "f"):
            raise CyclicError(f"{path} holds weights that are not finite.", "Train it again, with a lower --lr.")
        checkpoint = Checkpoint(
            weights=weights,
            architecture=architecture,
            preprocessing=stored_preprocessing(description["preprocessing"], str(path)),
            provenance=dict(description["provenance"]),
            fingerprint=str(description["fingerprint"]),
        )
        return checkpoint if version >= 5 else _upgraded(checkpoint)
    except (KeyError, ValueError, TypeError) as error:
        raise CyclicError(
            f"{path} is not a checkpoint of cyclic.", "Give a run folder or its model.safetensors."
        ) from error


def _upgraded(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of an earlier format with present names. It keeps its fingerprint, which embeddings refer to."""
    config = checkpoint.architecture["config"]
    return replace(
        checkpoint,
        weights={_tensor_name(name): value for name, value in checkpoint.weights.items()},
        architecture=checkpoint.architecture | {"config": upgraded_settings(config)},
        provenance=upgraded_provenance(checkpoint.provenance),
    )


def _tensor_name(name: str) -> str:
    """The present name of a tensor. Format 3 called encoders towers, and the inner text encoder a tower as well."""
    name = re.sub(r"^towers\.", "encoders.", name)
    return re.sub(r"^encoders\.text\.tower\.", "encoders.text.encoder.", name)


def find_checkpoint(path: Path) -> Path:
    """The model that `--model` names: the best checkpoint of a run folder, a folder of ONNX files, or the file itself.

    Raises:
        CyclicError: the path does not exist, or the folder does not contain a model.
    """
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
    """The metadata of a checkpoint as plain values. Raises CyclicError as `read_checkpoint` does."""
    checkpoint = read_checkpoint(path)
    parameters = sum(int(value.size) for value in checkpoint.weights.values())
    command = _reproduce(checkpoint)
    # The facts of an image–text model hold whole vocabularies.
    architecture = {name: value for name, value in checkpoint.architecture.items() if name != "facts"}
    return {
        "architecture": architecture,
        "parameters": parameters,
        "bytes": path.stat().st_size,
        "preprocessing": as_plain(checkpoint.preprocessing),
        "encoders": pretrained_encoders(checkpoint.architecture),
        "fingerprint": checkpoint.fingerprint,
        "provenance": checkpoint.provenance,
        "reproduce": command,
        "reproduces_bit_for_bit": command is not None and not checkpoint.provenance.get("environment_changed", False),
    }


def pretrained_encoders(architecture: dict[str, Any], modality: str = "") -> list[dict[str, str]]:
    """Family, fingerprint and licence of the pretrained encoders of a model, or of one of its modalities."""
    facts = architecture.get("facts", {})
    found = [one for name, own in facts.items() if modality in ("", name) for one in own.get("encoders", ())]
    return [{key: str(one[key]) for key in ("family", "fingerprint", "licence")} for one in found]


def _reproduce(checkpoint: Checkpoint) -> str | None:
    """The command that reproduces a checkpoint; None if an earlier version recorded too little of its settings.

    Words in capitals stand for paths. That of a pretrained encoder has the beginning of its fingerprint.
    """
    provenance = checkpoint.provenance
    settings, environment = provenance.get("settings"), provenance.get("environment")
    if not isinstance(settings, dict) or not isinstance(environment, dict):
        return None
    threads, processes = (environment.get(name) for name in ("threads", "processes"))
    if not isinstance(threads, int) or not isinstance(processes, int):
        return None
    command = train_command(settings, threads, processes, str(environment.get("strategy", "auto")))
    further = ["--also DATASET" for _ in provenance.get("also", ())]
    if "init_from" in provenance:  # whose encoders the run takes
        return " ".join([command, *further, "--init-from MODEL"])
    further += [
        f"--{name}-encoder ENCODER_{one['fingerprint'][:8]}"
        for name in checkpoint.architecture.get("facts", {})
        for one in pretrained_encoders(checkpoint.architecture, name)
    ]
    return " ".join([command, *further])


def describe(path: Path) -> dict[str, Any]:
    """The output of `cyclic info` for a checkpoint. Raises CyclicError as `read_checkpoint` does."""
    return {"kind": "checkpoint", "path": str(path), **facts_of(path)}
