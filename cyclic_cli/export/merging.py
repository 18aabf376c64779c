"""Merges the ONNX graphs of pretrained encoders with those of the model around them into one graph.

    front      image or tokens → what each encoder takes; traced from torch
    encoders   graphs of any framework, see `pretrained/onnx_graph.py`
    back       outputs of the encoders → outputs of the whole; traced from torch

All values get the prefix of their graph: `front_`, `encoder0_`, `encoder1_`, … and `back_`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper

from cyclic_cli.export.tracing import OPSET

FRONT, BACK = "front_", "back_"


class CannotMerge(Exception):
    """The graphs do not become one graph. The message names the reason, such as an operator without a conversion."""


@dataclass(frozen=True)
class EncoderGraph:
    """The graph of an encoder, and how it is connected."""

    model: onnx.ModelProto
    inputs: dict[str, str] = field(default_factory=dict)
    """By the name of its input: an output of `front`, or an input of the whole. An input left out keeps its name."""
    one_by_one: bool = False  # whether it only takes batches of one sample


def merge(front: onnx.ModelProto | None, encoders: Sequence[EncoderGraph], back: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of opset `OPSET` that computes `front`, then the encoders, then `back`.

    Its inputs are those of `front`, and those inputs of the encoders and of `back` that nothing gives. Its outputs are
    those of `back`. An input of `back` that is named `encoder0_NAME` gets the output NAME of the first encoder; an
    input that is named like an output of `front` gets that. Parts of an encoder that `back` does not need are left out.
    The batch is as free as that of `front` and `back`: an encoder that takes one sample at a time runs in a Scan.

    Raises:
        CannotMerge: an encoder cannot be converted to the opset, or the graphs do not fit each other.
    """
    merged = _Merged([value for model in (front, back) if model for value in _inputs(model)])
    if front is not None:
        merged.add(_prefixed(_converted(front), FRONT), FRONT, {})
        merged.offer({value.name: _named(value, FRONT + value.name) for value in front.graph.output})
    needed = {value.name for value in _inputs(back)}
    for number, encoder in enumerate(encoders):
        prefix = f"encoder{number}_"
        outputs = [name for name in _names(encoder.model.graph.output) if prefix + name in needed]
        if not outputs:
            raise CannotMerge(f"nothing takes an output of encoder {number}")
        model = _pruned(_converted(encoder.model), outputs)
        if encoder.one_by_one:
            model = _scanned(model)
        merged.add(_prefixed(model, prefix), prefix, encoder.inputs)
        merged.offer({prefix + value.name: _named(value, prefix + value.name) for value in model.graph.output})
    if missing := [name for name in needed - merged.offered.keys() if re.match(r"encoder\d+_", name)]:
        raise CannotMerge(f"no encoder gives {min(missing)!r}")
    merged.add(_prefixed(_converted(back), BACK), BACK, {})
    return merged.finished(back.graph.output)


class _Merged:
    """A graph to which the pieces are added one after another."""

    def __init__(self, declared: Iterable[onnx.ValueInfoProto]) -> None:
        """`declared` are inputs of `front` and `back`: how they are declared there counts, not how in an encoder."""
        self.declared = {value.name: value for value in reversed([*declared])}
        self.inputs: dict[str, onnx.ValueInfoProto] = {}  # of the whole
        self.offered: dict[str, onnx.ValueInfoProto] = {}  # by the name that pieces use: the value in this graph
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.sparse: list[onnx.SparseTensorProto] = []
        self.opsets: dict[str, int] = {"": OPSET}
        self.ir_version = 0

    def offer(self, values: dict[str, onnx.ValueInfoProto]) -> None:
        """Let later pieces take values of the graph by a name."""
        if clash := values.keys() & self.inputs.keys():
            raise CannotMerge(f"an input and an inner value are both named {min(clash)!r}")
        self.offered |= values

    def add(self, model: onnx.ModelProto, prefix: str, names: dict[str, str]) -> None:
        """Add a piece, all of whose names have a prefix. `names` tells, by its inputs' own names, what they get."""
        for value in model.graph.input:
            own = value.name.removeprefix(prefix)
            self.nodes.append(_passed(self._source(names.get(own, own), value), value))
        self.nodes.extend(model.graph.node)
        self.tensors.extend(model.graph.initializer)
        self.sparse.extend(model.graph.sparse_initializer)
        self.ir_version = max(self.ir_version, model.ir_version)
        for entry in model.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if self.opsets.setdefault(domain, entry.version) != entry.version:
                raise CannotMerge(f"the graphs take different versions of the operators of {domain!r}")

    def _source(self, name: str, wanted: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """The value of a name: what a piece offers, else an input of the whole."""
        if name not in self.offered and name not in self.inputs:
            self.inputs[name] = _named(self.declared.get(name, wanted), name)
        return self.offered.get(name) or self.inputs[name]

    def finished(self, outputs: Iterable[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The whole, with the outputs of `back` under their own names."""
        self.nodes += [_passed(_named(value, BACK + value.name), value) for value in outputs]
        graph = helper.make_graph(
            self.nodes, "merged", [*self.inputs.values()], [*outputs], self.tensors, sparse_initializer=self.sparse
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in sorted(self.opsets.items())]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        try:
            onnx.checker.check_model(model)
        except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: more than 2 GiB
            raise CannotMerge("the graphs do not fit each other, or exceed 2 GiB") from error
        return model


def _passed(source: onnx.ValueInfoProto, target: onnx.ValueInfoProto) -> onnx.NodeProto:
    """A node that gives a value another name and, where the types differ, another number type."""
    before, behind = (value.type.tensor_type.elem_type for value in (source, target))
    name = f"{target.name}_passed"
    if before == behind:
        return helper.make_node("Identity", [source.name], [target.name], name)
    return helper.make_node("Cast", [source.name], [target.name], name, to=behind)


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset `OPSET`. Raises CannotMerge when an operator has no conversion."""
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    if version == OPSET:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, OPSET)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises errors of several kinds without a common base class
        raise CannotMerge(f"opset {version} of an encoder cannot be converted to opset {OPSET}") from error
    return converted


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that have to be given. Old files list initial values among the inputs."""
    initial = {*_names(model.graph.initializer), *(one.values.name for one in model.graph.sparse_initializer)}
    return [value for value in model.graph.input if value.name not in initial]


def _names(values: Iterable[onnx.ValueInfoProto | onnx.TensorProto]) -> list[str]:
    return [value.name for value in values]


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A copy of a declaration under another name."""
    copy = onnx.ValueInfoProto()
    copy.type.CopyFrom(value.type)
    copy.name = name
    return copy


def _pruned(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The model with some of its outputs only, and only what they need."""
    needed, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(_read(node))
    graph = helper.make_graph(
        nodes[::-1], model.graph.name, _inputs(model),
        [value for value in model.graph.output if value.name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
        sparse_initializer=[one for one in model.graph.sparse_initializer if one.values.name in needed],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, including those that its inner graphs take from outside."""
    yield from node.input
    for graph in _inner(node):
        yield from _names(graph.output)
        for one in graph.node:
            yield from _read(one)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else []
        yield from attribute.graphs


def _prefixed(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """A copy of a model with a prefix before every name. Every node gets a name, which the quantisation needs.

    The shapes of inner values are left out: a symbol such as `N` may mean different numbers in different graphs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.input[:]
    copy.graph.input.extend(_inputs(model))
    _rename(copy.graph, lambda name: prefix + name if name else "")
    return copy


def _rename(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    """Rename all values and nodes of a graph and of its inner graphs, in place."""
    del graph.value_info[:], graph.quantization_annotation[:]
    for value in (*graph.input, *graph.output, *graph.initializer, *(one.values for one in graph.sparse_initializer)):
        value.name = new(value.name)
    for number, node in enumerate(graph.node):
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        node.name = new(node.name or f"{node.op_type}_{number}_{node.output[0]}")
        for inner in _inner(node):
            _rename(inner, new)


def _scanned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model for batches of one sample, as a model for batches of any size: a Scan over the samples."""
    body = _prefixed(model, "each_")
    axis = helper.make_tensor("sample_axis", onnx.TensorProto.INT64, [1], [0])
    batches = [_named(value, value.name) for value in _inputs(model)]
    samples = [_named(value, f"sample_{value.name}") for value in batches]
    results = [
        helper.make_tensor_value_info(f"sample_{value.name}", value.type.tensor_type.elem_type, None)
        for value in model.graph.output
    ]
    for batch, sample in zip(batches, samples, strict=True):
        batch.type.tensor_type.shape.dim[0].dim_param = "batch"
        del sample.type.tensor_type.shape.dim[0]
    unsqueeze = [
        helper.make_node("Unsqueeze", [sample.name, axis.name], [value.name])
        for sample, value in zip(samples, body.graph.input, strict=True)
    ]
    squeeze = [
        helper.make_node("Squeeze", [value.name, axis.name], [result.name])
        for value, result in zip(body.graph.output, results, strict=True)
    ]
    inner = helper.make_graph([*unsqueeze, *body.graph.node, *squeeze], "sample", samples, results)
    outputs = [*model.graph.output]
    scan = helper.make_node("Scan", _names(batches), _names(outputs), body=inner, num_scan_inputs=len(samples))
    graph = helper.make_graph(
        [scan], model.graph.name, batches, outputs, [axis, *body.graph.initializer],
        sparse_initializer=body.graph.sparse_initializer,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
