"""Tiny ONNX graphs as other frameworks write them, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 6  # of the network: channels of its map and of its vectors


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """A model; `weights` are arrays or plain numbers by name."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return model


def network(
    batch: Any = "N",
    channels: int = 3,
    side: Any = 16,
    opset: int = 13,
    seed: int = 0,
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """`image` (N, C, S, S) → `map` (N, 6, S/2, S/2), `features` (N, 6), and `logits` (N, 4), which need more weights.

    Opset 13 is older than that of the exports: ReduceMean has its axes in an attribute. `scale` is used twice.
    """
    draw = np.random.default_rng(seed)
    make = helper.make_node
    nodes = [
        make("Conv", ["image", "weight"], ["x"], "conv", strides=[2, 2], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("Mul", ["x", "scale"], ["y"]),
        make("Relu", ["y"], ["map"]),
        make("ReduceMean", ["map"], ["mean"], axes=[2, 3], keepdims=0),
        make("Mul", ["mean", "scale"], ["features"]),
        make("MatMul", ["features", "head"], ["logits"]),
    ]
    half = side // 2 if isinstance(side, int) else f"half_{side}"
    outputs = [
        value("map", [batch, WIDTH, half, half]), value("features", [batch, WIDTH]), value("logits", [batch, 4])
    ]  # fmt: skip
    weights = {
        "weight": draw.normal(size=(WIDTH, channels, 3, 3)).astype(np.float32),
        "scale": np.float32(1.5),
        "head": draw.normal(size=(WIDTH, 4)).astype(np.float32),
    }
    return model_of(nodes, [value("image", [batch, channels, side, side])], outputs, weights, opset, metadata)


def text_network(
    batch: Any = "N",
    length: Any = "L",
    positions: int = 40,
    tokens: int = 30,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids", "position_ids"),
) -> onnx.ModelProto:
    """`input_ids`, `attention_mask` and further (N, L) → `last_hidden_state` (N, L, 6) and `pooled` (N, 6).

    The vector of a token is the sum of its rows in the tables of tokens, of positions and of segments.
    """
    draw = np.random.default_rng(0)
    make = helper.make_node
    nodes = [make("Gather", ["tokens", "input_ids"], ["last_hidden_state" if len(inputs) == 2 else "with_0"])]
    for number, name in enumerate(inputs[2:]):
        last = number == len(inputs) - 3
        nodes += [
            make("Gather", [f"table_{name}", name], [f"rows_{number}"]),
            make("Add", [f"with_{number}", f"rows_{number}"], ["last_hidden_state" if last else f"with_{number + 1}"]),
        ]
    nodes += [
        make("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        make("Unsqueeze", ["mask", "two"], ["mask_3"]),
        make("Mul", ["last_hidden_state", "mask_3"], ["masked"]),
        make("ReduceSum", ["masked", "one"], ["pooled"], keepdims=0),
    ]
    weights = {
        "tokens": draw.normal(size=(tokens, WIDTH)).astype(np.float32),
        "table_token_type_ids": draw.normal(size=(2, WIDTH)).astype(np.float32),
        "table_position_ids": draw.normal(size=(positions, WIDTH)).astype(np.float32),
        "one": np.array([1]),
        "two": np.array([2]),
    }
    return model_of(
        nodes, [value(name, [batch, length], TensorProto.INT64) for name in inputs],
        [value("last_hidden_state", [batch, length, WIDTH]), value("pooled", [batch, WIDTH])], weights,
    )  # fmt: skip


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path
