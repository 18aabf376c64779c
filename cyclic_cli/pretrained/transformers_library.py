"""Networks that the transformers library makes.

Names of tensors follow the installed version of the library, which may rename them. So an encoder that is stored in a
run says which version made it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cyclic_cli.errors import CyclicError
from cyclic_cli.text_encoders._transformers import library, without_foreign_code

NOT_STORED = (
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "output_attentions",
    "output_hidden_states", "problem_type", "return_dict", "torch_dtype", "transformers_version",
)  # fmt: skip  # of a configuration: what does not change the network
NO_SDPA = ("swin",)  # families whose `scaled_dot_product_attention` cannot be exported to ONNX
POOLER = "pooler."  # the layer behind the last one that some checkpoints lack; it is dropped where nothing uses it


def configuration(values: Mapping[str, Any], where: str) -> Any:
    """Return the configuration of a network. Raises CyclicError when its values are not those of its model type."""
    known = library()
    try:
        settings = known.AutoConfig.for_model(**without_foreign_code(values))
    except Exception as error:  # the library checks values by several means, each with its own exceptions
        raise _damaged(where) from error
    if settings.model_type in NO_SDPA:
        settings._attn_implementation = "eager"
    return settings


def half_of(settings: Any, modality: str) -> Any:
    """Return the configuration of one half of an image–text model; that of other models as it is.

    `modality` is image or text.
    """
    half = getattr(settings, {"image": "vision_config", "text": "text_config"}[modality], None)
    if half is None:
        return settings
    if hasattr(settings, "projection_dim"):  # the one of the half may be a default
        half.projection_dim = settings.projection_dim
    return half


def plain(settings: Any) -> dict[str, Any]:
    """Return a configuration as plain values, without what does not change the network."""
    return {name: value for name, value in settings.to_dict().items() if name not in NOT_STORED}


def untrained(network: str, settings: Any, where: str, keeps_pooler: bool) -> Any:
    """Return a network with random weights, float32.

    Args:
        network: The name of its class in the library.
        settings: Its configuration.
        where: What it belongs to, for messages.
        keeps_pooler: Whether its pooling layer is used.

    Raises CyclicError when the library has no such network, or the configuration is not that of one.
    """
    known = library()
    made = getattr(known, network, None)
    if not isinstance(made, type) or not issubclass(made, known.PreTrainedModel):
        raise CyclicError(f"{where} needs {network}, which this version of transformers lacks.", "Update transformers.")
    try:
        with warnings.catch_warnings(action="ignore"):
            return _finished(made(settings).float(), keeps_pooler)
    except Exception as error:  # as in `configuration`
        raise _damaged(where) from error


def loaded(folder: Path, network: str, settings: Any, keeps_pooler: bool) -> Any:
    """Return a network with the weights of a folder, float32. Further arguments as of `untrained`.

    Raises CyclicError when weights are missing, do not fit the configuration, are damaged, or are not finite.
    """
    made = getattr(library(), network)
    try:
        with warnings.catch_warnings(action="ignore"):
            found, report = made.from_pretrained(
                folder, config=settings, local_files_only=True, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # three libraries are involved, each with its own exceptions
        raise CyclicError(
            f"The weights in {folder} are damaged, or do not fit its config.json.", "Copy the whole folder again."
        ) from error
    missing = {name for name in report["missing_keys"] if keeps_pooler or not name.startswith(POOLER)}
    if missing or report["mismatched_keys"]:
        raise CyclicError(
            f"{folder} lacks weights of its {settings.model_type} model, such as {min(missing, default='')!r}."
            if missing
            else f"The weights in {folder} do not fit its config.json.",
            "Copy the whole folder again, or save the model again with save_pretrained.",
        )
    if not all(bool(torch.isfinite(value).all()) for value in found.state_dict().values()):
        raise CyclicError(f"{folder} holds weights that are not finite.", "Copy the whole folder again.")
    return _finished(found, keeps_pooler)


def _finished(network: Any, keeps_pooler: bool) -> Any:
    if not keeps_pooler and getattr(network, "pooler", None) is not None:
        network.pooler = None
    return network.requires_grad_(False).eval()


def _damaged(where: str) -> CyclicError:
    return CyclicError(f"The configuration of {where} is damaged.", "Copy its config.json from its source again.")
