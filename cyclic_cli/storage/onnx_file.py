"""ONNX files: what `cyclic export` writes, and the check of those that come from elsewhere, before anything runs them.

A file is one part of a model. What it is stands in its metadata, as JSON under `cyclic`: part, architecture,
preprocessing, tokenizer, fingerprint and licence. Inputs and outputs are called by what they hold:

    part                  takes                          gives
    autoencoder           image                          reconstruction, embedding
    encoder               image                          code, embedding
    decoder               code                           reconstruction
    MODALITY-encoder        image; input_ids and           embedding
                          attention_mask; or MODALITY

Images are (N, C, S, S) float32 in [0, 1]; with the preprocessing inside, (N, 1, H, W) uint8 of any size. Texts are
tokens (N, L) int64 and where there are some, 1 or 0; reconstructions (N, C, S, S) float32, nominally in [0, 1];
embeddings (N, D) float32 of unit norm.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from cyclic_cli.config import Preprocessing, as_plain, build, upgraded_settings
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.files import checksum, refuse_newer, replacing

FORMAT = 2  # 1 had other names of parts
KEY = "cyclic"  # of the metadata
OPSETS = ("", "ai.onnx", "ai.onnx.ml")  # the sets of operators that are ONNX's own
LARGEST = 2**31 - 2**20  # bytes of a file with its weights inside: protobuf's limit, and room for the rest
FAILED = ".failed.onnx"  # how the name of a part ends that did not pass its check
FOREIGN = "Give a file that `cyclic export` made."


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an ONNX file says of itself."""

    part: str
    architecture: dict[str, Any]  # name, config, image_shape
    preprocessing: Preprocessing
    rendered: bool = False  # takes images as they are shown, of any size: the preprocessing is inside
    tokenizer: dict[str, Any] = field(default_factory=dict)  # vocabulary and limit, of texts
    precision: str = "float32"  # float32, fp16 or int8
    fingerprint: str  # of the checkpoint
    licence: str = ""  # of the weights, as the user says it
    provenance: dict[str, Any] = field(default_factory=dict)  # as the checkpoint has it


def write(path: Path, model: onnx.ModelProto, description: Description) -> None:
    """Write a model with its description; from 2 GiB on its weights go to a file beside it, `NAME.onnx.data`.

    Raises:
        CyclicError: the disk is full, or the folder cannot be written.
    """
    values = {"format": FORMAT, "weights": _weights_checksum(model, path.parent), **as_plain(description)}
    values["checksum"] = checksum(values)
    used = {node.domain for node in _nodes(model.graph)} | {""}
    sets = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:], model.metadata_props[:]
    model.opset_import.extend(sets)
    _remove_traces(model.graph)
    onnx.helper.set_model_props(model, {KEY: json.dumps(values, sort_keys=True)})
    with replacing(path) as draft:
        if model.ByteSize() < LARGEST:
            draft.write_bytes(model.SerializeToString(deterministic=True))
            return
        data = _data_of(path)
        with replacing(data) as weights:
            onnx.save(model, draft, save_as_external_data=True, location=weights.name, convert_attribute=True)
            _name_data(draft, data.name)


def _remove_traces(graph: onnx.GraphProto) -> None:
    """Remove what the exporter notes of its own code: stack traces hold paths of the machine that exported."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for node in _nodes(graph):
        del node.metadata_props[:]
        node.doc_string = ""


def describe(path: Path) -> dict[str, Any]:
    """What `cyclic info` shows of an exported part. Raises CyclicError as `read` does."""
    model, description = read(path)
    said = as_plain(description)
    tokenizer = said.pop("tokenizer")  # too long to be read
    return {
        "kind": "ONNX model",
        "path": str(path),
        **said,
        **({"tokens": tokenizer["limit"]} if tokenizer else {}),
        "inputs": {value.name: _kind_of(value) for value in model.graph.input},
        "outputs": {value.name: _kind_of(value) for value in model.graph.output},
        "opset": max((entry.version for entry in model.opset_import), default=0),
        "bytes": size_of(path),
    }


def size_of(path: Path) -> int:
    """Bytes of a file, and of the weights beside it."""
    return path.stat().st_size + (_data_of(path).stat().st_size if _data_of(path).exists() else 0)


def _kind_of(value: onnx.ValueInfoProto) -> str:
    """Shape and kind of number of an input or output, such as `batch × 1 × 224 × 224 float`."""
    tensor = value.type.tensor_type
    sides = [side.dim_param or str(side.dim_value) for side in tensor.shape.dim]
    return f"{' × '.join(sides)} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}"


def rename(path: Path, new: Path) -> None:
    """Give a file that `write` made, and the weights beside it, another name in their folder."""
    if _data_of(path).exists():
        _name_data(path, _data_of(new).name)
        os.replace(_data_of(path), _data_of(new))
    else:
        _data_of(new).unlink(missing_ok=True)  # of a larger model that was there
    os.replace(path, new)


def _data_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _name_data(path: Path, name: str) -> None:
    """Let a model name another file beside it as that of its weights."""
    model = onnx.load(path, load_external_data=False)
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    path.write_bytes(model.SerializeToString(deterministic=True))


def read(path: Path) -> tuple[onnx.ModelProto, Description]:
    """Read a model without weights that lie beside it, and what it says of itself.

    Raises:
        CyclicError: it is no ONNX file, or none of `cyclic`; it has operators of its own, or data outside its folder.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise CyclicError(f"There is no file {path}.", "Check the path.") from None
    except OSError as error:
        raise CyclicError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    except (DecodeError, ValueError) as error:
        raise CyclicError(f"{path} is not a whole ONNX file.", "Copy or export it again.") from error
    _check_operators(model, path)
    _check_external_data(model, path)
    return model, _described(model, path)


def _weights_checksum(model: onnx.ModelProto, folder: Path) -> str:
    """A checksum of all that a model holds as numbers, in its file or in one of `folder`."""
    found = hashlib.sha256()
    for tensor in _tensors(model):
        found.update(json.dumps([tensor.name, tensor.data_type, list(tensor.dims)]).encode())
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            found.update(onnx.numpy_helper.to_array(tensor).tobytes())
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        with (folder / entries["location"]).open("rb") as file:
            file.seek(int(entries.get("offset", 0)))
            left = int(entries["length"])
            while left and (chunk := file.read(min(left, 2**20))):
                found.update(chunk)
                left -= len(chunk)
    return found.hexdigest()


def _described(model: onnx.ModelProto, path: Path) -> Description:
    try:
        known = {entry.key: entry.value for entry in model.metadata_props}
        values = dict(json.loads(known[KEY]))
        refuse_newer(int(values["format"]), FORMAT, path)
        if values.pop("checksum") != checksum(values):
            raise CyclicError(f"{path} is damaged: the checksum of its metadata is another.", "Export it again.")
        if values.pop("weights") != _weights_checksum(model, path.parent):
            raise CyclicError(f"{path} is damaged: the checksum of its weights is another.", "Copy or export it again.")
        if values.pop("format") < 2:
            values["part"] = values["part"].replace("-tower", "-encoder")
            values["architecture"]["config"] = upgraded_settings(values["architecture"]["config"])
        values["preprocessing"] = build(Preprocessing, dict(values["preprocessing"]), str(path))
        description = build(Description, values, str(path))
        texts: dict[str, Any] = {"vocabulary": "", "limit": 1}
        if description.part == "text-encoder":
            texts = description.tokenizer
        if not isinstance(description.architecture["name"], str) or not isinstance(texts["vocabulary"], str):
            raise ValueError("not the kind of thing")
        if int(texts["limit"]) < 1:
            raise ValueError("no text is that short")
        return description
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CyclicError(
            f"{path} does not say which model it is: it lacks the metadata of cyclic.", FOREIGN
        ) from error


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    """Raise CyclicError unless all operators are ONNX's own."""
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in _nodes(model.graph)}
    strange = sorted(domains - set(OPSETS))
    if strange or len(model.functions):
        named = f" of {strange[0]!r}" if strange else ""
        raise CyclicError(f"{path} has operators{named} that are not ONNX's own; they are not run.", FOREIGN)


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Raise CyclicError when weights lie anywhere but in a file of the model's own folder, or beyond its end."""
    folder = path.resolve().parent
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = folder / location
        if os.path.basename(location) != location or location in ("", ".", "..") or file.is_symlink():
            raise CyclicError(f"{path} has weights outside its own folder; they are not read.", FOREIGN)
        try:
            offset, length, size = int(entries.get("offset", 0)), int(entries["length"]), file.stat().st_size
        except (OSError, KeyError, ValueError) as error:
            raise CyclicError(f"The weights of {path} are not beside it.", "Copy both files.") from error
        if not (0 <= offset <= size and 0 <= length <= size - offset):
            raise CyclicError(f"The weights beside {path} are cut short.", "Copy both files again.")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, and those of the graphs within them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a model holds: initial values and attributes, also of graphs within its nodes."""
    yield from _initial(model.graph)
    for node in _nodes(model.graph):
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                           *attribute.sparse_tensors):  # fmt: skip
                yield from (sparse.values, sparse.indices)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _initial(inner)


def _initial(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
