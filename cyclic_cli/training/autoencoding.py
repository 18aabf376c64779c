"""Trains an autoencoder of images: joins its data, its model, its losses and its validation as a `Learner`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from cyclic_cli import config as settings
from cyclic_cli import registry
from cyclic_cli.config import TrainConfig
from cyclic_cli.data.samples import EpochOrder, Samples, moved, sample_noise
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import UsageError
from cyclic_cli.events import Report
from cyclic_cli.models._joint import OUTPUTS as JOINT_OUTPUTS
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.gradients import Batch, Gradients, Plan, make_plan
from cyclic_cli.training.learner import ShowImages, Tick
from cyclic_cli.training.sources import no_training_images
from cyclic_cli.training.validation import validate

INITIALISATION_BATCH = 32
INITIALISATION_IMAGES = 10_000  # at most; more images hardly change the principal components
BEFORE_TRAINING = -1  # epoch number that seeds the order of images during initialisation


def filled_in(config: TrainConfig) -> TrainConfig:
    """Fills settings that are None, and empty `objectives`, from the architecture's file."""
    architecture = registry.load("models", config.arch, "architecture")
    return replace(
        settings.with_recipe(config, architecture.RECIPE),
        model=asdict(settings.build(architecture.Config, config.model, "the model")),
        objectives=dict(config.objectives or architecture.OBJECTIVES),
    )


class Autoencoding:
    """Learns to reconstruct the images of a dataset."""

    kept = ""
    has_solution = False
    epochs_done = 0
    fold_ranks: list[float] | None = None
    closed_form: Mapping[str, Any] = {}
    named_encoders: Mapping[str, list[str]] = {}

    def __init__(self, ranks: Ranks, dataset: StoredDataset, config: TrainConfig) -> None:
        """
        Args:
            ranks: The processes of the run.
            dataset: The images.
            config: Complete settings, see `filled_in`.

        Raises:
            CyclicError: there are no training images.
            UsageError: objectives or the shape of the images do not fit the architecture.
        """
        self.ranks, self.dataset, self.config = ranks, dataset, config
        self.file = registry.load("models", config.arch, "architecture")
        self.data = Samples.of(dataset, "train", config.fraction)
        self.val_data = Samples.of(dataset, "val")
        if not len(self.data):
            raise no_training_images(dataset, config)
        assert config.batch_size is not None
        self.samples, self.patients = len(self.data), self.data.patients
        self.batch_size = min(config.batch_size, self.samples)
        self.steps_per_epoch = math.ceil(self.samples / self.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self.objectives = self._objectives()
        self.module = self._module()
        self._order: tuple[int, EpochOrder] = (BEFORE_TRAINING, EpochOrder(0, 0, 0))  # epoch, its order

    def _objectives(self) -> dict[str, ModuleType]:
        return _objectives(self.config, self.file)

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
        """What a checkpoint stores about the model besides its weights."""
        shape = list(self.dataset.image_shape)
        return {"name": self.config.arch, "config": self.config.model, "image_shape": shape}

    @property
    def portable_settings(self) -> dict[str, Any]:
        """Empty: an autoencoder has no setting that is a path."""
        return {}

    @property
    def initialisation(self) -> str:
        the = "the " if self.samples <= INITIALISATION_IMAGES else ""
        return f"{self.config.arch} from {the}{min(self.samples, INITIALISATION_IMAGES)} training images"

    def initialise(self, tick: Tick, report: Report) -> None:
        """Initialise the model from the training images."""
        self.ranks.agreed(lambda: self._initialise(tick))

    def restore(self, architecture: dict[str, Any], encoders: Path, tick: Tick, report: Report) -> None:
        """Does nothing: the settings determine the module."""

    def write_encoders(self, folder: Path) -> None:
        """Does nothing: there are none."""

    def _initialise(self, tick: Tick) -> None:
        order = EpochOrder(self.samples, self.config.seed, BEFORE_TRAINING)[:INITIALISATION_IMAGES]

        def images() -> Any:
            done, unit = 0, "images for initialisation"
            for batch in self.data.batches(order, INITIALISATION_BATCH):
                tick(done, len(order), unit)
                yield batch
                done += len(batch)
            tick(done, len(order), unit)

        self.module.get_submodule(self.kept).initialise(images())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters in groups: those initialised in closed form have `fitted_lr` times the learning rate."""
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
        self.gradients = Gradients(self.ranks, model, self.objectives, self.config.objectives, plan, self._load)

    def close(self) -> None:
        self.gradients.close()

    def batch(self, step: int) -> np.ndarray:
        """The numbers (N,) of the samples of a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, EpochOrder(self.samples, self.config.seed, epoch)
        return self._order[1][within * self.batch_size : (within + 1) * self.batch_size]

    def weights(self, step: int) -> dict[str, float]:
        """The weight of each objective; the same in all steps."""
        return dict(self.config.objectives)

    def losses(self, batch: np.ndarray, step: int) -> dict[str, float]:
        """This process's contribution to each loss of the batch. Its gradients are added to those of the parameters."""
        return self.gradients(batch, step // self.steps_per_epoch)

    def keys(self, batch: np.ndarray) -> list[str]:
        """The first 16 characters of the index keys of a batch's samples."""
        return [f"{key:016x}" for key in self.data.keys(batch)]

    def gradient_norms(self) -> dict[str, float]:
        """Empty: gradient norms are measured for image–text models only."""
        return {}

    def _load(self, chosen: np.ndarray, epoch: int) -> Batch:
        """The images (N, C, H, W) of the samples `chosen` (N,), and the noise (N, latent) of a variational model."""
        keys, seed, device = self.data.keys(chosen), self.config.seed, self.ranks.fabric.device
        image = self.data.images(chosen)
        if self.config.augment:
            image = moved(image, keys, self.config.augment, seed, epoch)
        batch = {"image": image.to(device, non_blocking=True)}
        if "log_variance" not in self.file.OUTPUTS:
            return batch, {}
        noise = sample_noise(keys, self.module.latent, seed, epoch)
        return batch, {"noise": noise.to(device, non_blocking=True)}

    def validate(self, is_stopped: Callable[[], bool], show: ShowImages | None) -> dict[str, float] | None:
        """The errors of reconstructed images, see `validation.validate`."""
        return validate(self.ranks, self.module, self.val_data, is_stopped, show)

    @staticmethod
    def is_better(val: dict[str, float], best: dict[str, float]) -> bool:
        """Compares the mean squared error."""
        return val["mse"] < best["mse"]


def _objectives(config: TrainConfig, architecture: ModuleType) -> dict[str, ModuleType]:
    """The files of a run's objectives by name. Raises UsageError when one does not fit the architecture."""
    objectives = {name: registry.load("objectives", name, "objective") for name in config.objectives}
    for name, objective in objectives.items():
        missing = [output for output in objective.NEEDS if output not in architecture.OUTPUTS]
        if missing and set(objective.NEEDS) <= set(JOINT_OUTPUTS):
            raise UsageError(
                f"The objective {name!r} is for image–text models.", "Add --objective, such as --objective cyclic."
            )
        if missing:
            raise UsageError(
                f"The objective {name!r} needs {', '.join(missing)}, which --arch {config.arch} does not give.",
                "Leave the objective out, or use another architecture.",
            )
    scheduled = [term.name for term in config.terms if term.full or term.settings]
    if scheduled:
        raise UsageError(
            f"The weight of {scheduled[0]!r} is a table.", "Give a number: schedules are for image–text models."
        )
    return objectives
