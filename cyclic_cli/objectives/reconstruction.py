"""Reconstruction: each modality decoded from its own code, against itself.

Of an autoencoder it is the mean squared error over pixels,

    loss = 1 / (N P) Σ_n Σ_p (reconstruction_np − image_np)²

over N samples of P = C H W values each, in squared units of the image, which spans [0, 1]. Up to a factor and
a constant it is the negative log-likelihood of Gaussian pixels (Bishop, "Pattern Recognition and Machine
Learning", 2006, section 5.2). Of a joint model it is

    loss = mean over modalities m of 1 / N_m Σ_n error_m(n)

over samples that have m, paired or not, of a large batch some drawn at random (`JointModel.decoded_share`), where an
error of 1 is that of the best constant (`modalities`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cyclic_cli.objectives._pairs import mean_errors
from cyclic_cli.objectives._pixels import compared

NEEDS = ("reconstruction",)
PER_SAMPLE = True


def loss(outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """Return the scalar error of outputs["reconstruction"].

    It is an image (N, C, H, W) like batch["image"], or a table of errors (N_m,) by modality. Raises ValueError when
    the shapes of images differ.
    """
    if isinstance(outputs["reconstruction"], dict):
        return mean_errors(outputs["reconstruction"], outputs)
    reconstruction, image = compared(outputs, batch)
    return (reconstruction - image).square().mean()
