"""The encoder of a modality whose code is fixed: parts of features, each reduced by principal components.

    content → features of each part → (features − mean) · matrix → concatenated: the code

Features come from pretrained encoders and from cheap functions of the content. A part is one output of one of them. The
code as content encodes to itself, so that training may read codes that were computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cyclic_cli.errors import CyclicError
from cyclic_cli.pretrained.encoder import PretrainedEncoder

Features = dict[str, Tensor]  # by name of the output, (N, F)


def trained_name(fingerprint: str) -> str:
    """Return the name of the submodule of a pretrained encoder whose weights training moves."""
    return f"pretrained_{fingerprint}"


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """One part of a code."""

    source: str  # fingerprint of a pretrained encoder, or the name of a cheap function of the content
    output: str  # name of the output of this source
    features: int  # F
    dims: int  # principal components, K


class Part(nn.Module):
    """Projects features onto principal components whose total variance is one."""

    mean: Tensor  # (F,)
    matrix: Tensor  # (F, K)

    def __init__(self, facts: PartFacts) -> None:
        super().__init__()
        self.facts = facts
        self.register_buffer("mean", torch.zeros(facts.features))
        self.register_buffer("matrix", torch.zeros(facts.features, facts.dims))

    def forward(self, features: Tensor) -> Tensor:
        """Return the part (N, K) of codes from features (N, F)."""
        part: Tensor = (features - self.mean) @ self.matrix
        return part


class CodedEncoder(nn.Module):
    """Encodes content of one modality into fixed codes, and decodes codes."""

    fitted = False  # nothing here is trained, so there is nothing to keep unpaired samples away from
    generates = False
    spread: Tensor  # (), mean squared distance of the codes from their mean: the error of the mean predictor

    def __init__(
        self, parts: Sequence[Mapping[str, Any]], sources: Mapping[str, Callable[[Tensor], Features]], dims: int
    ) -> None:
        """
        Args:
            parts: `PartFacts` as plain types.
            sources: Functions of content by name; those of pretrained encoders are given later, see `attach`.
            dims: Of the tensors of content. Codes have two.

        Raises:
            CyclicError: The description of the parts is damaged.
        """
        super().__init__()
        try:
            self.parts: Any = nn.ModuleList(Part(PartFacts(**one)) for one in parts)
            self.code = sum(part.facts.dims for part in list[Any](self.parts))
            if self.code < 1:
                raise ValueError("no parts")
        except (TypeError, ValueError, RuntimeError):
            raise CyclicError("The parts of the codes in the checkpoint are damaged.", "Copy it again.") from None
        self._sources, self._attached, self._dims = dict(sources), list[nn.Module](), dims
        self.register_buffer("spread", torch.ones(()))

    def attach(self, fingerprint: str, encoder: nn.Module, frozen: bool = True) -> None:
        """Use a pretrained encoder as the source with its fingerprint.

        The weights of a frozen encoder are no part of this module's state: they lie in a file of their own.
        """
        if frozen:
            encoder.requires_grad_(False).eval()
            self._attached.append(encoder.to(self.spread.device))
            self._sources[fingerprint] = encoder
        else:
            self.add_module(trained_name(fingerprint), encoder.requires_grad_(True))
            self._sources[fingerprint] = encoder

    @property
    def pretrained(self) -> dict[str, PretrainedEncoder]:
        """The pretrained encoders whose features the code uses, by fingerprint."""
        used = dict.fromkeys(part.facts.source for part in self.parts)
        found = {source: self._sources.get(source) for source in used}
        return {source: one for source, one in found.items() if isinstance(one, PretrainedEncoder)}

    def _apply(self, fn: Any, recurse: bool = True) -> CodedEncoder:
        for encoder in self._attached:  # they move to a device together with this module
            encoder._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> CodedEncoder:
        """Set the mode. Pretrained encoders stay in evaluation mode: their dropout would depend on the batch."""
        super().train(mode)
        for name, child in self.named_children():
            if name.startswith(trained_name("")):
                child.eval()
        return self

    def features(self, content: Tensor) -> dict[str, Features]:
        """Return the features of content, by source and by output."""
        needed = dict.fromkeys(part.facts.source for part in self.parts)
        return {source: self._sources[source](content) for source in needed}

    def encode(self, content: Tensor) -> Tensor:
        """Return the codes (N, code) of content. Codes are returned as they are."""
        if self.is_code(content):
            return content
        features = self.features(content)
        return torch.cat([part(features[part.facts.source][part.facts.output]) for part in self.parts], 1)

    def is_code(self, content: Tensor) -> bool:
        return content.dim() == 2 and content.is_floating_point() and self._dims != 2

    def decode(self, code: Tensor) -> Tensor:
        """Return the code itself; a modality that can be shown decodes it."""
        return code

    def errors(self, code: Tensor, content: Tensor) -> Tensor:
        """Return (N,) squared errors of predicted codes (N, code), relative to predicting the mean code."""
        return (code - self.encode(content)).square().sum(1) / self.spread

    def soft_decode(self, code: Tensor) -> Tensor:
        """Return the codes, which `encode` accepts."""
        return code
