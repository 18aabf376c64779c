"""Order, noise and augmentation of training images depend on seed, epoch and sample alone."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from cyclic_cli.data import samples
from cyclic_cli.data.samples import EpochOrder, moved, sample_noise

SIDE = 64
KEYS = np.array([5, 6, 7, 8], dtype=np.uint64)
DRAWS = ("turn", "size", "ratio", "down", "right", "contrast", "brightness")  # in the order in which they are drawn


@pytest.fixture
def images() -> Tensor:
    """Soft patterns (4, 1, 64, 64) between 0.2 and 0.8."""
    noise = np.random.default_rng(0).standard_normal((len(KEYS), 1, SIDE, SIDE))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 3, 3))
    return torch.from_numpy(0.2 + 0.6 * (smooth - smooth.min()) / np.ptp(smooth)).float()


def drawn(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Let every sample draw these numbers, and zeros otherwise."""
    row = torch.tensor([[values.get(name, 0.0) for name in DRAWS]])
    monkeypatch.setattr(samples, "sample_noise", lambda keys, size, seed, epoch, purpose: row.repeat(len(keys), 1))


def test_orders_and_noise_depend_on_seed_epoch_and_sample_alone() -> None:
    orders = [EpochOrder(50, *place)[:].tolist() for place in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == orders[3]
    keys = np.array([5, 6, 7], dtype=np.uint64)
    noise = sample_noise(keys, 4000, 0, 3)
    assert torch.equal(sample_noise(keys[[2, 0]], 4000, 0, 3), noise[[2, 0]])
    assert not torch.equal(sample_noise(keys, 4000, 0, 4), noise)
    assert not torch.equal(sample_noise(keys, 4000, 0, 3, "movement"), noise)
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.06


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 99_999])
def test_an_order_has_every_sample_once_and_may_be_read_in_parts(samples: int) -> None:
    order = EpochOrder(samples, 7, 2)
    whole = order[:]
    assert sorted(whole.tolist()) == list(range(samples))
    assert len(order) == samples
    parts = [order[first : first + 7] for first in range(0, min(samples, 700), 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:700])


@pytest.mark.parametrize("samples", [2, 3, 5, 12, 20])
def test_every_sample_is_equally_frequent_at_every_place(samples: int) -> None:
    """And equally frequent after every other sample: successive samples are as random as places."""
    epochs = 100 * samples
    orders = np.stack([EpochOrder(samples, 0, epoch)[:] for epoch in range(epochs)])
    places = np.stack([np.bincount(column, minlength=samples) for column in orders.T])
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % samples).ravel(), minlength=samples)[1:]
    for counts in (places, steps) if samples > 2 else (places,):
        assert stats.chisquare(counts, axis=None).pvalue > 1e-4


def test_an_epoch_of_a_hundred_million_samples_needs_little_memory() -> None:
    tracemalloc.start()
    order = EpochOrder(100_000_000, 0, 0)
    batches = np.concatenate([order[first : first + 64] for first in range(0, 6400, 64)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20
    assert len(set(batches.tolist())) == 6400
    assert stats.kstest(batches / 100_000_000, "uniform").pvalue > 1e-3


def test_successive_keys_have_different_noise_over_their_whole_range() -> None:
    keys = np.array([5, 6, 2**63 + 5, 2**63 + 6, 2**64 - 2, 2**64 - 1], dtype=np.uint64)
    assert len(sample_noise(keys, 8, 0, 0).unique(dim=0)) == len(keys)


def test_augmentation_depends_on_seed_epoch_and_sample_alone(images: Tensor) -> None:
    whole = moved(images, KEYS, 1.0, 0, 3)
    assert torch.equal(moved(images, KEYS, 1.0, 0, 3), whole)
    chosen = [3, 0, 2]
    torch.testing.assert_close(moved(images[chosen], KEYS[chosen], 1.0, 0, 3), whole[chosen], rtol=0, atol=1e-6)
    for index in range(len(KEYS)):
        alone = moved(images[index : index + 1], KEYS[index : index + 1], 1.0, 0, 3)
        torch.testing.assert_close(alone[0], whole[index], rtol=0, atol=1e-6)
    for other in (moved(images, KEYS, 1.0, 1, 3), moved(images, KEYS, 1.0, 0, 4), moved(images, KEYS + 1, 1.0, 0, 3)):
        assert all((one - two).abs().max() > 0.01 for one, two in zip(other, whole, strict=True))


@pytest.mark.parametrize("strength", [0.1, 1.0, 5.0])
def test_augmentation_copies_its_images_and_stays_in_range(images: Tensor, strength: float) -> None:
    extreme = (images > 0.5).float()
    before = extreme.clone()
    result = moved(extreme, KEYS, strength, 0, 0)
    assert torch.equal(extreme, before)
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


def test_a_small_strength_changes_little(images: Tensor) -> None:
    changes = [float((moved(images, KEYS, strength, 0, 0) - images).abs().mean()) for strength in (1e-4, 0.1, 1.0)]
    assert changes[0] < 1e-4 < changes[1] < changes[2]


def test_draws_of_zero_change_nothing(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch)
    torch.testing.assert_close(moved(images, KEYS, 1.0, 0, 0), images, rtol=0, atol=1e-5)


def test_a_shift_equals_that_of_numpy(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch, down=3 / (0.02 * SIDE), right=-2 / (0.02 * SIDE))  # a standard deviation is 2 % of the side
    result = moved(images, KEYS, 1.0, 0, 0).numpy()
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (0, 3), (2, 0)), mode="edge")[:, :, 3:, :-2]
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("draws", "matrix"),
    [
        ({"turn": 4.0}, [[np.cos(0.12), np.sin(0.12)], [-np.sin(0.12), np.cos(0.12)]]),
        ({"size": 2.0}, [[np.exp(0.06), 0], [0, np.exp(0.06)]]),
        ({"ratio": -3.0}, [[np.exp(0.045), 0], [0, np.exp(-0.045)]]),
    ],
    ids=str,
)
def test_rotations_and_scalings_equal_those_of_scipy(
    draws: dict[str, float], matrix: list[list[float]], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(monkeypatch, **draws)
    result = moved(images, KEYS, 1.0, 0, 0).numpy()
    centre = np.full(2, (SIDE - 1) / 2)
    offset = centre - np.array(matrix) @ centre
    for image, found in zip(images.numpy(), result, strict=True):
        expected = ndimage.affine_transform(image[0], np.array(matrix), offset, order=1, mode="nearest")
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_contrast_and_brightness_change_as_documented(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch, contrast=2.0, brightness=-1.0)
    torch.testing.assert_close(moved(images, KEYS, 0.5, 0, 0), 1.03 * images - 0.005, rtol=0, atol=1e-5)
