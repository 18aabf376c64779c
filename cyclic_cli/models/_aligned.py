"""The image–text model on fixed codes: its heads are a closed form, which training may go on from.

    content → parts of features → code (fixed, see `codes`) → head → blocks → embedding

A head is one linear map. Its output is divided into blocks; each block is L2-normalised and multiplied by its weight.
The squares of the weights sum to 1, so the embedding is L2-normalised, and the dot product of two embeddings is the
weighted mean of the cosines of their blocks: of canonical variates, of text codes, of image codes (see `alignment`).

The code is given whole to the decoder of its own modality. It is larger than the embedding of a trained model, and an
image is decoded from it by a linear map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.models._joint import JointModel


class AlignedModel(JointModel):
    """Encodes content into fixed codes, and maps the codes into the shared space."""

    def __init__(self, encoders: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            encoders: By modality, the `Encoder` of its file, which gives fixed codes.
            blocks: Of the embedding, in order: `dims` and `weight`. Raises ValueError unless the squares of the weights
                sum to 1.
        """
        dims = [int(block["dims"]) for block in blocks]
        weights = [float(block["weight"]) for block in blocks]
        if min(dims, default=0) < 1 or not math.isclose(sum(weight**2 for weight in weights), 1, abs_tol=1e-6):
            raise ValueError("the blocks of the embedding are damaged")
        super().__init__(encoders, sum(dims), 0)
        self.dims, self.weights = dims, weights

    def split(self, name: str, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the L2-normalised embeddings (N, embedding) of codes (N, code), and private parts (N, 0)."""
        blocks = self.heads[name](code).split(self.dims, 1)
        scaled = [
            weight * functional.normalize(block, dim=1) for weight, block in zip(self.weights, blocks, strict=True)
        ]
        return torch.cat(scaled, 1), code[:, :0]

    def latent(self, name: str, content: Tensor) -> Tensor:
        """Return the codes (N, code) of content."""
        code: Tensor = self.encoders[name].encode(content)
        return code

    def code_of_latent(self, name: str, latent: Tensor) -> Tensor:
        return latent
