"""Dataset images become the input of an encoder."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import Geometry
from cyclic_cli.pretrained.geometry import NORMALISATION, fitted, native_size, normalisation, size_for

PLAIN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


def geometry(size: int, channels: int = 3, mean: float = 0.0, std: float = 1.0) -> Geometry:
    return Geometry(size=size, native=size, channels=channels, mean=(mean,) * channels, std=(std,) * channels)


@pytest.mark.parametrize("size", [20, 48, 90])
def test_images_are_resized_as_pillow_does(size: int) -> None:
    pixels = np.random.default_rng(0).random((48, 48), np.float32)
    found = fitted(torch.from_numpy(pixels)[None, None], geometry(size, 1))[0, 0]
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_channels_are_those_of_the_encoder() -> None:
    grey, colour = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 8, 8)
    assert torch.equal(fitted(grey, geometry(8, 3)), grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(fitted(colour, geometry(8, 1)), colour.mean(1, keepdim=True))
    assert torch.equal(fitted(colour, geometry(8, 3)), colour)
    torch.testing.assert_close(fitted(grey, geometry(8, 1, 0.5, 0.25)), (grey - 0.5) * 4)


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        (PLAIN, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        (PLAIN | {"rescale_factor": 0.00392156862745098}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        (PLAIN | {"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"do_normalize": False, "do_rescale": False}, (0, 0, 0), (1 / 255,) * 3),
        ({"do_rescale": False, "image_mean": [127.5], "image_std": 51}, (0.5,) * 3, (0.2,) * 3),
        ({"image_mean": 0.5, "image_std": 0.5}, (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_normalisation_gives_what_the_image_processor_gives(settings: dict[str, Any], mean: Any, std: Any) -> None:
    found = normalisation(settings, {}, 3, "It")
    np.testing.assert_allclose(found, (mean, std))


def test_what_the_user_gives_comes_first() -> None:
    assert normalisation(PLAIN, {"mean": 0.5}, 3, "It") == ((0.5,) * 3, (0.4, 0.5, 0.6))
    assert normalisation({}, {"mean": [0.1, 0.2, 0.3], "std": 1}, 3, "It") == ((0.1, 0.2, 0.3), (1.0,) * 3)


@pytest.mark.parametrize(
    "overrides",
    [
        {}, {"mean": 0.5}, {"mean": [0.5, 0.5], "std": 0.5}, {"mean": 0.5, "std": 0}, {"mean": 2, "std": 0.5},
        {"mean": "half", "std": 0.5}, {"mean": float("nan"), "std": 0.5}, {"mean": True, "std": 0.5},
    ],
)  # fmt: skip
def test_impossible_normalisation_is_a_wrong_usage(overrides: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        normalisation({}, overrides, 3, "It")
    assert caught.value.hint == NORMALISATION


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": 224}, 224),
        ({"size": {"height": 384, "width": 384}}, 384),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, 256),
        ({"size": [96, 96]}, 96),
        ({}, 518),
    ],
)
def test_the_native_size_has_many_forms(settings: dict[str, Any], size: int) -> None:
    assert native_size(settings, 518, "It") == size


@pytest.mark.parametrize("size", [{"height": 10, "width": 20}, 0, "224", 100_000, True])
def test_other_sizes_are_refused(size: Any) -> None:
    with pytest.raises(CyclicError, match="unusual size"):
        native_size({"size": size}, None, "It")
    with pytest.raises(CyclicError, match="which size"):
        native_size({}, None, "It")


def test_encoders_that_interpolate_take_whole_patches_of_the_dataset() -> None:
    assert size_for(518, (1, 128, 128), 14) == 126
    assert size_for(224, (1, 512, 512), 16) == 512
    assert size_for(224, (1, 10, 10), 16) == 16
    assert size_for(224, (1, 128, 128), None) == 224
    assert size_for(224, None, 16) == 224
