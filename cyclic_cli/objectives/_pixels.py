"""The reconstruction and the image that the objectives on pixels compare."""

from __future__ import annotations

from torch import Tensor


def compared(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return outputs["reconstruction"] and batch["image"], both (N, C, H, W).

    Raises ValueError when the shapes differ, because tensor arithmetic might broadcast them silently.
    """
    reconstruction, image = outputs["reconstruction"], batch["image"]
    if reconstruction.shape != image.shape:
        raise ValueError(f"the reconstruction has shape {tuple(reconstruction.shape)}, the image {tuple(image.shape)}")
    return reconstruction, image
