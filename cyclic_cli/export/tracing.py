"""Traces a part of a model into an ONNX graph, with the exporter of `torch.export` (`torch.onnx.export`)."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import onnx
import torch
from torch import Tensor, nn

OPSET = 20


class Traceable(Protocol):
    """What `trace` needs of a `parts.Part`."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def traced(self) -> nn.Module | None: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def examples(self) -> tuple[Tensor, ...]: ...
    @property
    def dynamic(self) -> dict[str, dict[int, str]]: ...


def trace(part: Traceable) -> onnx.ModelProto:
    """The part as an ONNX model of opset `OPSET`, for batches of any size. It may have stand-ins for encoders."""
    inputs = dict(zip(part.inputs, (one[:2] for one in part.examples), strict=True))
    return trace_module(part.traced or part.module, inputs, part.outputs, part.dynamic)


def trace_module(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], dynamic: Mapping[str, Mapping[int, str]]
) -> onnx.ModelProto:
    """A module as an ONNX model of opset `OPSET`.

    Args:
        module: It takes its inputs by position.
        inputs: An example of each input. A variable dimension of 1 would become fixed.
        outputs: The names of the outputs.
        dynamic: By input: the dimensions of variable size, and their names.
    """
    no_output = contextlib.redirect_stdout(io.StringIO())
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is not installed, which nothing here uses
    shapes = tuple(dict(dynamic[name]) for name in inputs)
    try:
        with warnings.catch_warnings(), no_output, torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _ByPosition(module).eval(), tuple(inputs.values()), dynamo=True, opset_version=OPSET,
                input_names=list(inputs), output_names=list(outputs), dynamic_shapes={"inputs": shapes}, verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert program is not None
    _make_names_unique(program.model.graph)
    return program.model_proto


class _ByPosition(nn.Module):
    """A module whose inputs have no names of their own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def _make_names_unique(graph: Any) -> None:
    """Rename inner values of a graph that have the name of an output.

    The exporter names a value after the operation that computes it, and operations such as `embedding` are also names
    of outputs.
    """
    outputs = {value.name: value for value in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in outputs and value is not outputs[value.name]:
                value.name = f"inner_{value.name}"
