"""Image: pictures of a dataset, encoded and decoded by an architecture of `models/`.

The code is the architecture's, a spatial one flattened, in units of its spread over the training images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.config import JOINT_ARCH, JOINT_RECIPE, build
from cyclic_cli.data.samples import moved
from cyclic_cli.errors import UsageError
from cyclic_cli.imaging.readers import as_float
from cyclic_cli.storage.dataset import StoredDataset

COLUMNS = ("has_image", "shard", "row")


@dataclass(frozen=True, kw_only=True)
class Config:
    arch: str = JOINT_ARCH
    model: dict[str, Any] = field(default_factory=dict)  # the architecture's own settings
    augment: float = JOINT_RECIPE["augment"]  # strength of small random movements and changes of contrast


def present(index: Mapping[str, np.ndarray]) -> np.ndarray:
    return index["has_image"]


def fit(dataset: StoredDataset, index: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    return {"image_shape": list(dataset.image_shape)}


class Samples:
    """Images (N, C, H, W) float32 in [0, 1], from the memory map."""

    def __init__(
        self, dataset: StoredDataset, index: Mapping[str, np.ndarray], config: Config, facts: dict[str, Any]
    ) -> None:
        """Raises UsageError when the dataset's images have another shape than those the facts are of."""
        if len(index["sample"]) and list(dataset.image_shape) != facts["image_shape"]:
            shapes = ["×".join(map(str, shape)) for shape in (dataset.image_shape, facts["image_shape"])]
            raise UsageError(
                f"{dataset.folder} has images of {shapes[0]}, the model takes {shapes[1]}.",
                "Prepare it with the same --size.",
            )
        self.dataset, self.config = dataset, config
        self.shards, self.places = index["shard"].astype(np.int64), index["row"].astype(np.int64)
        self.keys = np.array([int(sample[:16], 16) for sample in index["sample"]], np.uint64)

    def __len__(self) -> int:
        return len(self.keys)

    def load(self, chosen: np.ndarray) -> Tensor:
        return torch.from_numpy(as_float(self.dataset.images(self.shards[chosen], self.places[chosen])))

    def varied(self, value: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        if not self.config.augment or not len(value):
            return value
        return moved(value, keys, self.config.augment, seed, epoch)


class Encoder(nn.Module):
    """An architecture of `models/` as an encoder."""

    fitted = True
    mean: Tensor  # (code,) of the codes of the training images
    spread: Tensor  # () root mean square of their differences from it
    variance: Tensor  # () of the pixels about the mean image: the error of the best constant

    def __init__(self, config: Config, facts: dict[str, Any]) -> None:
        """Raises UsageError when the architecture cannot be made for the images' shape."""
        super().__init__()
        architecture = registry.load("models", config.arch, "architecture")
        shape = tuple(int(side) for side in facts["image_shape"])
        settings = build(architecture.Config, config.model, "modalities.image.model")
        try:
            self.model = architecture.Model(settings, shape)
        except ValueError as error:
            raise UsageError(f"modalities.image: {error}.", "Change the setting, or prepare another --size.") from None
        with torch.no_grad():
            self.code_shape = tuple(self.model.encode(torch.zeros(1, *shape)).shape[1:])
        self.code = int(np.prod(self.code_shape))
        self.register_buffer("mean", torch.zeros(self.code))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("variance", torch.ones(()))

    @torch.no_grad()
    def initialise(self, values: Iterable[Tensor]) -> None:
        """Start the architecture from images (N, C, H, W), and take the measure of its codes and of the images."""
        kept: list[Tensor] = []
        moments = [torch.zeros(()), torch.zeros(())]
        count = 0

        def seen() -> Iterator[Tensor]:
            nonlocal count
            for batch in values:
                moments[0] = moments[0] + batch.double().sum(0)
                moments[1] = moments[1] + batch.double().square().sum(0)
                count += len(batch)
                if sum(map(len, kept)) < SAMPLE:
                    kept.append(batch)
                yield batch

        with torch.enable_grad():
            self.model.initialise(seen())
        variance = (moments[1] / count - (moments[0] / count).square()).mean()
        codes = torch.cat([self.model.encode(batch).flatten(1) for batch in kept])
        self.mean.copy_(codes.mean(0))
        self.spread.copy_((codes - self.mean).square().mean().sqrt().clamp(min=1e-6))
        self.variance.copy_(variance.clamp(min=1e-6))

    def encode(self, value: Tensor) -> Tensor:
        codes: Tensor = (self.model.encode(value).flatten(1) - self.mean) / self.spread
        return codes

    def decode(self, code: Tensor) -> Tensor:
        """Images (N, C, H, W), nominally in [0, 1]."""
        image: Tensor = self.model.decode((code * self.spread + self.mean).view(-1, *self.code_shape))
        return image

    def errors(self, code: Tensor, value: Tensor) -> Tensor:
        """Squared error over the pixels as a share of that of the mean image."""
        return (self.decode(code) - value).square().flatten(1).mean(1) / self.variance

    def drawn(self, code: Tensor) -> Tensor:
        return self.decode(code)


SAMPLE = 1024  # images that the spread of the codes is measured on
