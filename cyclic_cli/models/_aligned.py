"""The image–text model on fixed codes: its heads are a closed form, which training may go on from.

    content → parts of features → code (fixed, see `codes`) → head → blocks → embedding

A head is one linear map. A model with residual heads adds a small network to it, whose last layer is zero at the start,
and keeps the linear map as it is. What the linear map alone gives is then the closed form, to which objectives can hold
the embedding. The output is divided into blocks; each block is L2-normalised and multiplied by its weight.
The squares of the weights sum to 1, so the embedding is L2-normalised, and the dot product of two embeddings is the
weighted mean of the cosines of their blocks: of canonical variates, of text codes, of image codes (see `alignment`).

The code is given whole to the decoder of its own modality. It is larger than the embedding of a trained model, and an
image is decoded from it by a linear map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.models._joint import BatchOutputs, JointModel

REFINED = ("closed_form", "code")  # outputs of a model with residual heads, beside `_joint.OUTPUTS`
HIDDEN = 128  # hidden units of the residual heads of a new model
MOST_HIDDEN = 65_536  # of a checkpoint that is not damaged


class AlignedModel(JointModel):
    """Encodes content into fixed codes, and maps the codes into the shared space."""

    def __init__(
        self, encoders: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], residual: int | None = None
    ) -> None:
        """
        Args:
            encoders: By modality, the `Encoder` of its file, which gives fixed codes.
            blocks: Of the embedding, in order: `dims` and `weight`.
            residual: Hidden units of the residual heads; None: the model has none.

        Raises:
            ValueError: The squares of the weights do not sum to 1, or `residual` is not possible.
        """
        dims = [int(block["dims"]) for block in blocks]
        weights = [float(block["weight"]) for block in blocks]
        if min(dims, default=0) < 1 or not math.isclose(sum(weight**2 for weight in weights), 1, abs_tol=1e-6):
            raise ValueError("the blocks of the embedding are damaged")
        super().__init__(encoders, sum(dims), 0)
        self.dims, self.weights = dims, weights
        self.residuals: nn.ModuleDict | None = None
        if residual is not None:
            if not 1 <= residual <= MOST_HIDDEN:
                raise ValueError("the residual heads are damaged")
            heads = {name: ResidualHead(encoder, residual, self.embedding) for name, encoder in encoders.items()}
            self.residuals = nn.ModuleDict(heads)
            self.heads.requires_grad_(False)

    @property
    def trained_heads(self) -> list[nn.Parameter]:
        return list((self.heads if self.residuals is None else self.residuals).parameters())

    def split(self, name: str, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the L2-normalised embeddings (N, embedding) of codes (N, code), and private parts (N, 0)."""
        mapped = self.heads[name](code)
        if self.residuals is not None:
            mapped = mapped + self.residuals[name](code)
        return self._normalised(mapped), code[:, :0]

    @torch.no_grad()
    def closed_form(self, name: str, code: Tensor) -> Tensor:
        """Return the L2-normalised embeddings (N, embedding) of codes (N, code) by the linear head alone."""
        return self._normalised(self.heads[name](code))

    def _normalised(self, mapped: Tensor) -> Tensor:
        """Return embeddings (N, embedding) whose blocks are L2-normalised, and weighted."""
        blocks = torch.split(mapped, self.dims, 1)
        scaled = [
            weight * functional.normalize(block, dim=1) for weight, block in zip(self.weights, blocks, strict=True)
        ]
        return torch.cat(scaled, 1)

    def latent(self, name: str, content: Tensor) -> Tensor:
        """Return the codes (N, code) of content."""
        code: Tensor = self.encoders[name].encode(content)
        return code

    def code_of_latent(self, name: str, latent: Tensor) -> Tensor:
        return latent

    def batch_outputs(
        self, contents: Mapping[str, Tensor], samples: Mapping[str, Tensor], codes: Mapping[str, Tensor],
        keep: Mapping[str, Tensor],
    ) -> BatchOutputs:  # fmt: skip
        return _RefinedOutputs(self, contents, samples, codes, keep)


class ResidualHead(nn.Module):
    """What is added to a linear head: U φ(V code), with the activation φ (GELU). U is zero at the start."""

    def __init__(self, encoder: Any, hidden: int, width: int) -> None:
        """
        Args:
            encoder: Of the modality. Each part of its codes has a variance of one.
            hidden: Units of the hidden layer.
            width: Of the output of the linear head.
        """
        super().__init__()
        self.inner = nn.Linear(encoder.code, hidden)
        self.outer = nn.Linear(hidden, width, bias=False)
        nn.init.normal_(self.inner.weight, std=len(encoder.parts) ** -0.5)  # hidden units have a variance of about one
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.weight)

    def forward(self, code: Tensor) -> Tensor:
        """Return (N, width) from codes (N, code)."""
        mapped: Tensor = self.outer(functional.gelu(self.inner(code)))
        return mapped


class _RefinedOutputs(BatchOutputs):
    """The outputs of a batch, with those of REFINED."""

    model: AlignedModel

    @cached_property
    def code(self) -> dict[str, Tensor]:
        """By modality, (N, code) the fixed codes."""
        return dict(self.codes)

    @cached_property
    def closed_form(self) -> dict[str, Tensor]:
        """By modality, (N, embedding) the embeddings of the closed form, without a gradient."""
        return {name: self.model.closed_form(name, code) for name, code in self.codes.items()}
