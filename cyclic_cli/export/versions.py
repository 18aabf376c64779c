"""The graphs of a part in a precision: the first one that passes its check is exported.

In models with fixed codes, fp16 and int8 convert the operations of pretrained encoders alone. What was fitted
(principal components, heads, the drawing) and the cheap parts of the codes stay in float32: they are small, and the
bins of gradients would change. A part without a pretrained encoder stays in float32 as a whole.

The graphs of pretrained encoders are merged with that around them. Where that is impossible, a part is several files.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch

from cyclic_cli.errors import CyclicError
from cyclic_cli.export.examples import EXAMPLES
from cyclic_cli.export.merging import CannotMerge, merge
from cyclic_cli.export.parts import Part
from cyclic_cli.export.quantisation import Quantiser, operations_of, to_fp16
from cyclic_cli.export.stand_ins import Pieces, pieces_of
from cyclic_cli.export.tracing import trace


@dataclass(frozen=True)
class Version:
    """A part as ONNX."""

    graph: onnx.ModelProto
    precision: str = "float32"
    facts: dict[str, int] = field(default_factory=dict)  # for the summary
    pieces: Pieces | None = None  # what runs before `graph`, in files of their own
    reason: str = ""  # why the part is not one file, or not in the precision asked for


def versions(part: Part, precision: str, needs_one_file: bool = False) -> Iterator[Version]:
    """Versions of a part, the preferred ones first.

    Raises:
        CyclicError: The part has to be one file, as always in fp16 and int8, and cannot be.
    """
    model = trace(part)
    if not part.stand_ins:
        yield from _versions(model, part, precision)
        return
    assert part.traced is not None
    pieces = pieces_of(model, part.stand_ins, part.traced, [one[:2] for one in part.examples])
    try:
        merged = merge(pieces.front, pieces.encoders, pieces.back)
    except CannotMerge as error:
        reason = str(error)
    else:
        yield from _versions(merged, part, precision)
        reason = "in one file its outputs differ"  # as those of graphs that scale by what else is in the batch
    if needs_one_file or precision != "float32":
        raise CyclicError(
            f"{part.name} cannot be one file: {reason}.", "Leave --quantize and --with-preprocessing out."
        )
    yield Version(pieces.back, pieces=pieces, reason=reason)


def _versions(model: onnx.ModelProto, part: Part, precision: str) -> Iterator[Version]:
    """Versions in one file. There are several in int8: each leaves more operations in float32 than the one before."""
    if precision == "float32":
        yield Version(model)
    elif part.is_fixed and not operations_of(model, encoders_only=True):
        yield Version(model, reason="it holds no operations of a pretrained encoder")
    elif precision == "fp16":
        yield Version(to_fp16(model, part.is_fixed), precision)
    else:
        chunks = zip(*(torch.split(one, EXAMPLES) for one in part.calibration), strict=True)
        inputs: list[dict[str, Any]] = [
            dict(zip(part.inputs, (one.numpy() for one in chunk), strict=True)) for chunk in chunks
        ]
        quantiser = Quantiser(model, inputs, part.is_fixed)
        count = len(quantiser.operations)
        for in_float in sorted({0, count - 1, *(2**step for step in range(30) if 2**step < count)}):
            yield Version(quantiser.quantised(in_float), precision, {"operations": count, "in_float32": in_float})
