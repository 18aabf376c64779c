"""Transformer: sentences read by a small encoder and written, token by token, by a small decoder.

The code is the mean of the encoder's last vectors over the tokens; the decoder has it in front of the sentence. Encoder
and decoder share their table of tokens. No layer draws random numbers: what training leaves out of a text is said by
the modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.text_encoders._decoding import EMBEDDING_SCALE, Block, Decoder, Writing, trimmed
from cyclic_cli.text_encoders._vocabulary import START


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 128  # numbers of a token's vector, and of the code
    layers: int = 2  # of the encoder, and of the decoder
    heads: int = 4
    prefix: int = 4  # vectors of the code in front of a sentence


GENERATES = True
FITTED = False


class Encoder(Writing):
    """Encoder and decoder."""

    def __init__(self, config: Config, facts: Mapping[str, Any], vocabulary: int) -> None:
        """Raises UsageError when the heads do not divide the width."""
        super().__init__()
        self.code = config.width
        self.decoder = Decoder(self.code, config.width, config.layers, config.heads, config.prefix, facts, vocabulary)
        self.positions = nn.Parameter(EMBEDDING_SCALE * torch.randn(self.decoder.limit + 1, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def initialise(self, tokens: Iterable[Tensor]) -> None:
        """Nothing: the decoder starts at the frequencies of the tokens, which the facts hold."""

    def encode(self, tokens: Tensor) -> Tensor:
        """Codes (N, code) of tokens (N, L), those below 0 unread, or of rows (N, L, V) that `drawn` gave."""
        table = self.decoder.embedding.weight
        if tokens.dim() == 2:
            tokens = trimmed(tokens)
            there, vectors = tokens > 0, functional.embedding(tokens.clamp(min=0), table)
        else:
            there, vectors = tokens.detach().sum(2) > 0.5, tokens @ table
        start = table[START].to(vectors.dtype).expand(len(vectors), 1, -1)  # something to read in every text
        vectors = torch.cat([start, vectors], 1) + self.positions[: vectors.shape[1] + 1]
        there = torch.cat([there.new_ones(len(there), 1), there], 1)
        for block in self.blocks:
            vectors = block(vectors, there)
        return (self.norm(vectors) * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)
