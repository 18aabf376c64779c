"""Traces a part of a model into an ONNX graph, with the exporter of `torch.export` (`torch.onnx.export`)."""

import contextlib
import io
import logging
import warnings
from typing import Any

import onnx
import torch

from cyclic_cli.export.parts import ModalityEncoder, Part

OPSET = 20


def trace(part: Part) -> onnx.ModelProto:
    """The part as an ONNX model of opset `OPSET`, for batches of any size."""
    no_output = contextlib.redirect_stdout(io.StringIO())
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is not installed, which nothing here uses
    try:
        with warnings.catch_warnings(), no_output, torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                part.module, tuple(one[:2] for one in part.examples), dynamo=True, opset_version=OPSET,
                input_names=list(part.inputs), output_names=list(part.outputs),
                dynamic_shapes=_dynamic_shapes(part), verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert program is not None
    _make_names_unique(program.model.graph)
    return program.model_proto


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


def _dynamic_shapes(part: Part) -> Any:
    """The dimensions of variable size as the exporter expects them: by parameter of `forward` or by position."""
    shapes = tuple(part.dynamic[name] for name in part.inputs)
    return {"inputs": shapes} if isinstance(part.module, ModalityEncoder) else shapes
