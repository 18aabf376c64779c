"""Reconstruction: the mean squared error over pixels.

    loss = 1 / (N P) Σ_n Σ_p (reconstruction_np − image_np)²

over N samples of P = C H W values each, in squared units of the image, which spans [0, 1]. Up to a factor and
a constant it is the negative log-likelihood of Gaussian pixels (Bishop, "Pattern Recognition and Machine
Learning", 2006, section 5.2).
"""

from __future__ import annotations

from torch import Tensor

from cyclic_cli.objectives._pixels import compared

NEEDS = ("reconstruction",)
PER_SAMPLE = True


def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Return the scalar error of outputs["reconstruction"] against batch["image"], both (N, C, H, W).

    Raises ValueError when the shapes differ.
    """
    reconstruction, image = compared(outputs, batch)
    return (reconstruction - image).square().mean()
