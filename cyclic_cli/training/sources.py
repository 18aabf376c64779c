"""What a run is made from: its datasets and, on request, the checkpoint it is initialised from."""

from dataclasses import dataclass
from typing import Any

from cyclic_cli.config import TrainConfig
from cyclic_cli.errors import CyclicError
from cyclic_cli.privacy.keys import SPLITS
from cyclic_cli.storage.checkpoint import Checkpoint
from cyclic_cli.storage.dataset import StoredDataset


@dataclass(frozen=True)
class Sources:
    """The datasets of a run and its initial weights."""

    dataset: StoredDataset
    also: tuple[StoredDataset, ...] = ()  # their images and texts are unpaired
    initial: Checkpoint | None = None  # None: the model is initialised from the training data

    @property
    def fingerprints(self) -> dict[str, Any]:
        """The fingerprints that identify the sources, without a path."""
        found: dict[str, Any] = {"dataset": self.dataset.facts.fingerprint}
        if self.also:
            found["also"] = [dataset.facts.fingerprint for dataset in self.also]
        if self.initial:
            found["init_from"] = self.initial.fingerprint
        return found


def no_training_images(dataset: StoredDataset, config: TrainConfig) -> CyclicError:
    """The error of a dataset without a training image, or without one in the requested fraction."""
    if not any(len(dataset.records(split)) for split in SPLITS):
        return CyclicError("The dataset holds no images, only texts.", "Prepare the images together with the texts.")
    splits = ", ".join(f"{name} {count}" for name, count in dataset.facts.counts.get("splits", {}).items())
    return CyclicError(
        f"No training image in the first {config.fraction:.3g} of the training patients (samples: {splits}).",
        "Use a larger --fraction, or prepare the data with another --split.",
    )
