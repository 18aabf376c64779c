"""Text networks of the transformers library as encoders.

The one output `embedding` is, by what the folder holds:

    a BERT-like model                the mean of the last vectors over the tokens
    a sentence-transformers folder   what its modules compute: pooling, dense layers, normalisation
    the text half of CLIP            the vector of the last token, after the projection where there is one
    the text half of SigLIP          the vector of the last position, after its head
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.pretrained import pooling
from cyclic_cli.pretrained.encoder import EncoderFacts, Output, PretrainedEncoder
from cyclic_cli.pretrained.windows import over_windows

POOLS = {"cls": pooling.first_token, "max": pooling.highest_of_tokens, "mean": pooling.mean_of_tokens}
"""How the vectors of tokens become one, in the order in which sentence-transformers joins several."""

HALVES = {  # text halves of image–text models, by the model type of their configuration: class, class with projection
    "clip_text_model": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "siglip_text_model": ("SiglipTextModel", ""),
}
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh}  # of dense layers


class TextEncoder(PretrainedEncoder):
    """A network of the transformers library that reads texts."""

    trainable = True

    def __init__(self, network: Any, facts: EncoderFacts) -> None:
        """
        Args:
            network: An encoder with vectors of tokens, or the text half of an image–text model.
            facts: Their outputs may be missing; they are then found with a text. Their settings have

                padding    token number of a padded position
                pools      names in `POOLS`; empty for halves of image–text models, which pool by themselves
                layers     what follows the pooling: {"normalise": true}, or {"inputs", "outputs", "bias",
                           "activation"} of a dense layer
        """
        super().__init__()
        self.network, settings = network, facts.settings
        self.reads = network.config.model_type if network.config.model_type in HALVES else ""
        self.window, self.padding = facts.window or 0, int(settings["padding"])
        self.pools = [POOLS[name] for name in settings["pools"]]
        self.layers = nn.ModuleList(map(_layer, settings["layers"])).requires_grad_(False)
        self.eval()
        self.facts = facts if facts.outputs else replace(facts, outputs=self._outputs())

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        """Return features (N, F) of texts (N, W, L). Layers behind the pooling read the mean over the windows."""
        vectors = over_windows(content, self._half if self.reads else self._pooled)
        for layer in self.layers:
            vectors = layer(vectors)
        return {"embedding": vectors}

    def _numbers(self, tokens: Tensor) -> Tensor:
        return torch.where(tokens > 0, tokens - 1, self.padding)

    def _pooled(self, tokens: Tensor) -> Tensor:
        """Features (M, F) of windows (M, L) by an encoder with vectors of tokens."""
        first = torch.arange(tokens.shape[1], device=tokens.device) == 0
        mask = (tokens > 0) | first  # an empty window has one position to read
        last = self.network(input_ids=self._numbers(tokens), attention_mask=mask.long()).last_hidden_state
        return torch.cat([pool(last, mask) for pool in self.pools], 1)

    def _half(self, tokens: Tensor) -> Tensor:
        """Features (M, F) of windows (M, L) by a half of an image–text model, which is trained without a mask.

        CLIP reads from left to right and takes the end token, behind which anything may stand. SigLIP was trained on
        windows that are always filled with padding, and takes the last position.
        """
        numbers = self._numbers(tokens)
        if self.reads == "siglip_text_model":
            filling = numbers.new_full((numbers.shape[0], self.window), self.padding)
            numbers = torch.cat([numbers, filling[:, numbers.shape[1] :]], 1)
        result = self.network(input_ids=numbers)
        vectors: Tensor | None = result.get("text_embeds")
        return result.pooler_output if vectors is None else vectors

    def _outputs(self) -> tuple[Output, ...]:
        with torch.inference_mode():
            features = self(torch.full((1, 1, 1), self.padding + 1))
        return tuple(Output(name=name, dims=value.shape[1]) for name, value in features.items())


class Normalise(nn.Module):
    """Gives vectors (N, F) the length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=1)


def positions_of(network: Any) -> int | None:
    """Return the most tokens that a network reads; None where its positions have no end."""
    longest = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    for name, table in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return longest - table.padding_idx - 1  # as of RoBERTa, whose positions begin behind that of padding
    return longest


def _layer(values: Mapping[str, Any]) -> nn.Module:
    if values.get("normalise"):
        return Normalise()
    dense = nn.Linear(int(values["inputs"]), int(values["outputs"]), bias=bool(values["bias"]))
    return nn.Sequential(dense, ACTIVATIONS[values["activation"]]())
