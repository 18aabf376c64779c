"""Exported models of fewer bits, by ONNX Runtime's own tools.

In int8 the operations that multiply have weights and activations of 8 bits, whose ranges are those that given inputs
give rise to. Which of them lose most is measured one by one, so that as many as are needed can stay in float32.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from cyclic_cli.inference.onnx_model import session

Values = dict[str, np.ndarray]

QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
WHOLE = ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceL2", "Clip", "Expand", "Div")
"""What averages and normalises: in 16 bits, embeddings that are near one another would change places."""


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights and operations of 16 bits, but for `WHOLE`; inputs and outputs keep their kind."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = [*DEFAULT_OP_BLOCK_LIST, *WHOLE, "ScatterElements"]  # ONNX Runtime adds up no numbers of 16 bits there
    with _no_logging():
        found = OnnxModel(convert_float_to_float16(model, keep_io_types=True, op_block_list=kept))
        _without_detours(found.model)
        found.topological_sort()  # the conversion puts what it adds at the end
    return found.model


def _without_detours(model: onnx.ModelProto) -> None:
    """Pass numbers on as they are where the conversion rounds them to 16 bits and makes 32 of these again."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    for node in casts.values():
        before = casts.get(node.input[0])
        was_whole = before is not None and before.input[0].endswith("_cast_to_fp16")  # by the conversion
        if before is not None and was_whole and _to(node) == onnx.TensorProto.FLOAT:
            node.op_type, node.input[0] = "Identity", before.input[0]
            del node.attribute[:]
    del model.graph.value_info[:]  # what was said of kinds before


def _to(cast: onnx.NodeProto) -> int:
    """The kind of number that a cast makes; 0 for an operation that is none any more."""
    return next((attribute.i for attribute in cast.attribute if attribute.name == "to"), 0)


class Quantiser:
    """A model on its way to 8 bits."""

    def __init__(self, model: onnx.ModelProto, inputs: list[Values]) -> None:
        """`inputs` are batches that the ranges of activations are taken from."""
        from onnxruntime import quantization

        self.inputs = inputs
        with tempfile.TemporaryDirectory() as folder, _no_logging():
            whole, prepared = Path(folder) / "whole.onnx", Path(folder) / "prepared.onnx"
            onnx.save(model, whole)
            quantization.quant_pre_process(whole, prepared, skip_symbolic_shape=True)
            self.model = onnx.load(prepared)
        self.operations = [node.name for node in self.model.graph.node if node.op_type in QUANTISED]

    def quantised(self, in_float: int) -> onnx.ModelProto:
        """The model with its operations in 8 bits but those that lose most, `in_float` of them."""
        return self._quantised(self._by_harm[in_float:] if in_float else self.operations, self.inputs)

    @cached_property
    def _by_harm(self) -> list[str]:
        """The operations, those first whose 8 bits alone change the outputs most."""
        inputs = self.inputs[:1]
        wanted = _outputs(self.model, inputs[0])
        harm = {}
        for name in self.operations:
            found = _outputs(self._quantised([name], inputs), inputs[0])
            harm[name] = max(
                float(np.square(one - other).mean() / max(np.var(other), 1e-12))
                for one, other in zip(found, wanted, strict=True)
            )
        return sorted(harm, key=lambda name: -harm[name])

    def _quantised(self, operations: list[str], inputs: list[Values]) -> onnx.ModelProto:
        from onnxruntime import quantization

        waiting = iter(inputs)

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> Values | None:
                return next(waiting, None)

        with tempfile.TemporaryDirectory() as folder, _no_logging():
            whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
            onnx.save(self.model, whole)
            quantization.quantize_static(
                whole, small, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=list(QUANTISED), nodes_to_quantize=operations,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
            return onnx.load(small)


def _outputs(model: onnx.ModelProto, values: Values) -> list[np.ndarray]:
    found: list[np.ndarray] = session(model.SerializeToString()).run(None, values)
    return found


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """What libraries log meanwhile is about themselves."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
