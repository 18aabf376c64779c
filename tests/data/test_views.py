"""Random views of images: what they show, and that they depend on seed, epoch, sample and view alone."""

import numpy as np
import pytest
import torch
from helpers.makers import smooth_image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from cyclic_cli.data import views
from cyclic_cli.data.views import ViewConfig, view
from cyclic_cli.errors import UsageError

KEYS = np.arange(1, 65, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
WHOLE = ViewConfig(crop=1.0)


def images(count: int, side: int = 32) -> Tensor:
    return torch.from_numpy(np.stack([smooth_image(seed, side, side) for seed in range(count)])[:, None] / 255).float()


def test_a_view_depends_on_seed_epoch_sample_and_number_alone() -> None:
    pictures, order = images(5), [3, 0, 4]
    found = view(pictures, KEYS[:5], ViewConfig(), 1.0, 1, 2, 0)
    assert found.shape == pictures.shape
    assert 0 <= found.min() < found.max() <= 1
    part = view(pictures[order], KEYS[order], ViewConfig(), 1.0, 1, 2, 0)
    torch.testing.assert_close(part, found[order], rtol=0, atol=1e-5)
    for seed, epoch, number in ((0, 2, 0), (1, 3, 0), (1, 2, 1)):
        other = view(pictures, KEYS[:5], ViewConfig(), 1.0, seed, epoch, number)
        assert (other - found).abs().amax((1, 2, 3)).min() > 0.02


def test_a_view_of_the_whole_image_without_changes_is_the_image_or_its_mirror_image() -> None:
    pictures = images(16)
    torch.testing.assert_close(view(pictures, KEYS[:16], WHOLE, 0.0, 0, 0, 0), pictures, rtol=0, atol=1e-5)
    mirrored = view(pictures, KEYS[:16], ViewConfig(crop=1.0, flips=True), 0.0, 0, 0, 0)
    same, flipped = ((mirrored - other).abs().amax((1, 2, 3)) < 1e-5 for other in (pictures, pictures.flip(3)))
    assert torch.equal(same, ~flipped)
    assert 0 < same.sum() < 16


def test_a_crop_shows_a_part_of_the_image_at_its_aspect_ratio() -> None:
    """Of an image whose grey level is the position, the range of a view is where it was cut out."""
    position = (torch.arange(64) + 0.5) / 64
    for direction in (2, 3):
        shape = [1, 1, 64, 1] if direction == 2 else [1, 1, 1, 64]
        ramp = position.view(shape).expand(64, 1, 64, 64).contiguous()
        found = view(ramp, KEYS, ViewConfig(crop=0.25), 0.0, 0, 0, 0)
        first, last = found.amin((1, 2, 3)), found.amax((1, 2, 3))
        share = (last - first) * 64 / 63  # of the side
        assert share.min() > 0.5 - 0.02
        assert share.max() < 1 + 0.02
        assert share.square().mean() == pytest.approx(0.625, abs=0.15)  # areas are uniform between 0.25 and 1
        assert first.std() > 0.05  # crops lie at many places


def test_the_blur_is_gaussian() -> None:
    picture = images(1, 112)
    expected = gaussian_filter(picture[0, 0].double().numpy(), views.BLUR * 112, mode="nearest", truncate=2)
    np.testing.assert_allclose(views._blurred(picture)[0, 0].numpy(), expected, atol=1e-5)


def test_strength_scales_the_changes_of_grey_levels() -> None:
    pictures = images(32)
    changes = [(view(pictures, KEYS[:32], WHOLE, strength, 0, 0, 0) - pictures).abs().mean() for strength in (0.1, 1.0)]
    assert 0 < 3 * changes[0] < changes[1] < 0.2


@pytest.mark.parametrize("crop", [0.0, 1.1, -1.0])
def test_impossible_crops_are_refused(crop: float) -> None:
    with pytest.raises(UsageError, match=r"modalities\.image\.crop"):
        ViewConfig(crop=crop)
