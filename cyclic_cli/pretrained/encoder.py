"""The contract of a pretrained encoder: what it is (`EncoderFacts`), and what it computes (`PretrainedEncoder`)."""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

MODALITIES = ("image", "text")


@dataclass(frozen=True, kw_only=True)
class Output:
    """One kind of features that an encoder gives, such as its pooled vector or the pooled map of a layer."""

    name: str  # unique within the encoder, such as "embedding" or "layer 6"
    dims: int  # F of the features (N, F)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What an image encoder takes. The whole letterboxed image is resized, without a crop."""

    size: int  # pixels per side of its input
    native: int  # the size that it was trained with; equal to `size` unless it interpolates its positions
    channels: int  # 1 or 3; a grey image is repeated
    mean: tuple[float, ...]  # by channel, on the scale 0 to 1: (pixels − mean) / std
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """What a checkpoint stores about an encoder, besides its weights. Plain types; no path of this machine."""

    kind: str  # transformers, open_clip, onnx or cyclic
    modality: str  # of MODALITIES
    family: str  # such as bert, dinov2 or efficientnet_lite0: shown to people
    fingerprint: str  # 32 hexadecimal digits of the SHA-256 of weights, configuration, tokenizer and geometry
    licence: str  # as its folder or file states it; empty where it states none
    outputs: tuple[Output, ...]
    geometry: Geometry | None = None  # of an image encoder
    window: int | None = None  # of a text encoder: most tokens of a window, with its special tokens
    tokenizer: str = ""  # of a text encoder: the content of its tokenizer.json
    settings: dict[str, Any] = field(default_factory=dict)  # what its file needs to build it again, as JSON


class PretrainedEncoder(nn.Module):
    """An encoder with its weights, in evaluation mode. Its result for a sample does not depend on the others.

    `trainable` tells whether `frozen: false` may move it: encoders that torch runs are, ONNX graphs are not.
    """

    facts: EncoderFacts
    trainable: bool

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode. Dropout would draw random numbers that depend on the batch."""
        return super().train(False)

    def forward(self, content: Tensor) -> dict[str, Tensor]:
        """Return features (N, F) float32 by the name of the output.

        Args:
            content: Images (N, C, S, S) float32 in [0, 1], as the dataset stores them; or texts (N, W, L) int64, see
                `tokens.Tokens.encode`: W windows of L tokens, each token number plus 1, with 0 as padding. A text has
                at least one window with a token; its further windows may be empty. The features of a text are the
                mean over its windows, weighted by their numbers of tokens.
        """
        raise NotImplementedError

    def place(self, device: torch.device) -> str:
        """Return where and by what the encoder computes, on which the last digits of its features depend."""
        return device.type

    def graph_bytes(self) -> bytes:
        """Return the graph of an encoder of the kind `onnx`, which has no weights in torch."""
        raise NotImplementedError
