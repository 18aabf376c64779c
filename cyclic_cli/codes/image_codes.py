"""Fixed codes of images, and the linear map that draws an image from its code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.codes.coded import CodedEncoder
from cyclic_cli.codes.image_features import SOURCES
from cyclic_cli.errors import CyclicError

DRAWN = 64  # pixels per side of a drawing, at most: 128 components of an image show no finer detail
COMPONENTS = 128  # of the pixels of a drawing, at most


class Drawing(nn.Module):
    """Draws images from codes: ridge regression of the principal components of small images on the codes."""

    weights: Tensor  # (code, R)
    components: Tensor  # (R, C · side · side)
    mean: Tensor  # (C · side · side,)

    def __init__(self, code: int, components: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape, self.side = image_shape, min(DRAWN, image_shape[1])
        pixels = image_shape[0] * self.side**2
        self.register_buffer("weights", torch.zeros(code, components))
        self.register_buffer("components", torch.zeros(components, pixels))
        self.register_buffer("mean", torch.zeros(pixels))

    def forward(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes (N, code)."""
        small = (code @ self.weights @ self.components + self.mean).view(-1, self.image_shape[0], self.side, self.side)
        if self.side == self.image_shape[1]:
            return small
        return functional.interpolate(small, self.image_shape[1:], mode="bilinear", align_corners=False)


def reduced(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) averaged to at most `DRAWN` pixels per side, flattened (N, P)."""
    side = min(DRAWN, images.shape[2])
    return functional.adaptive_avg_pool2d(images, side).flatten(1)


class CodedImages(CodedEncoder):
    """Encodes images into fixed codes, and draws images from codes."""

    variance: Tensor  # (), mean squared difference of pixels from the mean image: error of the mean predictor

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Raises CyclicError when the facts of a checkpoint are damaged."""
        super().__init__(facts.get("parts", ()), SOURCES, 4)
        try:
            shape = tuple(int(side) for side in facts["image_shape"])
            self.drawing = Drawing(self.code, int(facts["drawing"]), shape)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise CyclicError("The facts of the images in the checkpoint are damaged.", "Copy it again.") from None
        self.register_buffer("variance", torch.ones(()))

    def decode(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes (N, code)."""
        image: Tensor = self.drawing(code)
        return image

    def errors(self, code: Tensor, content: Tensor) -> Tensor:
        """Return (N,) squared errors relative to the mean predictor: of pixels for images, of codes for codes."""
        if self.is_code(content):
            return super().errors(code, content)
        return (self.decode(code) - content).square().flatten(1).mean(1) / self.variance
