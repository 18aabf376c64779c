"""Dataset images become the input of an image encoder: size, channels and normalisation.

The whole letterboxed image is used, without a crop: what lies at its border is part of the examination.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.pretrained.encoder import Geometry

NORMALISATION = "--set modalities.image.mean=0.5 --set modalities.image.std=0.5"
MEANS = (0.0, 1.0)  # possible values, on the scale of pixels 0–1
STDS = (1e-3, 10.0)
SIZES = (8, 4096)  # pixels per side


def fitted(images: Tensor, geometry: Geometry) -> Tensor:
    """Return images (N, C, S, S) in [0, 1] as the input (N, channels, size, size) of an encoder, normalised.

    Grey images are repeated, and colours are averaged where the encoder takes grey images. An image of another size is
    resized by antialiased bilinear interpolation, as datasets are made.
    """
    if images.shape[1] != geometry.channels:
        grey = images if images.shape[1] == 1 else images.mean(1, keepdim=True)
        images = grey.expand(-1, geometry.channels, -1, -1)
    if tuple(images.shape[2:]) != (geometry.size, geometry.size):
        size = (geometry.size, geometry.size)
        images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values).to(images)[:, None, None] for values in (geometry.mean, geometry.std))
    return (images - mean) / std


def normalisation(
    settings: Mapping[str, Any], overrides: Mapping[str, Any], channels: int, where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations by channel, on the scale of pixels 0–1.

    Args:
        settings: Of the image processor of a transformers folder (`preprocessor_config.json`); empty where there is
            none.
        overrides: `mean` and `std` as the user gives them, a number or a list by channel. They come before `settings`.
        channels: Of the encoder.
        where: The encoder, for messages.

    Raises:
        UsageError: A value is missing, or is not a possible one.
    """
    found = _of_processor(settings, where) | {name: overrides[name] for name in ("mean", "std") if name in overrides}
    if not {"mean", "std"} <= found.keys():
        raise UsageError(f"{where} does not say how its images are normalised.", NORMALISATION)
    return _numbers(found["mean"], channels, MEANS, "mean", where), _numbers(found["std"], channels, STDS, "std", where)


def native_size(settings: Mapping[str, Any], otherwise: int | None, where: str) -> int:
    """Return the size in pixels that the image processor of a folder gives to the encoder.

    Args:
        settings: Of the image processor: `crop_size` counts before `size` where it crops.
        otherwise: The size that the configuration of the model names.
        where: The encoder, for messages.

    Raises CyclicError when no size is given, or the encoder takes images that are not square.
    """
    crops = settings.get("do_center_crop", settings.get("crop_size") is not None)
    for name in ("crop_size", "size") if crops else ("size",):
        if settings.get(name) is not None:
            return _side(settings[name], where)
    if otherwise is None:
        raise CyclicError(f"{where} does not say which size of images it takes.", "Copy its preprocessor_config.json.")
    return _side(otherwise, where)


def size_for(native: int, image_shape: tuple[int, int, int] | None, patch: int | None) -> int:
    """Return the size in pixels of the input of an encoder.

    Args:
        native: The size that it was trained with.
        image_shape: (C, S, S) of the dataset, or None where none is known.
        patch: Pixels per side of a patch of an encoder that interpolates its positions: it takes the size of the
            dataset, rounded down to whole patches. None for others, which take their native size.
    """
    if image_shape is None or patch is None:
        return native
    return max(image_shape[1] // patch, 1) * patch


def _of_processor(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `mean` and `std`, as far as an image processor gives them, on the scale of pixels 0–1."""
    if not settings:
        return {}
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not _is_number(factor) or not 0 < factor <= 1:
        raise CyclicError(
            f"{where} has an impossible rescale_factor in its preprocessor_config.json.", "Copy it again."
        )
    scale = factor * 255
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-4) else scale  # some files round the factor
    if not settings.get("do_normalize", True):
        return {"mean": 0.0, "std": 1 / scale}
    values = {"mean": settings.get("image_mean"), "std": settings.get("image_std")}
    return {name: _scaled(value, scale) for name, value in values.items() if value is not None}


def _scaled(values: Any, scale: float) -> Any:
    """Divide a number, or the numbers of a list, by a scale. Anything else is refused later."""
    if isinstance(values, list | tuple):
        return [_scaled(value, scale) for value in values]
    return values / scale if _is_number(values) else values


def _numbers(values: Any, channels: int, allowed: tuple[float, float], name: str, where: str) -> tuple[float, ...]:
    several = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    several = several * channels if len(several) == 1 else several
    low, high = allowed
    if len(several) != channels or not all(_is_number(value) and low <= value <= high for value in several):
        raise UsageError(
            f"The {name} of the images of {where} must be a number from {low:g} to {high:g}, or a list of {channels}.",
            NORMALISATION,
        )
    return tuple(float(value) for value in several)


def _side(value: Any, where: str) -> int:
    """The pixels per side in any form that transformers writes: a number, height and width, or the shortest edge."""
    if isinstance(value, Mapping):
        sides = {value[name] for name in ("height", "width", "shortest_edge") if value.get(name) is not None}
    else:
        sides = set(value) if isinstance(value, list | tuple) else {value}
    side = sides.pop() if len(sides) == 1 else None
    if not isinstance(side, int) or isinstance(side, bool) or not SIZES[0] <= side <= SIZES[1]:
        raise CyclicError(
            f"{where} takes images of an unusual size.",
            f"Give an encoder of square images of {SIZES[0]} to {SIZES[1]} pixels per side.",
        )
    return side


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
