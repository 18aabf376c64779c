"""Transformer encoder: a small transformer reads sentences, and a small autoregressive decoder writes them.

The code is the mean of the encoder's last vectors over the tokens. The decoder reads it as a prefix (see `_decoding`).
Encoder and decoder share their token embedding. There are no dropout layers; the modality hides tokens instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.text_encoders._decoding import EMBEDDING_SCALE, Block, Decoder, GeneratingEncoder, trimmed
from cyclic_cli.text_encoders._vocabulary import START


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 128  # dimensions of the vector of a token, and of the code
    layers: int = 2  # layers of the encoder, and of the decoder
    heads: int = 4  # attention heads
    prefix: int = 4  # prefix vectors that give the code to the decoder


GENERATES = True
FITTED = False


class Encoder(GeneratingEncoder):
    """Encodes and decodes texts with transformers."""

    def __init__(self, config: Config, facts: Mapping[str, Any], vocabulary: int) -> None:
        """Raises UsageError when the width is not a multiple of the number of heads."""
        super().__init__()
        self.code = config.width
        self.decoder = Decoder(self.code, config.width, config.layers, config.heads, config.prefix, facts, vocabulary)
        self.positions = nn.Parameter(EMBEDDING_SCALE * torch.randn(self.decoder.limit + 1, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def initialise(self, tokens: Iterable[Tensor]) -> None:
        """Do nothing: the decoder has been initialised with the token frequencies of the facts."""

    def encode(self, tokens: Tensor) -> Tensor:
        """Return codes (N, code) of tokens (N, L), of which negative ones are ignored.

        Also accepts one-hot rows (N, L, V) as `soft_decode` returns them.
        """
        table = self.decoder.embedding.weight
        if tokens.dim() == 2:
            tokens = trimmed(tokens)
            mask, vectors = tokens > 0, functional.embedding(tokens.clamp(min=0), table)
        else:
            mask, vectors = tokens.detach().sum(2) > 0.5, tokens @ table
        start = table[START].to(vectors.dtype).expand(len(vectors), 1, -1)  # an empty text has this one token
        vectors = torch.cat([start, vectors], 1) + self.positions[: vectors.shape[1] + 1]
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        for block in self.blocks:
            vectors = block(vectors, mask)
        return (self.norm(vectors) * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
