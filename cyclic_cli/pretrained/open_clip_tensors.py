"""Maps the tensors of open_clip models onto the classes of transformers that compute the same.

    half of the open_clip model                                    class of transformers
    timm's ViT (`visual.trunk`), as of BiomedCLIP                  ViTModel
    timm's ViT with attention pooling, as of SigLIP                SiglipVisionModel
    open_clip's own ViT (`visual.transformer`)                     CLIPVisionModel
    a BERT or RoBERTa (`text.transformer`), as of BiomedCLIP       BertModel, RobertaModel
    open_clip's own text transformer                               CLIPTextModel

The projection behind them stays apart, as a list of linear layers with GELU in between. What the tensors do not tell,
such as the number of attention heads, comes from the configuration or from the conventions of the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cyclic_cli.errors import CyclicError


class NoMapping(Exception):
    """The half of the model has no counterpart in transformers. The message says why, as "it has …" or "it is …"."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """One half of an open_clip model, in terms of transformers."""

    model: str  # name of the class
    config: dict[str, Any]  # arguments of its configuration class
    pool: str  # how its vectors become one: first, mean, mean then norm, pooler, highest token, or a token number
    tensors: dict[str, Tensor]  # of the model, by the names that its `save_pretrained` gives
    projection: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)  # weight (out, in) and bias (out,)


class Source:
    """The tensors of one half of a checkpoint. Every tensor has to be taken once."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """
        Args:
            tensors: By name.
            where: The file, for messages.
        """
        self._left, self._where = dict(tensors), where

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that stays to be taken. Raises CyclicError when there is none."""
        if name not in self._left:
            raise CyclicError(f"{self._where} lacks the tensor {name}.", "Copy the file again, with its configuration.")
        return tuple(self._left[name].shape)

    def take(self, name: str) -> Tensor:
        """Return a tensor. Raises CyclicError when there is none."""
        self.shape(name)
        return self._left.pop(name)

    def optional(self, name: str) -> Tensor | None:
        """Return a tensor, or None when there is none."""
        return self._left.pop(name, None)

    def layer(self, there: str, here: str) -> dict[str, Tensor]:
        """Return weight and bias of the layer `there`, by the names that the layer `here` has."""
        return {f"{here}.{part}": self.take(f"{there}.{part}") for part in ("weight", "bias")}

    def fused(self, weight: str, bias: str, here: tuple[str, ...]) -> dict[str, Tensor]:
        """Return weights and biases of layers that are stored as one, below each other."""
        parts = {"weight": self.take(weight), "bias": self.take(bias)}
        return {
            f"{name}.{part}": rows.contiguous()
            for part, tensor in parts.items()
            for name, rows in zip(here, tensor.chunk(len(here)), strict=True)
        }

    def count(self, before: str) -> int:
        """Return the number of layers whose names begin with `before` and a number. Raises CyclicError without any."""
        numbers = {int(found[1]) for name in self._left if (found := re.match(re.escape(before) + r"(\d+)\.", name))}
        if not numbers:
            self.shape(f"{before}0")
        return max(numbers) + 1

    def finish(self) -> None:
        """Raise NoMapping when a tensor was not taken."""
        if self._left:
            raise NoMapping(f"it has the tensor {min(self._left)}")


# ------------------------------------------------------------------------------------------------------- images

TIMM = r"vit_(tiny|small|base|large|huge|giant|gigantic|so400m|giantopt)_patch\d+(_siglip)?_\d+(\.\w+)?"
TIMM_POOLS = {"": "first", "token": "first", "avg": "mean"}
SIXTEEN_HEADS = ("huge", "giant", "gigantic", "so400m", "giantopt")  # the others have heads of 64 dimensions
BLOCK = {  # settings of open_clip's own transformers that change what they compute, and their only value here
    "ls_init_value": None, "act_kwargs": None, "block_type": None, "qk_norm": False, "scaled_cosine_attn": False,
    "scale_heads": False, "scale_attn_inner": False, "scale_attn": False, "scale_fc": False,
}  # fmt: skip
OWN_IMAGE = BLOCK | {"attentional_pool": False, "no_ln_pre": False}
OWN_TEXT = BLOCK | {"embed_cls": False, "no_causal_mask": False}


def image_half(source: Source, config: Mapping[str, Any], quick_gelu: bool) -> Mapped:
    """Map `visual.*`.

    Args:
        source: The tensors.
        config: `vision_cfg` of the folder.
        quick_gelu: Whether the model uses QuickGELU.

    Raises:
        NoMapping: Transformers has no such model.
        CyclicError: A tensor is missing.
    """
    name = config.get("timm_model_name")
    if name is None:
        mapped = _own_image(source, config, quick_gelu)
    elif not re.fullmatch(TIMM, str(name)):
        raise NoMapping(f"it is a {name}")
    elif "_siglip_" in name:
        mapped = _timm_siglip(source, config)
    else:
        mapped = _timm_vit(source, config)
    source.finish()
    return mapped


def _timm_vit(source: Source, config: Mapping[str, Any]) -> Mapped:
    trunk = "visual.trunk."
    pool, projected = str(config.get("timm_pool", "avg") or ""), config.get("timm_proj", "linear")
    if pool not in TIMM_POOLS or (pool == "avg" and projected not in ("linear", "mlp")):
        raise NoMapping(f"it has the pooling {pool!r} with the projection {projected!r}")
    tensors = {
        "embeddings.cls_token": source.take(f"{trunk}cls_token"),
        "embeddings.position_embeddings": source.take(f"{trunk}pos_embed"),
        **source.layer(f"{trunk}patch_embed.proj", "embeddings.patch_embeddings.projection"),
        **source.layer(f"{trunk}norm", "layernorm"),
    }
    layers = source.count(f"{trunk}blocks.")
    for number in range(layers):
        there, here = f"{trunk}blocks.{number}.", f"encoder.layer.{number}."
        attention = tuple(f"{here}attention.attention.{part}" for part in ("query", "key", "value"))
        tensors |= source.fused(f"{there}attn.qkv.weight", f"{there}attn.qkv.bias", attention)
        tensors |= source.layer(f"{there}attn.proj", f"{here}attention.output.dense")
        tensors |= source.layer(f"{there}norm1", f"{here}layernorm_before")
        tensors |= source.layer(f"{there}norm2", f"{here}layernorm_after")
        tensors |= source.layer(f"{there}mlp.fc1", f"{here}intermediate.dense")
        tensors |= source.layer(f"{there}mlp.fc2", f"{here}output.dense")
    kernel = tensors["embeddings.patch_embeddings.projection.weight"]
    positions = tensors["embeddings.position_embeddings"]
    sizes = _vision(kernel, positions[0, 1:], tensors["encoder.layer.0.intermediate.dense.bias"], layers)
    return Mapped(
        model="ViTModel",
        config=sizes | _timm_conventions(config, tensors["layernorm.weight"]),
        pool=TIMM_POOLS[pool],
        tensors=tensors,
        projection=_timm_projection(source, projected),
    )


def _timm_siglip(source: Source, config: Mapping[str, Any]) -> Mapped:
    trunk, vision = "visual.trunk.", "vision_model."
    if config.get("timm_pool") != "map":
        raise NoMapping(f"it has the pooling {config.get('timm_pool')!r}")
    tensors = {
        f"{vision}embeddings.position_embedding.weight": source.take(f"{trunk}pos_embed")[0],
        **source.layer(f"{trunk}patch_embed.proj", f"{vision}embeddings.patch_embedding"),
        **source.layer(f"{trunk}norm", f"{vision}post_layernorm"),
        f"{vision}head.probe": source.take(f"{trunk}attn_pool.latent"),
        **source.layer(f"{trunk}attn_pool.proj", f"{vision}head.attention.out_proj"),
        **source.layer(f"{trunk}attn_pool.norm", f"{vision}head.layernorm"),
        **source.layer(f"{trunk}attn_pool.mlp.fc1", f"{vision}head.mlp.fc1"),
        **source.layer(f"{trunk}attn_pool.mlp.fc2", f"{vision}head.mlp.fc2"),
    }
    for part in ("weight", "bias"):  # transformers stores query, key and value of this attention as one
        rows = [source.take(f"{trunk}attn_pool.{layer}.{part}") for layer in ("q", "kv")]
        tensors[f"{vision}head.attention.in_proj_{part}"] = torch.cat(rows)
    layers = source.count(f"{trunk}blocks.")
    for number in range(layers):
        there, here = f"{trunk}blocks.{number}.", f"{vision}encoder.layers.{number}."
        attention = tuple(f"{here}self_attn.{part}_proj" for part in "qkv")
        tensors |= source.fused(f"{there}attn.qkv.weight", f"{there}attn.qkv.bias", attention)
        tensors |= source.layer(f"{there}attn.proj", f"{here}self_attn.out_proj")
        tensors |= source.layer(f"{there}norm1", f"{here}layer_norm1")
        tensors |= source.layer(f"{there}norm2", f"{here}layer_norm2")
        tensors |= source.layer(f"{there}mlp.fc1", f"{here}mlp.fc1")
        tensors |= source.layer(f"{there}mlp.fc2", f"{here}mlp.fc2")
    kernel, positions = (tensors[f"{vision}embeddings.{name}_embedding.weight"] for name in ("patch", "position"))
    sizes = _vision(kernel, positions, tensors[f"{vision}encoder.layers.0.mlp.fc1.bias"], layers)
    return Mapped(
        model="SiglipVisionModel",
        config=sizes | _timm_conventions(config, tensors[f"{vision}post_layernorm.weight"]),
        pool="pooler",
        tensors=tensors,
        projection=_timm_projection(source, config.get("timm_proj", "linear")),
    )


def _timm_conventions(config: Mapping[str, Any], norm: Tensor) -> dict[str, Any]:
    name = str(config["timm_model_name"])
    heads = 16 if name.split("_")[1] in SIXTEEN_HEADS else max(1, len(norm) // 64)
    tanh = name.startswith(("vit_giantopt_", "vit_so400m_patch16_"))  # timm gives the others the exact GELU
    activation = "gelu_pytorch_tanh" if tanh else "gelu"
    return {"num_attention_heads": heads, "layer_norm_eps": 1e-6, "hidden_act": activation}


def _timm_projection(source: Source, kind: Any) -> list[tuple[Tensor, Tensor | None]]:
    names = {"linear": ["visual.head.proj"], "mlp": ["visual.head.mlp.fc1", "visual.head.mlp.fc2"], "none": []}
    found = names.get(str(kind), ["visual.trunk.head"])
    return [(source.take(f"{name}.weight"), source.optional(f"{name}.bias")) for name in found]


def _own_image(source: Source, config: Mapping[str, Any], quick_gelu: bool) -> Mapped:
    _require(config, OWN_IMAGE)
    if isinstance(config.get("layers"), list):
        raise NoMapping("it is a ResNet with attention pooling")
    pool = str(config.get("pool_type", "tok"))
    if pool not in ("tok", "avg"):
        raise NoMapping(f"it has the pooling {pool!r}")
    vision = "vision_model."
    tensors = {
        f"{vision}embeddings.class_embedding": source.take("visual.class_embedding"),
        f"{vision}embeddings.position_embedding.weight": source.take("visual.positional_embedding"),
        f"{vision}embeddings.patch_embedding.weight": source.take("visual.conv1.weight"),
        **source.layer("visual.ln_pre", f"{vision}pre_layrnorm"),
        **source.layer("visual.ln_post", f"{vision}post_layernorm"),
    }
    layers = _blocks(source, "visual.transformer.resblocks.", f"{vision}encoder.layers.", tensors)
    width = len(tensors[f"{vision}post_layernorm.weight"])
    averaged = "mean then norm" if config.get("final_ln_after_pool") else "mean"
    kernel, positions = (tensors[f"{vision}embeddings.{name}_embedding.weight"] for name in ("patch", "position"))
    sizes = _vision(kernel, positions[1:], tensors[f"{vision}encoder.layers.0.mlp.fc1.bias"], layers)
    return Mapped(
        model="CLIPVisionModel",
        config=sizes | _conventions(config, quick_gelu, width // int(config.get("head_width", 64))),
        pool="first" if pool == "tok" else averaged,
        tensors=tensors,
        projection=[(source.take("visual.proj").T.contiguous(), None)],
    )


def _vision(kernel: Tensor, positions: Tensor, inner: Tensor, layers: int) -> dict[str, int]:
    """Return the settings that tensors tell: the kernel (width, channels, P, P) of the patches, their positions
    (side², width) and the bias (inner,) of the wide layer of a block.
    """
    patch, side = kernel.shape[-1], round(len(positions) ** 0.5)
    if kernel.shape[-2] != patch or side * side != len(positions):
        raise NoMapping("it has patches or images that are not square")
    width, channels = kernel.shape[:2]
    return {
        "hidden_size": width, "num_channels": channels, "patch_size": patch, "image_size": side * patch,
        "num_hidden_layers": layers, "intermediate_size": len(inner),
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- texts

TEXT_POOLS = {"argmax": "highest token", "first": "first"}
BERT_POOLS = {"mean_pooler": "mean", "cls_pooler": "pooler", "cls_last_hidden_state_pooler": "first"}
SMALL_HEADS = (384,)  # widths of BERT with twelve heads instead of heads of 64 dimensions (MiniLM and its like)


def text_half(source: Source, config: Mapping[str, Any], quick_gelu: bool) -> Mapped:
    """Map the text half. Arguments and errors are those of `image_half`, with `text_cfg`."""
    _require(config, {"tokenizer_mode": None})
    mapped = _bert(source, config) if config.get("hf_model_name") else _own_text(source, config, quick_gelu)
    source.finish()
    return mapped


def _bert(source: Source, config: Mapping[str, Any]) -> Mapped:
    name, text = str(config["hf_model_name"]), "text.transformer."
    roberta = "roberta" in name.lower()
    source.optional(f"{text}embeddings.position_ids")  # a buffer that earlier versions stored
    if f"{text}embeddings.word_embeddings.weight" not in source:
        raise NoMapping(f"it is a {name}")
    words, width = source.shape(f"{text}embeddings.word_embeddings.weight")
    default = "mean_pooler" if roberta else "cls_pooler"  # of open_clip, where the configuration has null
    pool = str(config.get("hf_pooler_type", "mean_pooler") or default)
    if pool not in BERT_POOLS:
        raise NoMapping(f"it has the pooling {pool!r}")
    layers = source.count(f"{text}encoder.layer.")
    projection = _bert_projection(source, config.get("hf_proj_type", "mlp"))
    names = _bert_names(layers) + (_layer_names("pooler.dense") if pool == "cls_pooler" else [])
    tensors = {one: source.take(text + one) for one in names}
    for unused in _layer_names("pooler.dense"):  # stored by earlier versions for every pooling
        source.optional(text + unused)
    return Mapped(
        model="RobertaModel" if roberta else "BertModel",
        config={
            "vocab_size": words,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 12 if width in SMALL_HEADS else max(1, width // 64),
            "intermediate_size": len(tensors["encoder.layer.0.intermediate.dense.bias"]),
            "max_position_embeddings": len(tensors["embeddings.position_embeddings.weight"]),
            "type_vocab_size": len(tensors["embeddings.token_type_embeddings.weight"]),
            "pad_token_id": 1 if roberta else 0,
            "layer_norm_eps": 1e-5 if roberta else 1e-12,
        },
        pool=BERT_POOLS[pool],
        tensors=tensors,
        projection=projection,
    )


def _bert_names(layers: int) -> list[str]:
    tables = [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")  # fmt: skip
    inner = [f"encoder.layer.{number}.{part}" for number in range(layers) for part in parts]
    return tables + [name for layer in ["embeddings.LayerNorm", *inner] for name in _layer_names(layer)]


def _layer_names(layer: str) -> list[str]:
    return [f"{layer}.weight", f"{layer}.bias"]


def _bert_projection(source: Source, kind: Any) -> list[tuple[Tensor, Tensor | None]]:
    names = {"linear": ["text.proj"], "mlp": ["text.proj.0", "text.proj.2"], "None": []}
    if str(kind) not in names:
        raise NoMapping(f"it has the projection {kind!r}")
    return [(source.take(f"{name}.weight"), source.optional(f"{name}.bias")) for name in names[str(kind)]]


def _own_text(source: Source, config: Mapping[str, Any], quick_gelu: bool) -> Mapped:
    _require(config, OWN_TEXT)
    pool = str(config.get("pool_type", "argmax"))
    if pool not in (*TEXT_POOLS, "eos"):
        raise NoMapping(f"it has the pooling {pool!r}")
    there = "text." if "text.token_embedding.weight" in source else ""
    model = "text_model."
    tensors = {
        f"{model}embeddings.token_embedding.weight": source.take(f"{there}token_embedding.weight"),
        f"{model}embeddings.position_embedding.weight": source.take(f"{there}positional_embedding"),
        **source.layer(f"{there}ln_final", f"{model}final_layer_norm"),
    }
    layers = _blocks(source, f"{there}transformer.resblocks.", f"{model}encoder.layers.", tensors)
    words, width = tensors[f"{model}embeddings.token_embedding.weight"].shape
    return Mapped(
        model="CLIPTextModel",
        config={
            "vocab_size": words,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "intermediate_size": len(tensors[f"{model}encoder.layers.0.mlp.fc1.bias"]),
            "max_position_embeddings": len(tensors[f"{model}embeddings.position_embedding.weight"]),
            "bos_token_id": None,
            "eos_token_id": 2,  # any: the pooling of the library is not used
            "pad_token_id": None,
            **_conventions(config, quick_gelu, int(config.get("heads", 8))),
        },
        pool=TEXT_POOLS[pool] if pool in TEXT_POOLS else str(int(config.get("eos_id", 2))),
        tensors=tensors,
        projection=_own_projection(source, f"{there}text_projection"),
    )


def _own_projection(source: Source, name: str) -> list[tuple[Tensor, Tensor | None]]:
    if name in source:
        return [(source.take(name).T.contiguous(), None)]
    return [(source.take(f"{name}.weight"), source.optional(f"{name}.bias"))] if f"{name}.weight" in source else []


# --------------------------------------------------------------------------------------- open_clip's own blocks


def _blocks(source: Source, there: str, here: str, tensors: dict[str, Tensor]) -> int:
    """Take the transformer blocks whose names begin with `there`, and return their number."""
    count = source.count(there)
    for number in range(count):
        old, new = f"{there}{number}.", f"{here}{number}."
        attention = tuple(f"{new}self_attn.{part}_proj" for part in "qkv")
        tensors |= source.fused(f"{old}attn.in_proj_weight", f"{old}attn.in_proj_bias", attention)
        tensors |= source.layer(f"{old}attn.out_proj", f"{new}self_attn.out_proj")
        tensors |= source.layer(f"{old}ln_1", f"{new}layer_norm1")
        tensors |= source.layer(f"{old}ln_2", f"{new}layer_norm2")
        tensors |= source.layer(f"{old}mlp.c_fc", f"{new}mlp.fc1")
        tensors |= source.layer(f"{old}mlp.c_proj", f"{new}mlp.fc2")
    return count


def _conventions(config: Mapping[str, Any], quick_gelu: bool, heads: int) -> dict[str, Any]:
    eps = float(dict(config.get("norm_kwargs") or {}).get("eps", 1e-5))
    activation = "quick_gelu" if quick_gelu else "gelu"
    return {"num_attention_heads": heads, "layer_norm_eps": eps, "hidden_act": activation}


def _require(config: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raise NoMapping when a setting has another value than the one that can be mapped."""
    for name, value in only.items():
        if config.get(name, value) not in (value, None):
            raise NoMapping(f"it has the setting {name}")
