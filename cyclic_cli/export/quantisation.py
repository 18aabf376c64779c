"""Converts an exported model to fp16 or int8, with the tools of ONNX Runtime.

In int8, operations with weights use 8 bits for weights and activations. The ranges of the activations come from
calibration inputs. The loss that each operation causes is measured one by one, so that the worst ones can stay in
float32.
"""

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from cyclic_cli.inference.onnx_model import session

Inputs = dict[str, np.ndarray]  # a batch of inputs by name

ENCODER = re.compile(r"encoder\d+_")  # names of the nodes of pretrained encoders in a graph of `merging`
QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
KEPT_IN_FLOAT32 = ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceL2", "Clip", "Expand", "Div")
"""Operations that average and normalise: in fp16 they would change the order of near neighbours."""


def operations_of(model: onnx.ModelProto, encoders_only: bool) -> list[str]:
    """The names of the operations that int8 may convert: all `QUANTISED`, or those of merged pretrained encoders."""
    nodes = [node for node in model.graph.node if node.op_type in QUANTISED]
    return [node.name for node in nodes if not encoders_only or ENCODER.match(node.name)]


def to_fp16(model: onnx.ModelProto, encoders_only: bool = False) -> onnx.ModelProto:
    """Convert weights and operations to 16 bits, except `KEPT_IN_FLOAT32`. Inputs and outputs keep their types.

    With `encoders_only`, the operations outside of merged pretrained encoders stay in float32.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = [*DEFAULT_OP_BLOCK_LIST, *KEPT_IN_FLOAT32, "ScatterElements"]  # ONNX Runtime cannot add fp16 in a scatter
    with _no_logging():
        others = [node.name for node in model.graph.node if encoders_only and not ENCODER.match(node.name)]
        converted = OnnxModel(
            convert_float_to_float16(model, keep_io_types=True, op_block_list=kept, node_block_list=others)
        )
        _remove_double_casts(converted.model)
        converted.topological_sort()  # the conversion appends its new nodes at the end
    return converted.model


def _remove_double_casts(model: onnx.ModelProto) -> None:
    """Remove casts to fp16 that are followed by a cast back to float32, because they only round."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    for node in casts.values():
        before = casts.get(node.input[0])
        by_conversion = before is not None and before.input[0].endswith("_cast_to_fp16")
        if before is not None and by_conversion and _target_type(node) == onnx.TensorProto.FLOAT:
            node.op_type, node.input[0] = "Identity", before.input[0]
            del node.attribute[:]
    del model.graph.value_info[:]  # the recorded types no longer hold


def _target_type(cast: onnx.NodeProto) -> int:
    """The element type that a cast produces; 0 for a node that was turned into another operation."""
    return next((attribute.i for attribute in cast.attribute if attribute.name == "to"), 0)


class Quantiser:
    """Converts one model to int8, with a chosen number of operations left in float32."""

    def __init__(self, model: onnx.ModelProto, inputs: list[Inputs], encoders_only: bool = False) -> None:
        """
        Args:
            model: In float32.
            inputs: Calibration batches, from which the ranges of activations are taken.
            encoders_only: See `operations_of`.
        """
        from onnxruntime import quantization

        self.inputs = inputs
        with tempfile.TemporaryDirectory() as folder, _no_logging():
            original, prepared = Path(folder) / "original.onnx", Path(folder) / "prepared.onnx"
            onnx.save(model, original)
            quantization.quant_pre_process(original, prepared, skip_symbolic_shape=True)
            self.model = onnx.load(prepared)
        self.operations = operations_of(self.model, encoders_only)

    def quantised(self, in_float: int) -> onnx.ModelProto:
        """The model in int8, with the `in_float` operations that cause the largest error kept in float32."""
        return self._quantised(self._by_loss[in_float:] if in_float else self.operations, self.inputs)

    @cached_property
    def _by_loss(self) -> list[str]:
        """The operations in falling order of the output error that they cause when they alone are in int8."""
        inputs = self.inputs[:1]
        expected = _outputs(self.model, inputs[0])
        loss = {}
        for name in self.operations:
            found = _outputs(self._quantised([name], inputs), inputs[0])
            loss[name] = max(
                float(np.square(one - other).mean() / max(np.var(other), 1e-12))
                for one, other in zip(found, expected, strict=True)
            )
        return sorted(loss, key=lambda name: -loss[name])

    def _quantised(self, operations: list[str], inputs: list[Inputs]) -> onnx.ModelProto:
        from onnxruntime import quantization

        remaining = iter(inputs)

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> Inputs | None:
                return next(remaining, None)

        with tempfile.TemporaryDirectory() as folder, _no_logging():
            original, small = Path(folder) / "original.onnx", Path(folder) / "small.onnx"
            onnx.save(self.model, original)
            quantization.quantize_static(
                original, small, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=list(QUANTISED), nodes_to_quantize=operations,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
            return onnx.load(small)


def _outputs(model: onnx.ModelProto, inputs: Inputs) -> list[np.ndarray]:
    outputs: list[np.ndarray] = session(model.SerializeToString()).run(None, inputs)
    return outputs


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """Silence the libraries: their warnings concern their own internals, and a user can do nothing about them."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
