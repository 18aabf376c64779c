"""The modules of a sentence-transformers folder: a transformer, the pooling of its vectors, and what follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cyclic_cli.errors import CyclicError
from cyclic_cli.pretrained.folder_files import WEIGHTS, read_list, read_object, tensor_names
from cyclic_cli.pretrained.transformers_texts import ACTIVATIONS, POOLS

LIBRARY = "sentence_transformers."  # the types of its own modules begin with it; others are code of the folder
PREFIX = "pooling_mode_"
NAMES = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean"}  # older settings to names in `POOLS`


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the modules say."""

    transformer: Path  # folder of the transformer
    window: int | None  # most tokens of a text, with special tokens
    lower_case: bool  # whether texts are written in lower case first
    pools: list[str]  # names in `transformers_texts.POOLS`
    layers: list[dict[str, Any]]  # what follows the pooling, as settings of `transformers_texts.TextEncoder`
    weights: dict[str, Tensor]  # of these layers


def read_parts(path: Path) -> Parts:
    """Read `modules.json` of a folder and what it names.

    Raises CyclicError when it is damaged, or has modules that are not supported.
    """
    modules = [(_kind(module, path), path / str(module.get("path", ""))) for module in read_list(path / "modules.json")]
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= {"Dense", "Normalize"}:
        raise CyclicError(
            f"{path} has modules that are not supported: {', '.join(kinds)}.",
            "Give a folder with Transformer, Pooling, and then only Dense and Normalize.",
        )
    transformer, settings = modules[0][1], read_object(modules[0][1] / "sentence_bert_config.json")
    window = settings.get("max_seq_length")
    layers: list[dict[str, Any]] = []
    weights: dict[str, Tensor] = {}
    for number, (kind, folder) in enumerate(modules[2:]):
        layer, values = _dense(folder) if kind == "Dense" else ({"normalise": True}, {})
        layers.append(layer)
        weights |= {f"{number}.0.{name}": value for name, value in values.items()}
    return Parts(
        transformer=transformer, window=window if isinstance(window, int) else None,
        lower_case=settings.get("do_lower_case") is True, pools=_pools(modules[1][1]), layers=layers, weights=weights,
    )  # fmt: skip


def _kind(module: Any, path: Path) -> str:
    """The last part of the type of a module. Its path must stay within the folder."""
    named = module.get("type") if isinstance(module, dict) else None
    inside = isinstance(named, str) and (path / str(module.get("path", ""))).resolve().is_relative_to(path.resolve())
    if not isinstance(named, str) or not inside:
        raise CyclicError(f"{path / 'modules.json'} is damaged.", "Copy it from its source again.")
    return named.split(".")[-1] if named.startswith(LIBRARY) else named


def _pools(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise CyclicError(f"{folder}, which modules.json names, is missing.", "Copy the whole folder of the encoder.")
    settings = read_object(folder / "config.json")
    stated = settings.get("pooling_mode")  # of recent versions: a name, or several
    chosen = {stated} if isinstance(stated, str) else set(stated or ())
    chosen |= {name.removeprefix(PREFIX) for name, used in settings.items() if name.startswith(PREFIX) and used is True}
    pools = {NAMES.get(name, name) for name in chosen}
    if not pools or not pools <= POOLS.keys():
        raise CyclicError(
            f"{folder} has a pooling that is not supported: {', '.join(sorted(pools)) or 'none'}.",
            f"Give an encoder with {', '.join(POOLS)} or several of them.",
        )
    return [name for name in POOLS if name in pools]


def _dense(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings of a dense layer, and its weights."""
    settings = read_object(folder / "config.json")
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).split(".")[-1]
    if activation not in ACTIVATIONS:
        raise CyclicError(
            f"{folder} has an activation that is not supported: {activation}.", f"Known are {', '.join(ACTIVATIONS)}."
        )
    tensor_names(folder)
    weights = {name.removeprefix("linear."): value.float() for name, value in load_file(folder / WEIGHTS).items()}
    weight, bias = weights.get("weight"), weights.get("bias")
    fits = weight is not None and weight.dim() == 2 and weights.keys() <= {"weight", "bias"}
    if weight is None or not fits or not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise CyclicError(f"{folder / WEIGHTS} is damaged.", "Copy it from its source again.")
    layer = {"inputs": weight.shape[1], "outputs": weight.shape[0], "bias": bias is not None, "activation": activation}
    return layer, weights
