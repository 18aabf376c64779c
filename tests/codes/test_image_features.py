"""Tests of the cheap image features: equal to scikit-image, robust to ties, and the same in ONNX Runtime."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from skimage.feature import hog
from torch import Tensor, nn

from cyclic_cli.codes.cache import no_tick
from cyclic_cli.codes.image_features import SIDE, SOURCES, gradients, levels, pixels
from cyclic_cli.codes.open_cache import OpenCache
from cyclic_cli.codes.sources import HistogramSource
from cyclic_cli.events import silent


def as_features(images: np.ndarray) -> np.ndarray:
    return gradients(torch.from_numpy(images)).numpy()


def scans(side: int, levels: int = 255) -> np.ndarray:
    """Images (3, 1, side, side) of few grey levels, as scans have: most gradients have equal or zero components."""
    stored = np.random.default_rng(0).integers(0, 4, (3, 1, side, side))
    return (stored / levels).astype(np.float32)


@pytest.mark.parametrize("side", [64, 40])
def test_gradients_equal_scikit_image(side: int) -> None:
    images = np.random.default_rng(0).random((3, 1, side, side), dtype=np.float32)
    cells = (side // 8, side // 8)
    wanted = [hog(image, 8, cells, (2, 2), block_norm="L2", feature_vector=True) for image in images[:, 0]]
    assert as_features(images) == pytest.approx(np.array(wanted), abs=1e-4)
    colour = np.repeat(images, 3, axis=1) + np.array([-0.1, 0, 0.1], np.float32)[:, None, None]
    assert as_features(colour) == pytest.approx(as_features(images), abs=1e-3)


@pytest.mark.parametrize("levels", [255, 65_535])
def test_gradients_of_integer_grey_levels_have_the_orientation_of_exact_arithmetic(levels: int) -> None:
    images = scans(32, levels)
    exact = np.round(images[:, 0].astype(float) * levels)  # orientations of integers: 45 degrees is exact
    wanted = [hog(image / 64, 8, (4, 4), (2, 2), block_norm="L2", feature_vector=True) for image in exact]
    # The norm of a block is at least 1e-5, which weighs more beside differences of 1 / 65,535.
    assert as_features(images * np.float32(levels / 64)) == pytest.approx(np.array(wanted), abs=1e-4)


def test_gradients_do_not_depend_on_the_last_bit_of_a_pixel() -> None:
    images = scans(48)
    shifted = np.nextafter(images, np.float32(1), dtype=np.float32)
    mixed = np.where(np.random.default_rng(1).random(images.shape) < 0.5, images, shifted)
    assert as_features(mixed) == pytest.approx(as_features(images), abs=1e-4)


def test_gradients_of_a_ramp_and_of_a_constant_image() -> None:
    ramp = np.tile(np.linspace(0, 1, 51, dtype=np.float32), (2, 1, 37, 1))  # brighter to the right: only orientation 0
    histograms = as_features(ramp).reshape(2, 49, 4, 8)
    # Less in the outer cells, where half of the border is flat.
    assert histograms[..., 0] == pytest.approx(0.5, abs=0.1)
    assert not histograms[..., 1:].any()
    assert not as_features(np.zeros((1, 1, 32, 32), np.float32)).any()


def test_pixels_are_means_over_areas() -> None:
    images = torch.rand(2, 3, 8 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.avg_pool2d(images, (8, 4)).flatten(1)
    assert pixels(images).numpy() == pytest.approx(wanted.numpy(), abs=1e-6)
    small = torch.rand(2, 1, 9, 9)
    assert torch.equal(pixels(small), small.flatten(1))
    ragged = torch.rand(2, 1, 50, 50)
    assert pixels(ragged).mean(1).numpy() == pytest.approx(ragged.mean((1, 2, 3)).numpy(), abs=1e-6)
    assert pixels(torch.full((1, 1, 50, 50), 0.25)).numpy() == pytest.approx(0.25, abs=1e-6)


def test_levels_are_shares_of_pixels() -> None:
    images = scans(32, 4) + np.float32(0.01)
    found = levels(torch.from_numpy(images)).numpy()
    assert found.shape == (3, 16 * 21)
    fine = found[:, : 16 * 16].reshape(3, 16, 4, 4) ** 2
    for place in range(16):
        within = ((images[:, 0] >= place / 16) & (images[:, 0] < (place + 1) / 16)).reshape(3, 4, 8, 4, 8)
        assert fine[:, place] == pytest.approx(within.mean(axis=(2, 4)), abs=1e-6)
    assert found[:, -16:] ** 2 == pytest.approx(fine.mean(axis=(2, 3)), abs=1e-6)
    white = levels(torch.ones(1, 3, 30, 30)).reshape(-1)  # a side that four does not divide
    assert white.square().sum().item() == pytest.approx(21, abs=1e-4)


class Cheap(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([one for source in SOURCES.values() for one in source(images).values()], 1)


def test_what_the_cache_knows_is_not_loaded_again() -> None:
    images, loaded = torch.from_numpy(np.concatenate([scans(32)] * 2)), list[int]()
    images[3:] /= 2

    def batch(numbers: range) -> Any:
        def load(chosen: np.ndarray) -> Tensor:
            loaded.extend(numbers[one] for one in chosen)
            return images[numbers.start : numbers.stop][chosen]

        return SimpleNamespace(load=load, digests=lambda: [bytes([number]) * 16 for number in numbers])

    with OpenCache() as cache:
        source = HistogramSource("gradients", cache)
        for numbers in (range(3), range(3, 6), range(3)):
            rows = source.features(batch(numbers), no_tick, silent)["gradients"].rows(np.arange(3))
            wanted = gradients(images[numbers.start : numbers.stop]).numpy()
            assert rows == pytest.approx(wanted, abs=1e-3)
    assert loaded == [0, 0, 1, 2, 3, 4, 5]  # the first one also tells the number of features


@pytest.mark.slow
def test_features_are_the_same_in_onnx_runtime(tmp_path: Path) -> None:
    images = torch.from_numpy(scans(56))
    program = torch.onnx.export(
        Cheap().eval(), (images,), dynamo=True, dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, verbose=False
    )
    program.save(tmp_path / "cheap.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "cheap.onnx", providers=["CPUExecutionProvider"])
    partly_black = images.clone()
    partly_black[:, :, :28] = 0
    partly_black[0] = 0
    for some in (images, images[:1], partly_black):
        found = session.run(None, {session.get_inputs()[0].name: some.numpy()})[0]
        assert found == pytest.approx(Cheap()(some).numpy(), abs=1e-5)
