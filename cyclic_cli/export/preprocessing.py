"""Puts the preprocessing of images in front of an exported model, so that the file takes images of any size."""

from typing import Any

import numpy as np
import onnx

MODEL_INPUT = "fitted_image"  # the name of the model's own input inside the merged graph


def with_preprocessing(model: onnx.ModelProto, size: int, channels: int) -> onnx.ModelProto:
    """Merge a model of images with a graph that pads to a square, resizes and scales.

    The result takes images (N, C, H, W) uint8 of any size. It equals `readers.fit` of an image that is decoded at full
    size, up to rounding.

    Args:
        model: Takes `image` (N, C, size, size) float32 in [0, 1].
        size: Pixels per side.
        channels: C.
    """
    kind = onnx.TensorProto
    graph = onnx.helper.make_graph(
        _nodes(), "preprocessing",
        [onnx.helper.make_tensor_value_info("image", kind.UINT8, ["batch", channels, "height", "width"])],
        [onnx.helper.make_tensor_value_info("shades", kind.FLOAT, ["batch", channels, size, size])],
        [
            _constant("two", [2], np.int64), _constant("axes", [2, 3], np.int64),
            _constant("size", [size, size], np.int64), _constant("black", 0, np.float32),
            _constant("white", 255, np.float32),
        ],
    )  # fmt: skip
    first = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    first = onnx.compose.add_prefix(first, "preprocessing_", rename_inputs=False, rename_outputs=True)
    return onnx.compose.merge_models(first, _with_renamed_input(model), [("preprocessing_shades", MODEL_INPUT)])


def _nodes() -> list[onnx.NodeProto]:
    """Letterbox to a square, antialiased linear resize, and division by 255."""
    make = onnx.helper.make_node
    return [
        make("Cast", ["image"], ["grey"], to=onnx.TensorProto.FLOAT),
        make("Shape", ["image"], ["sides"], start=2, end=4),  # height, width
        make("ReduceMax", ["sides"], ["side"], keepdims=1),
        make("Sub", ["side", "sides"], ["missing"]),
        make("Div", ["missing", "two"], ["before"]),
        make("Sub", ["missing", "before"], ["behind"]),
        make("Concat", ["before", "behind"], ["margins"], axis=0),
        make("Pad", ["grey", "margins", "black", "axes"], ["square"]),
        make(
            "Resize", ["square", "", "", "size"], ["resized"], axes=[2, 3], mode="linear", antialias=1,
            coordinate_transformation_mode="half_pixel", exclude_outside=1,
        ),
        make("Round", ["resized"], ["levels"]),
        make("Clip", ["levels", "black", "white"], ["fitted"]),
        make("Div", ["fitted", "white"], ["shades"]),
    ]  # fmt: skip


def _constant(name: str, values: Any, dtype: type) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, dtype), name)


def _with_renamed_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model whose input `image` is named `MODEL_INPUT`, because the preprocessing takes `image`."""
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for node in renamed.graph.node:
        node.input[:] = [MODEL_INPUT if name == "image" else name for name in node.input]
    for value in renamed.graph.input:
        value.name = MODEL_INPUT if value.name == "image" else value.name
    return renamed
