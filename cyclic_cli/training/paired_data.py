"""The data of an image–text run: its modalities, its paired and unpaired samples, its batches, its validation part."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclic_cli.config import TrainConfig
from cyclic_cli.data.mixture import (
    MixedBatch,
    Modality,
    Source,
    fit,
    make_mixture,
    portable,
    present_samples,
    read_index,
)
from cyclic_cli.data.samples import sample_noise
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.sources import no_training_images


@dataclass(frozen=True)
class LoadedBatch:
    """The tensors of a batch by modality. A modality may have no row in a process's part."""

    items: dict[str, Tensor]  # (M, ...) such as images (M, C, H, W) or tokens (M, T)
    samples: dict[str, Tensor]  # (M,) numbers of the samples, or UNPAIRED
    contents: dict[str, Tensor]  # (M,) int64, equal for equal content
    keep: dict[str, Tensor]  # (M,) uniform in [0, 1), see `JointModel.forward`


class PairedData:
    """The training and validation samples of a run."""

    def __init__(self, datasets: Sequence[StoredDataset], config: TrainConfig) -> None:
        """
        Args:
            datasets: The dataset of the run, then further ones, whose samples are all unpaired.
            config: Complete settings.

        Raises:
            CyclicError: no sample to train on, or none with one of the modalities.
            UsageError: a modality does not exist or has a bad setting.
        """
        self.dataset, self.seed = datasets[0], config.seed
        self.modalities = [Modality.of(name, table) for name, table in config.modalities.items()]
        sources = [
            Source(dataset, read_index(dataset, self.modalities, "train", 1.0 if number else config.fraction))
            for number, dataset in enumerate(datasets)
        ]
        index = sources[0].index
        self.samples, self.patients = len(index["sample"]), len(set(index["patient"].tolist()))
        self.patient_of = index["patient"]  # (S,) keys, of each sample of the dataset of the run
        self.patient_by_sample = {  # of all datasets: a patient may have samples in several
            sample: patient
            for one in sources
            for sample, patient in zip(one.index["sample"].tolist(), one.index["patient"].tolist(), strict=True)
        }
        if not self.samples:
            raise no_training_images(self.dataset, config)
        self.facts = {one.name: fit(sources, one) for one in self.modalities}
        self.mixture = make_mixture(sources, self.modalities, self.facts, config.paired_fraction, config.paired_seed)

    @property
    def portable_settings(self) -> dict[str, Any]:
        """The settings of the modalities without paths of this machine."""
        return {"modalities": {one.name: portable(one) for one in self.modalities}}

    @property
    def counts(self) -> str:
        """The number of items of each modality in words, such as "160 images, 148 texts"."""
        return ", ".join(f"{len(pool)} {name}s" for name, pool in self.mixture.pools.items())

    def load(
        self, part: MixedBatch, step: int, device: torch.device, memory_format: torch.memory_format
    ) -> LoadedBatch:
        """The tensors of a process's part of the batch of a step; images are augmented."""
        batch = LoadedBatch({}, {}, {}, {})
        for name, numbers in part.numbers.items():
            pool = self.mixture.pools[name]
            item, keys = pool.load(numbers, (self.seed, step)), pool.keys[numbers]
            if item.dim() == 4:
                item = item.contiguous(memory_format=memory_format)
            batch.items[name] = item.to(device, non_blocking=True)
            batch.samples[name] = torch.from_numpy(part.samples[name]).to(device)
            batch.contents[name] = torch.from_numpy(keys.view(np.int64).copy()).to(device)
            batch.keep[name] = _uniform(keys, self.seed, step).to(device)
        return batch

    def sample_keys(self, batch: MixedBatch) -> list[str]:
        """The first 16 characters of the index keys of a batch's samples.

        Item keys would not identify samples: the key of a text is a hash of its content.
        """
        keys = [self.mixture.pools[name].sample_keys[numbers] for name, numbers in batch.numbers.items()]
        return [key[:16] for key in dict.fromkeys(np.concatenate(keys).tolist())]

    @cached_property
    def validation(self) -> dict[str, tuple[Any, np.ndarray]]:
        """By modality, its validation `Samples`, and for each sample (S,) the number of its item, or UNPAIRED."""
        index = read_index(self.dataset, self.modalities, "val")
        return {one.name: present_samples(self.dataset, one, index, self.facts[one.name]) for one in self.modalities}


def _uniform(keys: np.ndarray, seed: int, step: int) -> Tensor:
    """Random numbers (N,) in [0, 1), each from (seed, step, key) alone."""
    if not len(keys):
        return torch.zeros(0)
    return torch.special.ndtr(sample_noise(keys, 1, seed, step, "private")[:, 0])
