"""Errors of reconstructions: MSE, PSNR and SSIM of images in [0, 1].

The implementation uses numpy, because inference runs without torch. Tests compare it with scikit-image and
torchmetrics.
"""

import numpy as np

Image = np.ndarray  # (H, W) or (C, H, W), float, 0–1

WINDOW = 11  # side of SSIM's Gaussian window, pixels
SIGMA = 1.5  # its standard deviation, pixels


def mse(original: Image, other: Image) -> float:
    """Mean squared error between two images of the same shape; 0–1."""
    return float(np.mean(np.square(original.astype(np.float64) - other.astype(np.float64))))


def psnr(original: Image, other: Image) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1, which is -10 log10(MSE); infinite for equal images."""
    error = mse(original, other)
    return float(-10 * np.log10(error)) if error > 0 else float("inf")


def ssim(original: Image, other: Image) -> float:
    """Mean structural similarity, at most 1 (Wang et al., IEEE TIP 13(4), 2004).

    Parameters: Gaussian window of 11×11 pixels with σ = 1.5, K1 = 0.01, K2 = 0.03, peak 1, population covariance. The
    mean is taken over the positions where the window lies inside the image. Images smaller than the window give NaN.
    """
    if min(original.shape[-2:]) < WINDOW:
        return float("nan")
    x, y = original.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(np.mean(numerator / denominator))


def _blur(image: Image) -> Image:
    """Gaussian average over the last two axes, where the window lies inside the image: (..., H-10, W-10)."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (-2, -1):
        windows = np.lib.stride_tricks.sliding_window_view(image, WINDOW, axis=axis)
        image = windows @ weights
    return image
