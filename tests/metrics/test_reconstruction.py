"""MSE, PSNR and SSIM against two independent libraries."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from cyclic_cli.metrics.reconstruction import mse, psnr, ssim


@pytest.fixture(params=[(40, 56), (11, 11), (97, 31)], ids=str)
def pair(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    original = generator.random(request.param, dtype=np.float32)
    return original, np.clip(original + generator.normal(0, 0.1, request.param), 0, 1).astype(np.float32)


def test_psnr_and_mse_equal_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1.0), abs=1e-4)
    assert mse(*pair) == pytest.approx(10 ** (-psnr(*pair) / 10))


def test_ssim_equals_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (image.astype(np.float64) for image in pair)
    _, full = structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    assert ssim(*pair) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-7)


def test_ssim_equals_torchmetrics(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (torch.from_numpy(image).double()[None, None] for image in pair)
    _, full = structural_similarity_index_measure(x, y, sigma=1.5, data_range=1.0, return_full_image=True)
    # its default mean includes 5 pixels of reflected border, unlike that of scikit-image and of this package
    assert ssim(*pair) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-7)


def test_equal_images_and_tiny_images() -> None:
    image = np.full((20, 20), 0.25, dtype=np.float32)
    assert mse(image, image) == 0
    assert math.isinf(psnr(image, image))
    assert ssim(image, image) == pytest.approx(1)
    assert math.isnan(ssim(image[:5], image[:5]))
