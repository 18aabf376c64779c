"""What a run learns when it trains an autoencoder of images: its samples, its model, its losses, its validation.

The other thing a run may learn stands in `alignment.py`; `training.py` runs both, and asks the same of each.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclic_cli import config as settings
from cyclic_cli import registry
from cyclic_cli.config import TrainConfig
from cyclic_cli.data.samples import EpochOrder, Samples, moved, sample_noise
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.models._joint import OUTPUTS as JOINT_OUTPUTS
from cyclic_cli.privacy.keys import SPLITS
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.gradients import Batch, Gradients, Plan, make_plan
from cyclic_cli.training.validation import validate

INITIALISATION_BATCH = 32
INITIALISATION_IMAGES = 10_000  # at most: more would teach principal components little, and take hours of a large set
BEFORE_TRAINING = -1  # the epoch whose order the model is started in

Tick = Callable[[int, int, str], None]  # gets what is done, of how much, of what; may raise


def filled_in(config: TrainConfig) -> TrainConfig:
    """The settings with what was left open taken from the architecture's file."""
    architecture = registry.load("models", config.arch, "architecture")
    return replace(
        settings.with_recipe(config, architecture.RECIPE),
        model=asdict(settings.build(architecture.Config, config.model, "the model")),
        objectives=dict(config.objectives or architecture.OBJECTIVES),
    )


class Autoencoding:
    """The images of a dataset, and the model that is to reconstruct them."""

    def __init__(self, ranks: Ranks, dataset: StoredDataset, config: TrainConfig) -> None:
        """Raises CyclicError without training images, UsageError when objectives or shapes do not fit the model."""
        self.ranks, self.dataset, self.config = ranks, dataset, config
        self.file = registry.load("models", config.arch, "architecture")
        self.data = Samples.of(dataset, "train", config.fraction)
        self.val_data = Samples.of(dataset, "val")
        if not len(self.data):
            raise nothing_to_train_on(dataset, config)
        assert config.batch_size is not None
        self.samples, self.patients = len(self.data), self.data.patients
        self.batch_size = min(config.batch_size, self.samples)
        self.steps_per_epoch = math.ceil(self.samples / self.batch_size)
        self.objectives = _objectives(config, self.file)
        self.module = self._module()
        self._order: tuple[int, EpochOrder] = (BEFORE_TRAINING, EpochOrder(0, 0, 0))

    def _module(self) -> Any:
        torch.manual_seed(self.config.seed)
        try:
            return self.file.Model(self.file.Config(**self.config.model), self.dataset.image_shape)
        except ValueError as error:
            raise UsageError(
                f"--arch {self.config.arch}: {error}.", "Change the setting, or prepare another --size."
            ) from None

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint says of the model besides its weights."""
        shape = list(self.dataset.image_shape)
        return {"name": self.config.arch, "config": self.config.model, "image_shape": shape}

    @property
    def portable_settings(self) -> dict[str, Any]:
        """Settings as a checkpoint holds them, in place of those that name a place on this machine."""
        return {}

    @property
    def initialisation(self) -> str:
        """What is started from what, in words."""
        whole = "the " if self.samples <= INITIALISATION_IMAGES else ""
        return f"{self.config.arch} from {whole}{min(self.samples, INITIALISATION_IMAGES)} training images"

    def initialise(self, tick: Tick) -> None:
        """Start the model from the training images."""
        order = EpochOrder(self.samples, self.config.seed, BEFORE_TRAINING)[:INITIALISATION_IMAGES]

        def images() -> Any:
            done = 0
            for batch in self.data.batches(order, INITIALISATION_BATCH):
                tick(done, len(order), "images of the start")
                yield batch
                done += len(batch)
            tick(done, len(order), "images of the start")

        self.module.initialise(images())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters, and apart from them those that start in closed form, with their share of the rate."""
        prefixes = tuple(f"{name}." for name in getattr(self.file, "FITTED", ()))
        groups: dict[bool, list[Any]] = {False: [], True: []}
        for name, parameter in self.module.named_parameters():
            groups[bool(prefixes) and name.startswith(prefixes)].append(parameter)
        shares = {False: 1.0, True: self.config.fitted_lr}
        return [{"params": group, "share": shares[fitted]} for fitted, group in groups.items() if group]

    def plan(self) -> Plan:
        pixels = math.prod(self.dataset.image_shape)
        whole = [name for name, objective in self.objectives.items() if not objective.PER_SAMPLE]
        return make_plan(self.config, self.ranks, self.module, whole, self.batch_size, pixels)

    def set_up(self, model: Any, plan: Plan) -> None:
        """Take the model as Fabric set it up."""
        self.gradients = Gradients(self.ranks, model, self.objectives, self.config.objectives, plan, self._batch)

    def close(self) -> None:
        self.gradients.close()

    def chosen(self, step: int) -> np.ndarray:
        """The numbers (N,) of the samples of a step (from 0) of the run."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, EpochOrder(self.samples, self.config.seed, epoch)
        return self._order[1][within * self.batch_size : (within + 1) * self.batch_size]

    def weights(self, step: int) -> dict[str, float]:
        """The weight of each objective in a step."""
        return dict(self.config.objectives)

    def losses(self, chosen: np.ndarray, step: int) -> dict[str, float]:
        """What this process adds to the losses of a batch, by objective; gradients are added to the parameters'."""
        return self.gradients(chosen, step // self.steps_per_epoch)

    def keys(self, chosen: np.ndarray) -> list[str]:
        """The starts of the keys in the index of the samples of a batch."""
        return [f"{key:016x}" for key in self.data.keys(chosen)]

    def gradient_norms(self) -> dict[str, float]:
        return {}

    def _batch(self, chosen: np.ndarray, epoch: int) -> Batch:
        """Images of the samples numbered by `chosen` (N,), and the random numbers that a variational model takes."""
        keys, seed, device = self.data.keys(chosen), self.config.seed, self.ranks.fabric.device
        image = self.data.images(chosen)
        if self.config.augment:
            image = moved(image, keys, self.config.augment, seed, epoch)
        batch = {"image": image.to(device, non_blocking=True)}
        if "log_variance" not in self.file.OUTPUTS:
            return batch, {}
        noise = sample_noise(keys, self.module.latent, seed, epoch)
        return batch, {"noise": noise.to(device, non_blocking=True)}

    def validate(
        self, is_stopped: Callable[[], bool], seen: Callable[[Tensor, Tensor], None] | None
    ) -> dict[str, float] | None:
        """See `validation.validate`."""
        return validate(self.ranks, self.module, self.val_data, is_stopped, seen)

    @staticmethod
    def is_better(val: dict[str, float], best: dict[str, float]) -> bool:
        return val["mse"] < best["mse"]


def nothing_to_train_on(dataset: StoredDataset, config: TrainConfig) -> CyclicError:
    """The error of a dataset whose training part, or the part asked for, has no image."""
    if not any(len(dataset.records(split)) for split in SPLITS):
        return CyclicError("The dataset holds no images, only texts.", "Prepare images with them.")
    splits = ", ".join(f"{name} {count}" for name, count in dataset.facts.counts.get("splits", {}).items())
    return CyclicError(
        f"No training image in the first {config.fraction:.3g} of the training patients (samples: {splits}).",
        "Take a larger --fraction, or prepare the data with another --split.",
    )


def _objectives(config: TrainConfig, architecture: ModuleType) -> dict[str, ModuleType]:
    """The objectives of a run by name. Raises UsageError when the architecture does not give what one needs."""
    objectives = {name: registry.load("objectives", name, "objective") for name in config.objectives}
    for name, objective in objectives.items():
        missing = [output for output in objective.NEEDS if output not in architecture.OUTPUTS]
        if missing and set(objective.NEEDS) <= set(JOINT_OUTPUTS):
            raise UsageError(
                f"The objective {name!r} is one of joint models.", "Add --objective, such as --objective cyclic."
            )
        if missing:
            raise UsageError(
                f"The objective {name!r} needs {', '.join(missing)}, which --arch {config.arch} does not give.",
                "Leave the objective out, or take another architecture.",
            )
    scheduled = [term.name for term in config.terms if term.full or term.settings]
    if scheduled:
        raise UsageError(
            f"The weight of {scheduled[0]!r} is a table.", "Give a number: schedules are for joint objectives."
        )
    return objectives
