"""What a transformers folder may hold that is no encoder for us, and the way out of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.transformers_images import FAMILIES
from cyclic_cli.pretrained.transformers_texts import HALVES
from cyclic_cli.text_encoders._transformers import library

WHOLE = ("clip", "siglip")  # image–text models, whose halves are used
FIRST = (
    "import torch, transformers; m = transformers.AutoModel.from_pretrained('{path}', trust_remote_code=True).eval()"
)
EXPORTS = {
    "image": "torch.onnx.export(m, (torch.zeros(2, 3, 224, 224),), 'encoder.onnx', dynamo=True, external_data=False, "
    "input_names=['image'], dynamic_shapes=({{0: 'n'}},))",
    "text": "x = torch.ones(2, 16, dtype=torch.int64); torch.onnx.export(m, (x, x), 'encoder.onnx', dynamo=True, "
    "external_data=False, input_names=['input_ids', 'attention_mask'], dynamic_shapes=({{0: 'n', 1: 'l'}},) * 2)",
}  # lines of Python that make an ONNX file of any model


def refuse_unusable(path: Path, values: Mapping[str, Any], model: str, modality: str, sentences: bool) -> None:
    """Raise the error of a folder that holds no encoder of a modality.

    Args:
        path: The folder.
        values: Its `config.json`.
        model: The model type that it names.
        modality: What it shall encode, image or text.
        sentences: Whether it is a sentence-transformers folder.

    Raises:
        UsageError: it holds an encoder of the other modality.
        CyclicError: its model needs code of its own, writes texts, or is of a kind that is not supported.
    """
    if model not in library().CONFIG_MAPPING:
        reason = "needs code of its own, which is not run" if "auto_map" in values else "is unknown to transformers"
        raise CyclicError(f"The {model} model in {path} {reason}.", _to_onnx(path, modality))
    if isinstance(values.get("auto_map"), Mapping) and "AutoModel" in values["auto_map"]:
        raise CyclicError(
            f"The {model} model in {path} needs code of its own, which is not run.", _to_onnx(path, modality)
        )
    found = _modality_of(values, model)
    if model in WHOLE and not sentences:
        return
    if found == "generator" and modality == "text":
        raise CyclicError(
            f"The {model} model in {path} writes texts.", "Give a model that encodes texts, such as BERT."
        )
    if found not in ("image", "text"):
        raise CyclicError(f"A {model} model, as in {path}, is not supported.", _to_onnx(path, modality))
    if found != modality or (sentences and modality == "image"):
        raise UsageError(f"{path} holds an encoder of {found}s.", f"Give it as --{found}-encoder {path}")


def _modality_of(values: Mapping[str, Any], model: str) -> str:
    """What a model encodes: image, text, "generator" of one that writes texts, or "other"."""
    known = library()
    configured = known.CONFIG_MAPPING[model]
    if model in FAMILIES:
        return "image"
    if model in HALVES:
        return "text"
    writes = values.get("is_decoder") or values.get("is_encoder_decoder", configured().is_encoder_decoder)
    if configured in known.MODEL_FOR_MASKED_LM_MAPPING and not writes:
        return "text"
    writers = (known.MODEL_FOR_CAUSAL_LM_MAPPING, known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)
    return "generator" if any(configured in mapping for mapping in writers) else "other"


def _to_onnx(path: Path, modality: str) -> str:
    line = f"{FIRST}; {EXPORTS[modality]}".format(path=path)
    return f'If you trust its source, make an ONNX file of it, and give that: python -c "{line}"'
