"""Trains an image encoder so that two views of an image agree (`--objective views`).

The views are those of `data/views.py`. Objectives compare projections of the embeddings, and see the whole batch: the
projections of all processes are gathered before the losses. The decoder of the architecture is not trained.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cyclic_cli import config as settings
from cyclic_cli import registry
from cyclic_cli.config import PRESETS, TrainConfig
from cyclic_cli.data.samples import EpochOrder, Samples
from cyclic_cli.data.views import ViewConfig, view
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import UsageError
from cyclic_cli.metrics.retrieval import first_hits
from cyclic_cli.models._embedding import Projected, as_embedded, embed
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.autoencoding import BEFORE_TRAINING, INITIALISATION_IMAGES, Autoencoding
from cyclic_cli.training.gradients import Plan, layout, make_plan
from cyclic_cli.training.joint_objectives import check_settings
from cyclic_cli.training.learner import ShowImages
from cyclic_cli.training.validation import in_batches

RECIPE = {"lr": 2e-3, "batch_size": 128, "weight_decay": 1e-4, "warmup": 0.1, "augment": 1.0}
VIEWS = 2  # of an image
STEPS_PER_EPOCH = 4  # at least; a batch is never made smaller than `SMALLEST_BATCH` for it
SMALLEST_BATCH = 16
FOR_VALIDATION = -2  # epoch number that seeds the views of validation images


def filled_in(config: TrainConfig, samples: int) -> TrainConfig:
    """Fills settings that are None from `RECIPE`, empty `objectives` from the preset, and the settings of the views.

    With few training `samples` the batches are smaller, so that an epoch has several steps.
    """
    largest = max(SMALLEST_BATCH, samples // STEPS_PER_EPOCH)
    architecture = registry.load("models", config.arch, "architecture")
    views = settings.build(ViewConfig, config.modalities.get("image", {}), "modalities.image")
    return replace(
        settings.with_recipe(config, RECIPE | {"batch_size": min(RECIPE["batch_size"], largest)}),
        model=asdict(settings.build(architecture.Config, config.model, "the model")),
        objectives=dict(config.objectives or PRESETS[config.objective]),
        modalities={"image": asdict(views)},
    )


class SelfSupervised(Autoencoding):
    """Learns embeddings of images that are equal for views of an image."""

    kept = "model"

    def __init__(self, ranks: Ranks, dataset: StoredDataset, config: TrainConfig) -> None:
        """
        Args:
            ranks: The processes of the run.
            dataset: The images.
            config: Complete settings, see `filled_in`.

        Raises:
            CyclicError: there are no training images.
            UsageError: an objective, the batch size, the strategy or the shape of the images does not fit.
        """
        if config.strategy == "fsdp":
            raise UsageError("--objective views does not support FSDP.", "Use --strategy ddp.")
        super().__init__(ranks, dataset, config)
        if self.batch_size < 2:
            raise UsageError("Views are compared with those of other images.", "Use more images, --batch-size from 2.")
        self.steps_per_epoch = self.samples // self.batch_size  # what is left over would be a small batch
        self.steps = self.steps_per_epoch * config.epochs
        self.views = ViewConfig(**config.modalities["image"])

    def _objectives(self) -> dict[str, ModuleType]:
        objectives = {}
        for term in self.config.terms:
            objectives[term.name] = registry.load("objectives", term.name, "objective")
            if objectives[term.name].NEEDS != ("projection",):
                raise UsageError(f"The objective {term.name!r} does not compare views.", "Use simclr.")
            check_settings(term, objectives[term.name])
        return objectives

    def _module(self) -> Any:
        model = super()._module()
        with torch.no_grad():
            dims = embed(model, torch.zeros(1, *self.dataset.image_shape)).shape[1]
        return Projected(model, dims)

    @property
    def architecture(self) -> dict[str, Any]:
        return super().architecture | {"decoders": False}

    def plan(self) -> Plan:
        pixels = math.prod(self.dataset.image_shape)
        return make_plan(self.config, self.ranks, self.module, list(self.objectives), self.batch_size, pixels)

    def set_up(self, model: Any, plan: Plan) -> None:
        self.model, self.memory_format = model, layout(plan)

    def close(self) -> None:
        """Does nothing."""

    def weights(self, step: int) -> dict[str, float]:
        """The weight of each objective in a step."""
        return {term.name: term.at(step / self.steps) for term in self.config.terms}

    def losses(self, batch: np.ndarray, step: int) -> dict[str, float]:
        """This process's contribution to each loss of the batch. Its gradients are added to those of the parameters."""
        part, epoch = self.ranks.part(batch), step // self.steps_per_epoch
        outputs = self.model(self._views(self.data, part if len(part) else batch[:1], epoch))
        whole = self.ranks.gathered_tree({"projection": _by_image(outputs["projection"])[: len(part)]})
        losses, weights = self._losses(whole), self.weights(step)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        # Every process computes the loss of the whole batch; the backward pass collects its gradient from all of them.
        self.ranks.fabric.backward(total + self.ranks.zero_with_gradient(outputs))
        return {name: float(loss.detach()) / self.ranks.world for name, loss in losses.items()}

    def _losses(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The unweighted losses () of the projections (N, VIEWS, D) of a batch."""
        return {term.name: self.objectives[term.name].loss(outputs, {}, **term.settings) for term in self.config.terms}

    def _views(self, data: Samples, chosen: np.ndarray, epoch: int) -> Tensor:
        """Views (VIEWS N, C, H, W) of the samples `chosen` (N,): the first view of each sample, then the second."""
        images, keys = as_embedded(self.module.model, data.images(chosen)), data.keys(chosen)
        strength, seed = self.config.augment or 0.0, self.config.seed
        views = [view(images, keys, self.views, strength, seed, epoch, number) for number in range(VIEWS)]
        found = torch.cat(views).to(self.ranks.fabric.device, non_blocking=True)
        return found.contiguous(memory_format=self.memory_format)

    @torch.no_grad()
    def validate(self, is_stopped: Callable[[], bool], show: ShowImages | None) -> dict[str, float] | None:
        """How well views of validation images agree. The views are the same after every epoch.

        Returns:
            `loss`: the weighted objectives, mean over batches. `agreement`: the share of the images whose first view
            is more similar to their second view than to the second views of all other images. Empty without validation
            images; None when `is_stopped` returned True.
        """
        if not self._whiten(is_stopped):
            return None
        self.module.eval()
        count = len(self.val_data)
        parts: dict[str, list[Tensor]] = {"embedding": [], "projection": []}
        for numbers, loaded in in_batches(self.ranks, count):
            if is_stopped():
                return None
            outputs = self.module(self._views(self.val_data, loaded, FOR_VALIDATION))
            for name, rows in parts.items():
                rows.append(_by_image(outputs[name])[: len(numbers)].float())
        self.module.train()
        if not count:
            return {}
        whole = {name: self.ranks.gathered(torch.cat(rows), count) for name, rows in parts.items()}
        first, second = functional.normalize(whole["embedding"], dim=2).transpose(0, 1).cpu().numpy()
        ranks = first_hits(first, second, np.arange(count), np.arange(count))
        return {"loss": self._validation_loss(whole["projection"]), "agreement": float(np.mean(ranks == 1))}

    def _whiten(self, is_stopped: Callable[[], bool]) -> bool:
        """Whiten the embeddings of an embedding network on training images. False when `is_stopped` returned True."""
        network = getattr(self.module.model, "embedding", None)
        if network is None:
            return True
        self.module.eval()
        chosen = EpochOrder(self.samples, self.config.seed, BEFORE_TRAINING)[:INITIALISATION_IMAGES]
        features: list[Tensor] = []
        for numbers, loaded in in_batches(self.ranks, len(chosen)):
            if is_stopped():
                return False
            images = self.data.images(chosen[loaded]).to(self.ranks.fabric.device)
            features.append(network.features(images)[: len(numbers)].float())
        network.whiten(self.ranks.gathered(torch.cat(features), len(chosen)))
        self.module.train()
        return True

    def _validation_loss(self, projection: Tensor) -> float:
        """The weighted objectives, mean over batches of projections (N, VIEWS, D). A smaller last one is left out."""
        weights = self.weights(self.steps)
        batches = [part for part in torch.split(projection, self.batch_size) if len(part) == self.batch_size] or [
            projection
        ]
        losses = [self._losses({"projection": part}) for part in batches]
        return float(np.mean([sum(weights[name] * float(loss) for name, loss in one.items()) for one in losses]))

    @staticmethod
    def is_better(val: dict[str, float], best: dict[str, float]) -> bool:
        """Compares the loss."""
        return val["loss"] < best["loss"]


def _by_image(rows: Tensor) -> Tensor:
    """Rows (VIEWS N, D) in the order of `SelfSupervised._views`, as (N, VIEWS, D)."""
    return torch.unflatten(rows, 0, (VIEWS, -1)).transpose(0, 1)
