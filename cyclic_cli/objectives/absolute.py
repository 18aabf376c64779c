"""Absolute error: the reconstruction should equal the image, measured by the mean absolute error over pixels (L1).

    loss = 1 / (N P) Σ_n Σ_p |reconstruction_np − image_np|

over N samples of P = C H W values each, in units of the image, which lies in [0, 1]. Up to a factor and a constant, the
loss is the negative log-likelihood of pixels with Laplacian noise. Large errors weigh less than in the squared error,
so edges become sharper (Zhao et al., "Loss Functions for Image Restoration with Neural Networks", IEEE TCI 3(1), 2017).
"""

from __future__ import annotations

from torch import Tensor

from cyclic_cli.objectives._pixels import compared

NEEDS = ("reconstruction",)
PER_SAMPLE = True
JOINT = False


def loss(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Return the scalar error of outputs["reconstruction"] against batch["image"], both (N, C, H, W).

    Raises ValueError when the shapes differ.
    """
    reconstruction, image = compared(outputs, batch)
    return (reconstruction - image).abs().mean()
