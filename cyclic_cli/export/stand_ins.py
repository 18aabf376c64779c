"""Stand-ins for pretrained encoders in traced graphs, and the graphs of the encoders that take their places.

A stand-in is traced as one node of the domain `DOMAIN`. `pieces_of` cuts the traced graph at these nodes, so that
`merging` can put the graphs of the encoders there: of a network that torch runs, its own trace; of an ONNX encoder, its
graph as it is. So operations of encoders can be told from all others, which stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from cyclic_cli.errors import CyclicError
from cyclic_cli.export.merging import EncoderGraph
from cyclic_cli.export.tracing import trace_module
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.models._aligned import AlignedModel
from cyclic_cli.models._rebuilding import rebuild
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.pretrained.geometry import fitted
from cyclic_cli.pretrained.onnx_graph import ImageGraph, OnnxEncoder, TextGraph, image_features, text_features
from cyclic_cli.pretrained.windows import over_windows

DOMAIN = "cyclic.pretrained"


class StandIn(PretrainedEncoder):
    """Has the features of an encoder in a traced graph, but not its operations."""

    trainable = False

    def __init__(self, encoder: PretrainedEncoder, number: int) -> None:
        """`number` is that of the encoder within the graph."""
        super().__init__()
        self.facts, self.number = encoder.facts, number
        self.inputs = ["content"]  # of the graph
        self.outputs = [f"output{place}" for place in range(len(encoder.facts.outputs))]
        self._original = [encoder]  # in a list, so that its weights are none of this module

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        shapes = [(content.shape[0], output.dims) for output in self.facts.outputs]
        found = self._node([content], shapes)
        return {output.name: one for output, one in zip(self.facts.outputs, found, strict=True)}

    def graph(self, content: Tensor) -> onnx.ModelProto:
        """The graph of the encoder. `content` is an example of what `forward` gets.

        Raises CyclicError when the exporter of torch cannot handle the encoder.
        """
        dynamic = {0: "batch"} if self.facts.modality == "image" else {0: "batch", 1: "windows", 2: "length"}
        module = _InOrder(self._original[0])
        (name,) = self.inputs
        try:
            return trace_module(module, {name: content}, self.outputs, {name: dynamic})
        except torch.onnx.OnnxExporterError as error:
            raise CyclicError(
                f"torch cannot export the encoder {self.facts.family} ({self.facts.fingerprint}) to ONNX.",
                "Give its ONNX file as the encoder when you train.",
            ) from error

    @property
    def one_by_one(self) -> bool:
        """Whether the graph takes one sample at a time."""
        return False

    def _node(self, inputs: Sequence[Tensor], shapes: Sequence[Sequence[Any]]) -> Sequence[Tensor]:
        """The outputs (float32) of the node. Outside of the exporter they are zeros."""
        found: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::encoder{self.number}", inputs, dtypes=[torch.float32] * len(shapes), shapes=shapes, version=1
        )
        return found


class GraphStandIn(StandIn):
    """Stands for an ONNX encoder."""

    def __init__(self, encoder: OnnxEncoder, number: int, example: Tensor) -> None:
        """`example` is an input of the graph for one sample."""
        super().__init__(encoder, number)
        self.outputs = list(encoder.facts.settings["outputs"])
        raw = encoder.raw(example)
        self.shapes = [tuple(raw[name].shape[1:]) for name in self.outputs]
        self.inputs = [port.name for port in encoder.graph.inputs]

    @property
    def one_by_one(self) -> bool:
        return bool(self.facts.settings["one_by_one"])

    def graph(self, content: Tensor) -> onnx.ModelProto:
        return onnx.load_model_from_string(self._original[0].graph_bytes())


class ImageStandIn(GraphStandIn):
    """Stands for an ONNX encoder of images."""

    def __init__(self, encoder: ImageGraph, number: int) -> None:
        geometry = encoder.facts.geometry
        assert geometry is not None
        grey = torch.full((1, geometry.channels, geometry.size, geometry.size), 0.5)
        super().__init__(encoder, number, fitted(grey, geometry))
        self.geometry = geometry

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        shapes = [(content.shape[0], *shape) for shape in self.shapes]
        found = self._node([fitted(content, self.geometry)], shapes)
        return image_features(dict(zip(self.outputs, found, strict=True)))


class TextStandIn(GraphStandIn):
    """Stands for an ONNX encoder of texts."""

    def __init__(self, encoder: TextGraph, number: int) -> None:
        super().__init__(encoder, number, torch.ones(1, 2, dtype=torch.long))
        length = encoder.graph.inputs[0].shape[1]
        self.length = length if isinstance(length, int) else None

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        names = [output.name for output in self.facts.outputs]
        together = over_windows(content, lambda rows: self._of_windows(rows, names))
        parts = torch.split(together, [output.dims for output in self.facts.outputs], 1)
        return dict(zip(names, parts, strict=True))

    def _of_windows(self, rows: Tensor, names: list[str]) -> Tensor:
        """Features (M, F) of windows (M, L), the inputs of the graph being those of `TextGraph.feeds`."""
        if self.length is not None:
            rows = torch.cat([rows, rows.new_zeros(rows.shape[0], self.length)], 1)[:, : self.length]
        places = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        mask = (rows > 0) | (places == 0)  # of an empty window one place is read, and counts nothing
        values = {
            "input_ids": (rows - 1).clamp(min=0),
            "attention_mask": mask.long(),
            "token_type_ids": torch.zeros_like(rows),
            "position_ids": places,
        }
        # A vector for each token has three dimensions; its second one is that of the tokens.
        shapes = [(rows.shape[0], *([rows.shape[1]] * (len(shape) - 1)), shape[-1]) for shape in self.shapes]
        found = self._node([values[name] for name in self.inputs], shapes)
        features = text_features(dict(zip(self.outputs, found, strict=True)), mask)
        return torch.cat([features[name] for name in names], 1)


class _InOrder(nn.Module):
    """The features of an encoder as a tuple, in the order of its outputs."""

    def __init__(self, encoder: PretrainedEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, content: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder(content)
        return tuple(features[output.name] for output in self.encoder.facts.outputs)


def with_stand_ins(model: TorchModel, modality: str) -> tuple[AlignedModel, list[StandIn]]:
    """A copy of the module of a model, with stand-ins for the pretrained encoders of a modality; and these."""
    twin = rebuild(model.checkpoint.architecture, str(model.path))
    assert isinstance(twin, AlignedModel)
    twin.load_state_dict(model.module.state_dict())
    stand_ins = []
    for number, (fingerprint, encoder) in enumerate(model.module.encoders[modality].pretrained.items()):
        stand_ins.append(_stand_in(encoder, number))
        twin.encoders[modality].attach(fingerprint, stand_ins[-1])
    return twin, stand_ins


def _stand_in(encoder: PretrainedEncoder, number: int) -> StandIn:
    if isinstance(encoder, ImageGraph):
        return ImageStandIn(encoder, number)
    return TextStandIn(encoder, number) if isinstance(encoder, TextGraph) else StandIn(encoder, number)


# --------------------------------------------------------------------------------------------------------- cutting


@dataclass(frozen=True)
class Pieces:
    """A traced graph that was cut at its stand-ins, and the graphs for their places; see `merging.merge`."""

    front: onnx.ModelProto | None
    encoders: list[EncoderGraph]
    back: onnx.ModelProto


def pieces_of(
    model: onnx.ModelProto, stand_ins: Sequence[StandIn], traced: nn.Module, inputs: Sequence[Tensor]
) -> Pieces:
    """Cut the graph of a module with stand-ins.

    Args:
        model: The trace of `traced`.
        stand_ins: All that the module uses.
        traced: The module.
        inputs: Examples of its inputs.
    """
    calls = {node.op_type: node for node in model.graph.node if node.domain == DOMAIN}
    nodes = [calls[f"encoder{one.number}"] for one in stand_ins]
    whole = {value.name for value in model.graph.input}
    inner = list(dict.fromkeys(name for node in nodes for name in node.input if name not in whole))
    encoders: list[EncoderGraph] = []
    given: dict[str, str] = {}  # by the name in the whole graph: the name of an input of the back
    for one, node, content in zip(stand_ins, nodes, _contents(stand_ins, traced, inputs), strict=True):
        taken = dict(zip(one.inputs, node.input, strict=True))
        encoders.append(EncoderGraph(one.graph(content), taken, one.one_by_one))
        given |= {old: f"encoder{one.number}_{new}" for old, new in zip(node.output, one.outputs, strict=True)}
    front = _cut(model, inner, {}) if inner else None
    return Pieces(front, encoders, _cut(model, [value.name for value in model.graph.output], given))


def _contents(stand_ins: Sequence[StandIn], traced: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What each stand-in gets for some inputs of the whole."""
    seen: dict[int, Tensor] = {}

    def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, StandIn)
        seen[module.number] = given[0].contiguous()  # the exporter cannot handle the strides of a view

    hooks = [one.register_forward_pre_hook(see) for one in stand_ins]
    with torch.no_grad():
        traced(*inputs)
    for hook in hooks:
        hook.remove()
    return [seen[one.number] for one in stand_ins]


def _cut(model: onnx.ModelProto, outputs: Iterable[str], given: dict[str, str]) -> onnx.ModelProto:
    """The part of a graph that computes some of its values. Those in `given` become inputs, with other names."""
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    wanted = list(dict.fromkeys(outputs))
    needed, nodes = {*wanted}, []
    for node in reversed(model.graph.node):
        if node.domain != DOMAIN and needed & {*node.output}:
            nodes.append(node)
            needed |= {*node.input}
    nodes = [_renamed(node, given) for node in reversed(nodes)]
    taken = [_declared(known[old], new) for old, new in given.items() if old in needed]
    graph = helper.make_graph(
        nodes, model.graph.name, [*model.graph.input, *taken], [known[name] for name in wanted],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )  # fmt: skip
    opsets = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    return helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)


def _declared(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """The declaration of a value under another name."""
    copy = onnx.ValueInfoProto()
    copy.type.CopyFrom(value.type)
    copy.name = name
    return copy


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    return copy
