"""Reconstruction: the content decoded from a sample's own code should equal the content of the sample.

For an autoencoder it is the mean squared error over pixels,

    loss = 1 / (N P) Σ_n Σ_p (reconstruction_np − image_np)²

over N samples of P = C H W values each. Images lie in [0, 1]. Up to a factor and a constant, the loss is the negative
log-likelihood of pixels with Gaussian noise (Bishop, "Pattern Recognition and Machine Learning", 2006, section 5.2).

For an image–text model it is

    loss = mean over modalities m of 1 / N_m Σ_n error_m(n)

over the samples that have modality m, paired or not. Of a large batch only a random part is decoded
(`JointModel.decoded_share`). Errors are relative to the mean predictor, whose error is 1 (see `modalities`).
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

    It holds images (N, C, H, W) like batch["image"], or for image–text models errors (N_m,) by modality. Raises
    ValueError when the shapes of the images differ.
    """
    if isinstance(outputs["reconstruction"], dict):
        return mean_errors(outputs["reconstruction"], outputs)
    reconstruction, image = compared(outputs, batch)
    return (reconstruction - image).square().mean()
