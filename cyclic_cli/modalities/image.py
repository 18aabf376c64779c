"""The modality of images, encoded by an architecture of `models/`, or into fixed codes.

The code of an architecture is flattened and standardised: the mean over the training images is subtracted, and all
dimensions are divided by one common standard deviation. Fixed codes are those of `codes/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.codes.contents import stored_image_digests
from cyclic_cli.codes.image_codes import CodedImages
from cyclic_cli.config import JOINT_ARCH, JOINT_RECIPE, build
from cyclic_cli.data.samples import moved
from cyclic_cli.errors import UsageError
from cyclic_cli.imaging.readers import as_float
from cyclic_cli.storage.dataset import StoredDataset

COLUMNS = ("has_image", "shard", "row", "content")


@dataclass(frozen=True, kw_only=True)
class Config:
    arch: str = JOINT_ARCH
    model: dict[str, Any] = field(default_factory=dict)  # settings of the architecture
    augment: float = JOINT_RECIPE["augment"]  # strength of the random displacements and changes of contrast
    coded: bool = False  # encode into fixed codes, in place of an architecture; set by the `start` of the run
    encoder: str | tuple[str, ...] = ()  # paths of pretrained encoders
    frozen: bool = True  # whether the weights of pretrained encoders stay fixed
    mean: float | tuple[float, ...] | None = None  # of the pixels, where a pretrained encoder does not state it
    std: float | tuple[float, ...] | None = None


def present(index: Mapping[str, np.ndarray]) -> np.ndarray:
    return index["has_image"]


def fit(dataset: StoredDataset, index: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    return {"image_shape": list(dataset.image_shape)}


def portable(config: Config) -> Config:
    """Return the settings as a checkpoint stores them: it knows encoders by their fingerprints."""
    return replace(config, encoder=())


class Samples:
    """Images (N, C, H, W), float32 in [0, 1], read from the memory-mapped dataset."""

    def __init__(
        self, dataset: StoredDataset, index: Mapping[str, np.ndarray], config: Config, facts: dict[str, Any]
    ) -> None:
        """Raises UsageError when the images of the dataset do not have the shape that the model expects."""
        if len(index["sample"]) and list(dataset.image_shape) != facts["image_shape"]:
            shapes = ["×".join(map(str, shape)) for shape in (dataset.image_shape, facts["image_shape"])]
            raise UsageError(
                f"The images of {dataset.folder} have the shape {shapes[0]}, but the model expects {shapes[1]}.",
                "Prepare the dataset with the --size that the model was trained with.",
            )
        self.dataset, self.config = dataset, config
        self.shards, self.places = index["shard"].astype(np.int64), index["row"].astype(np.int64)
        self.keys = np.array([int(sample[:16], 16) for sample in index["sample"]], np.uint64)
        self._contents = index["content"]

    def __len__(self) -> int:
        return len(self.keys)

    def digests(self) -> list[bytes]:
        """Digests of the stored pixels, see `codes.contents`."""
        places = np.stack([self.shards, self.places], axis=1)
        return stored_image_digests(self.dataset, self._contents.tolist(), places)

    def load(self, chosen: np.ndarray) -> Tensor:
        return torch.from_numpy(as_float(self.dataset.images(self.shards[chosen], self.places[chosen])))

    def augmented(self, images: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        if not self.config.augment or not len(images):
            return images
        return moved(images, keys, self.config.augment, seed, epoch)


def Encoder(config: Config, facts: dict[str, Any]) -> nn.Module:
    """Return the encoder that the settings name. Raises as its class does."""
    return CodedImages(facts) if config.coded else ArchitectureEncoder(config, facts)


class ArchitectureEncoder(nn.Module):
    """Encodes and decodes images with an architecture of `models/`."""

    fitted = True
    mean: Tensor  # (code,), mean code of the training images
    spread: Tensor  # (), root mean square difference of their codes from the mean
    variance: Tensor  # (), mean squared difference of their pixels from the mean image: error of the mean predictor

    def __init__(self, config: Config, facts: dict[str, Any]) -> None:
        """Raises UsageError when the architecture cannot be made with these settings for images of this shape."""
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
    def initialise(self, contents: Iterable[Tensor]) -> None:
        """Initialise the architecture from batches of images (N, C, H, W).

        The mean and spread of the codes are measured on the first `SAMPLE` images, and the variance of the pixels on
        all images.
        """
        kept: list[Tensor] = []
        moments = [torch.zeros(()), torch.zeros(())]
        count = 0

        def measured() -> Iterator[Tensor]:
            nonlocal count
            for batch in contents:
                moments[0] = moments[0] + batch.double().sum(0)
                moments[1] = moments[1] + batch.double().square().sum(0)
                count += len(batch)
                if sum(map(len, kept)) < SAMPLE:
                    kept.append(batch)
                yield batch

        with torch.enable_grad():
            self.model.initialise(measured())
        variance = (moments[1] / count - (moments[0] / count).square()).mean()
        codes = torch.cat([self.model.encode(batch).flatten(1) for batch in kept])
        self.mean.copy_(codes.mean(0))
        self.spread.copy_((codes - self.mean).square().mean().sqrt().clamp(min=1e-6))
        self.variance.copy_(variance.clamp(min=1e-6))

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (N, code) of images (N, C, H, W) in [0, 1]."""
        codes: Tensor = (self.model.encode(images).flatten(1) - self.mean) / self.spread
        return codes

    def decode(self, code: Tensor) -> Tensor:
        """Return images (N, C, H, W), nominally in [0, 1], of codes (N, code)."""
        image: Tensor = self.model.decode((code * self.spread + self.mean).view(-1, *self.code_shape))
        return image

    def errors(self, code: Tensor, images: Tensor) -> Tensor:
        """Return (N,) mean squared errors over the pixels, relative to predicting the mean training image."""
        return (self.decode(code) - images).square().flatten(1).mean(1) / self.variance

    def soft_decode(self, code: Tensor) -> Tensor:
        """The same as `decode`, which passes gradients on."""
        return self.decode(code)


SAMPLE = 1024  # images on which the mean and spread of the codes are measured
