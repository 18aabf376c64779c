"""Pixels that are not square: their shape, and the image resampled to square ones."""

import math

import numpy as np
from PIL import Image

LARGEST_RATIO = 20.0  # of the sides of a pixel; a larger one is an error of the file
TOLERANCE = 0.01  # deviation from 1 below which pixels count as square


def aspect_of(height: float, width: float) -> float:
    """Height of a pixel divided by its width, 1 where the sides are nearly equal or no plausible lengths."""
    if not (0 < height < math.inf and 0 < width < math.inf):
        return 1.0
    aspect = height / width
    return aspect if abs(aspect - 1) > TOLERANCE and 1 / LARGEST_RATIO <= aspect <= LARGEST_RATIO else 1.0


def with_square_pixels(pixels: np.ndarray, aspect: float, largest: int) -> np.ndarray:
    """Resample an image to square pixels, bilinearly.

    The axis with the larger distance between pixels gets more of them, so that no detail is lost. A side that would be
    longer than `largest` pixels is limited to it, and the other side shrinks with it.

    Args:
        pixels: (H, W) float32.
        aspect: Height of a pixel divided by its width.
        largest: Longest side in pixels.

    Returns:
        (H', W') float32.
    """
    height, width = pixels.shape[0] * max(aspect, 1.0), pixels.shape[1] * max(1 / aspect, 1.0)
    shrink = min(1.0, largest / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
