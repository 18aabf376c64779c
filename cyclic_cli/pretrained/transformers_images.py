"""Image networks of the transformers library as encoders.

Outputs:

    embedding    the vector of a whole image, as the family defines it: after the projection of CLIP where there is one,
                 the pooling head of SigLIP, the class token of ViT and DINO, the pooled last map of others
    patches      the map of the last layer, pooled to 2×2
    layer K      the map behind layer (ViT) or stage (others) K, pooled to 2×2, at about 1/2 and 3/4 of the depth
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cyclic_cli.pretrained.encoder import EncoderFacts, Geometry, Output, PretrainedEncoder
from cyclic_cli.pretrained.geometry import fitted
from cyclic_cli.pretrained.pooling import pooled_map, pooled_patches


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a kind of network is used."""

    network: str  # its class in the library
    projected: str = ""  # the class with a projection, whose weight is named `visual_projection.weight`
    patches: bool = False  # whether it cuts images into patches and interpolates positions to any size
    options: tuple[str, ...] = ()  # flags for its call
    pools: bool = True  # whether its `pooler_output` is the vector of an image; otherwise its first token is


FAMILIES = {
    "clip_vision_model": Family(
        network="CLIPVisionModel", projected="CLIPVisionModelWithProjection", patches=True,
        options=("interpolate_pos_encoding",),
    ),
    "siglip_vision_model": Family(
        network="SiglipVisionModel", patches=True, options=("interpolate_pos_encoding",),
    ),
    "vit": Family(network="ViTModel", patches=True, options=("interpolate_pos_encoding",), pools=False),
    "deit": Family(network="DeiTModel", patches=True, options=("interpolate_pos_encoding",), pools=False),
    "dinov2": Family(network="Dinov2Model", patches=True),
    "dinov2_with_registers": Family(network="Dinov2WithRegistersModel", patches=True),
    "dinov3_vit": Family(network="DINOv3ViTModel", patches=True),
    "dinov3_convnext": Family(network="DINOv3ConvNextModel"),
    "convnext": Family(network="ConvNextModel"),
    "convnextv2": Family(network="ConvNextV2Model"),
    "swin": Family(network="SwinModel"),
    "swinv2": Family(network="Swinv2Model"),
    "resnet": Family(network="ResNetModel"),
}  # fmt: skip
"""By the model type of a configuration."""


class ImageEncoder(PretrainedEncoder):
    """A network of the transformers library that reads images."""

    trainable = True

    def __init__(self, network: Any, facts: EncoderFacts) -> None:
        """
        Args:
            network: Of a class in `FAMILIES`.
            facts: Their outputs may be missing; they are then found with an image.
        """
        super().__init__()
        assert facts.geometry is not None
        self.network, self.geometry = network, facts.geometry
        self.family = FAMILIES[network.config.model_type]
        self.options = dict.fromkeys(self.family.options, True)
        depth = depth_of(network.config)
        self.layers = sorted({depth // 2, depth * 3 // 4} - {0, depth})
        self.eval()
        self.facts = facts if facts.outputs else replace(facts, outputs=self._outputs(facts.geometry))

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        """Return features (N, F) of images (N, C, S, S) by the name of the output."""
        result = self.network(
            pixel_values=fitted(content, self.geometry), output_hidden_states=True, **self.options
        )  # fmt: skip
        states = result.get("reshaped_hidden_states") or result.hidden_states
        last = result.last_hidden_state
        side = self.geometry.size // self.network.config.patch_size if self.family.patches else states[-1].shape[-1]
        maps = {"patches": last, **{f"layer {number}": states[number] for number in self.layers}}
        return {"embedding": self._embedding(result, side)} | {name: _pooled(maps[name], side) for name in maps}

    def _embedding(self, result: Any, side: int) -> Tensor:
        """The vector (N, F) of whole images."""
        vectors: Tensor | None = result.get("image_embeds")
        if vectors is None:
            vectors = result.get("pooler_output") if self.family.pools else result.last_hidden_state[:, 0]
        if vectors is None:  # SigLIP without its head
            vectors = result.last_hidden_state[:, -side * side :].mean(1)
        return vectors.flatten(1)

    def _outputs(self, geometry: Geometry) -> tuple[Output, ...]:
        with torch.inference_mode():
            features = self(torch.zeros(1, geometry.channels, geometry.size, geometry.size))
        return tuple(Output(name=name, dims=value.shape[1]) for name, value in features.items())


def depth_of(settings: Any) -> int:
    """The number of layers of a network, or of its stages."""
    stages = getattr(settings, "depths", None)
    return len(stages) if stages else int(settings.num_hidden_layers)


def network_of(family: Family, tensors: Mapping[str, Any] | set[str]) -> str:
    """Return the class that reads the tensors of these names."""
    return family.projected if family.projected and "visual_projection.weight" in tensors else family.network


def _pooled(state: Tensor, side: int) -> Tensor:
    """A map (N, D, h, w), or vectors of tokens (N, T, D) whose last side² are patches, pooled to 2×2."""
    return pooled_map(state) if state.dim() == 4 else pooled_patches(state[:, -side * side :], side, side)
