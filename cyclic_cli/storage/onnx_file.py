"""Reads and writes ONNX files of `cyclic export`, and checks files before they are run.

A file contains one part of a model. Its metadata hold a `Description` as JSON under the key `cyclic`. Inputs and
outputs are named after their content:

    part                  inputs                         outputs
    autoencoder           image                          reconstruction, embedding
    encoder               image                          code, embedding
    decoder               code                           reconstruction
    MODALITY-encoder      image; input_ids and           embedding
                          attention_mask; or MODALITY

Images are (N, C, S, S) float32 in [0, 1]; if the file includes the preprocessing, (N, 1, H, W) uint8 of any size.
Texts are `input_ids` (N, L) int64, and `attention_mask` (N, L) int64 with 1 for tokens and 0 for padding. Texts of a
model with fixed codes are `input_ids` (N, P, W, L) int64 alone, as `codes.text_reader` makes them: W windows of L
tokens for each of P sources, each token number plus 1, with 0 as padding.
Reconstructions are (N, C, S, S) float32, nominally in [0, 1]. Embeddings are (N, D) float32, L2-normalised.

A pretrained encoder that could not be merged into a part is a file of its own. It runs before the file of the part, see
`Description.pieces`.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from cyclic_cli.config import Preprocessing, as_plain, build, stored_preprocessing
from cyclic_cli.earlier_names import upgraded_provenance, upgraded_settings
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.files import checksum, refuse_newer, replacing

FORMAT = 4  # format 1 had other names of parts and settings, format 2 of settings; 3 had no pretrained encoders
KEY = "cyclic"  # of the metadata entry
OPSETS = ("", "ai.onnx", "ai.onnx.ml")  # domains of the standard operators of ONNX
LARGEST = 2**31 - 2**20  # bytes of a file that includes its weights: the limit of protobuf, less some space
FAILED = ".failed.onnx"  # suffix of a part that did not pass the check after its export
FOREIGN = "Give a file that `cyclic export` made."
STANDARD = "Export the network again, with the standard operators of ONNX and its weights in the same folder."


@dataclass(frozen=True, kw_only=True)
class Description:
    """The metadata of an ONNX file."""

    part: str
    architecture: dict[str, Any]  # name, config, image_shape
    preprocessing: Preprocessing
    rendered: bool = False  # includes the preprocessing: takes images of any size in display values
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """Of a text encoder: `vocabulary`, `limit` in tokens and known `words`; of fixed codes `sources` (see
    `codes.text_reader`) and `words`."""
    precision: str = "float32"  # float32, fp16 or int8
    fingerprint: str  # of the checkpoint
    licence: str = ""  # of the weights, as given by the user
    provenance: dict[str, Any] = field(default_factory=dict)  # of the checkpoint
    encoders: list[dict[str, str]] = field(default_factory=list)
    """The pretrained encoders in the part: `family`, `fingerprint`, and `licence` as their own files state it."""
    pieces: list[dict[str, Any]] = field(default_factory=list)
    """What runs before this graph, in order: `file` beside it; `inputs`, by their names those of the part or outputs of
    earlier pieces; `outputs`, by their names those that later pieces see; `one_by_one`: takes one sample at a time."""

    @property
    def piece_files(self) -> list[str]:
        """The names of the files of the pieces."""
        return [str(piece["file"]) for piece in self.pieces]


def draft_of(path: Path) -> Path:
    """The name of a file until it has passed its check. A file that fails keeps this name."""
    return path.with_name(path.stem + FAILED)


def piece_of(path: Path, name: str) -> Path:
    """The file of a piece of a part in `path`. While the part is a draft, the piece may be one too."""
    file = path.with_name(name)
    draft = draft_of(file)
    return draft if path.name.endswith(FAILED) and draft.exists() else file


def write(path: Path, model: onnx.ModelProto, description: Description) -> None:
    """Write a model with its description. From 2 GiB on its weights go to a file beside it, `NAME.onnx.data`.

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
    """Remove the stack traces that the exporter stores: they contain paths of the exporting machine."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for node in _nodes(graph):
        del node.metadata_props[:]
        node.doc_string = ""


def describe(path: Path) -> dict[str, Any]:
    """The output of `cyclic info` for an exported part. Raises CyclicError as `read` does."""
    model, description = read(path)
    facts = as_plain(description)
    tokenizer = facts.pop("tokenizer")  # too long to show
    return {
        "kind": "ONNX model",
        "path": str(path),
        **facts,
        **({"tokens": tokenizer["limit"]} if "limit" in tokenizer else {}),
        "inputs": {value.name: _kind_of(value) for value in model.graph.input},
        "outputs": {value.name: _kind_of(value) for value in model.graph.output},
        "opset": max((entry.version for entry in model.opset_import), default=0),
        "bytes": size_of(path),
    }


def size_of(path: Path) -> int:
    """The size in bytes of a file and of the weights beside it."""
    return path.stat().st_size + (_data_of(path).stat().st_size if _data_of(path).exists() else 0)


def _kind_of(value: onnx.ValueInfoProto) -> str:
    """Shape and type of an input or output, such as `batch × 1 × 224 × 224 float`."""
    tensor = value.type.tensor_type
    sides = [side.dim_param or str(side.dim_value) for side in tensor.shape.dim]
    return f"{' × '.join(sides)} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}"


def rename(path: Path, new: Path) -> None:
    """Rename a file that `write` made, and the weights beside it, within their folder."""
    if _data_of(path).exists():
        _name_data(path, _data_of(new).name)
        os.replace(_data_of(path), _data_of(new))
    else:
        _data_of(new).unlink(missing_ok=True)  # the replaced model may have been larger
    os.replace(path, new)


def _data_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _name_data(path: Path, name: str) -> None:
    """Change the file name of the weights that a model refers to."""
    model = onnx.load(path, load_external_data=False)
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    path.write_bytes(model.SerializeToString(deterministic=True))


def read(path: Path) -> tuple[onnx.ModelProto, Description]:
    """Read and check a model and its description. Weights in a file beside it are checked but not loaded.

    Raises:
        CyclicError: the file is not an ONNX file of `cyclic`, is damaged, has non-standard operators, or refers to
            weights outside its folder.
    """
    model = _loaded(path, FOREIGN)
    return model, _described(model, path)


def read_network(path: Path) -> onnx.ModelProto:
    """Read and check a model of any program. Its weights are included, those from files beside it too.

    Raises:
        CyclicError: the file is not an ONNX file, is damaged, has non-standard operators, refers to weights outside its
            folder, or has 2 GiB of weights.
    """
    folder = path.resolve().parent
    too_large = CyclicError(f"{path} has more than 2 GiB of weights.", "Convert it to fp16, or take a smaller network.")
    if path.is_file() and path.stat().st_size > LARGEST:
        raise too_large
    model = _loaded(path, STANDARD)
    beside = {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
    if path.stat().st_size + sum((folder / name).stat().st_size for name in beside) > LARGEST:
        raise too_large
    onnx.load_external_data_for_model(model, str(folder))
    return model


def is_described(path: Path) -> bool:
    """Whether a file has metadata of `cyclic export`, or is no ONNX file at all: then `read` tells what is wrong."""
    try:
        return any(entry.key == KEY for entry in _loaded(path, FOREIGN).metadata_props)
    except CyclicError:
        return True


def count_weights(content: bytes) -> int:
    """The number of weights of a model, which is the content of a file that includes them."""
    tensors = _initial(onnx.load_model_from_string(content).graph)
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type != onnx.TensorProto.INT64)


def content_of(model: onnx.ModelProto) -> bytes:
    """A model that includes its weights as the bytes of a file, without metadata and traces of its maker's machine."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.metadata_props[:], copy.training_info[:], copy.opset_import[:]
    used = {node.domain for node in _nodes(model.graph)} | {""}
    copy.opset_import.extend(entry for entry in model.opset_import if entry.domain in used)
    copy.doc_string = ""
    _remove_traces(copy.graph)
    for tensor in _tensors(copy):
        tensor.ClearField("data_location")  # so that weights from a file beside it leave no mark
    content: bytes = copy.SerializeToString(deterministic=True)
    return content


def _loaded(path: Path, hint: str) -> onnx.ModelProto:
    """A checked model without the weights in files beside it. `hint` tells what else to give."""
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise CyclicError(f"There is no file {path}.", "Check the path.") from None
    except OSError as error:
        raise CyclicError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    except (DecodeError, ValueError) as error:
        raise CyclicError(f"{path} is not a complete ONNX file.", "Copy or export it again.") from error
    _check_operators(model, path, hint)
    _check_external_data(model, path, hint)
    return model


def _weights_checksum(model: onnx.ModelProto, folder: Path) -> str:
    """The SHA-256 of all tensors of a model, in the file itself or in a file of `folder`."""
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
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        values = dict(json.loads(metadata[KEY]))
        refuse_newer(int(values["format"]), FORMAT, path)
        if values.pop("checksum") != checksum(values):
            raise CyclicError(f"{path} is damaged: the checksum of its metadata does not match.", "Export it again.")
        if values.pop("weights") != _weights_checksum(model, path.parent):
            raise CyclicError(f"{path} is damaged: the checksum of its weights does not match.", "Copy it again.")
        if values.pop("format") < 3:
            values["part"] = values["part"].replace("-tower", "-encoder")
            values["architecture"]["config"] = upgraded_settings(values["architecture"]["config"])
            values["provenance"] = upgraded_provenance(values["provenance"])
        values["preprocessing"] = stored_preprocessing(dict(values["preprocessing"]), str(path))
        description = build(Description, values, str(path))
        if not isinstance(description.architecture["name"], str):
            raise ValueError("the name of the architecture is not text")
        if description.part == "text-encoder":
            _check_tokenizer(description.tokenizer)
        for piece in description.pieces:
            _check_piece(piece)
        return description
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CyclicError(f"{path} lacks the metadata of cyclic, or they are not valid.", FOREIGN) from error


def _check_tokenizer(values: dict[str, Any]) -> None:
    """Raise an error unless the values can be a `Description.tokenizer`."""
    if not all(isinstance(word, str) for word in values.get("words", [])):
        raise ValueError("a known word is not text")
    if "sources" in values:
        if not all(isinstance(one, dict) for one in values["sources"]):
            raise ValueError("a source of tokens is damaged")
    elif not isinstance(values["vocabulary"], str) or int(values["limit"]) < 1:
        raise ValueError("the vocabulary is damaged")


def _check_piece(values: dict[str, Any]) -> None:
    """Raise an error unless the values can be one of `Description.pieces`."""
    name, names = values["file"], [*values["inputs"].items(), *values["outputs"].items()]
    if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".onnx"):
        raise ValueError("a piece is not a file beside the part")
    if not all(isinstance(one, str) for pair in names for one in pair):
        raise ValueError("a name of a value is not text")


def _check_operators(model: onnx.ModelProto, path: Path, hint: str) -> None:
    """Raise CyclicError unless all operators are standard ones of ONNX: others could run any code."""
    foreign = sorted({node.domain for node in _nodes(model.graph)} - set(OPSETS))
    if foreign or len(model.functions):
        named = f" of {foreign[0]!r}" if foreign else ""
        raise CyclicError(f"{path} has operators{named} that are not part of ONNX; they are not run.", hint)


def _check_external_data(model: onnx.ModelProto, path: Path, hint: str) -> None:
    """Raise CyclicError when weights refer to a file outside the folder of the model, or beyond the end of a file."""
    folder = path.resolve().parent
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = folder / location
        if os.path.basename(location) != location or location in ("", ".", "..") or file.is_symlink():
            raise CyclicError(f"{path} has weights outside its own folder; they are not read.", hint)
        try:
            offset, size = int(entries.get("offset", 0)), file.stat().st_size
            length = int(entries.get("length", size - offset))
        except (OSError, ValueError) as error:
            raise CyclicError(f"The weights of {path} are not beside it.", "Copy both files.") from error
        if not (0 <= offset <= size and 0 <= length <= size - offset):
            raise CyclicError(f"The weights beside {path} are cut short.", "Copy both files again.")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and, recursively, of the graphs in their attributes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initial values and attributes, including those of inner graphs."""
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
