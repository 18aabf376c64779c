"""Reconstruction: the mean squared error over pixels.

    loss = 1 / (N P) Σ_n Σ_p (reconstruction_np − image_np)²

over N samples of P = C H W values each, in squared units of the image, which spans [0, 1]. Up to a factor and
a constant it is the negative log-likelihood of Gaussian pixels (Bishop, "Pattern Recognition and Machine
Learning", 2006, section 5.2).
"""

from __future__ import annotations

from torch import Tensor

NEEDS = ("reconstruction",)


def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Return the scalar error of outputs["reconstruction"] against batch["image"], both (N, C, H, W).

    Raises ValueError when the shapes differ, which subtraction might silently broadcast.
    """
    reconstruction, image = outputs["reconstruction"], batch["image"]
    if reconstruction.shape != image.shape:
        raise ValueError(f"the reconstruction has shape {tuple(reconstruction.shape)}, the image {tuple(image.shape)}")
    return (reconstruction - image).square().mean()
