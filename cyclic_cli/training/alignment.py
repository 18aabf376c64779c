"""Trains an image–text model: joins its data, its model, its objectives and its validation as a `Learner`.

    paired_data.py          paired and unpaired samples, batches, the validation part
    joint_objectives.py     objectives, their weights and losses
    validation.py           retrieval between modalities, reconstruction errors

Objectives compare all samples of a batch, so the outputs of all processes are gathered before the losses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclic_cli.config import JOINT_RECIPE, PRESETS, REFINEMENT, REFINEMENT_RECIPE, TrainConfig, with_recipe
from cyclic_cli.data.mixture import MixedBatch, Modality
from cyclic_cli.data.samples import Samples
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import UsageError
from cyclic_cli.events import Report
from cyclic_cli.models._joint import Reconstructing, make_joint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.gradients import Plan, layout, make_plan
from cyclic_cli.training.joint_objectives import JointObjectives
from cyclic_cli.training.learner import ShowImages, Tick
from cyclic_cli.training.paired_data import PairedData
from cyclic_cli.training.validation import validate, validate_retrieval

DECODED_PER_BATCH = 48  # approximate number of items per modality that a step decodes; decoding dominates its cost
STEPS_PER_EPOCH = 4  # at least; a batch is never made smaller than `SMALLEST_BATCH` for it
SMALLEST_BATCH = 16
NORMS_EVERY = 50  # steps between two measurements of each objective's gradient norm


def filled_in(config: TrainConfig, samples: int) -> TrainConfig:
    """Fills settings that are None from the recipe of image–text models, and empty `objectives` from the preset.

    With few training `samples` the batches are smaller, so that an epoch has several steps.
    """
    largest = max(SMALLEST_BATCH, samples // STEPS_PER_EPOCH)
    recipe = JOINT_RECIPE | (REFINEMENT_RECIPE if config.refine else {})
    config = with_recipe(config, recipe | {"batch_size": min(recipe["batch_size"], largest)})
    config = replace(config, objectives=dict(config.objectives or _preset(config)))
    tables = {name: dict(table) for name, table in config.modalities.items()}
    if config.start == "closed_form":
        tables = {name: table | {"coded": True} for name, table in tables.items()}
        config = replace(config, epochs=0 if config.objective == "aligned" or not config.objectives else config.epochs)
    elif any(table.get("encoder") for table in tables.values()):
        raise UsageError(
            "Pretrained encoders start at the closed form, and named architectures start from the data.",
            "Leave out --arch and the architectures of modalities, or the encoders.",
        )
    elif config.objective == "aligned":
        raise UsageError("--objective aligned is the closed form itself.", "Leave out --arch and start=data.")
    elif config.refine:
        raise UsageError(
            "refine=true trains residual heads beside those of the closed form, and this model starts from the data.",
            "Leave out --arch, start and the architectures of modalities, or refine.",
        )
    if "image" in tables:  # takes --arch, `model` and `augment`; its own table overrides them
        usual = {"arch": config.arch, "model": config.model, "augment": config.augment}
        tables["image"] = usual | tables["image"]
        config = replace(config, **{name: tables["image"][name] for name in usual})
    config = replace(
        config, modalities={name: asdict(Modality.of(name, table).config) for name, table in tables.items()}
    )
    _check_refinement(config)
    return config


def _preset(config: TrainConfig) -> dict[str, Any]:
    """The objectives of a run that names none."""
    if config.start == "closed_form" and config.objective == "cyclic":
        return REFINEMENT if config.refine else {}
    return PRESETS[config.objective]


def _check_refinement(config: TrainConfig) -> None:
    """Raise UsageError when residual heads are asked for and nothing would train them, or nothing hold them."""
    if config.refine and config.objective == "aligned":
        raise UsageError(
            "--objective aligned is the closed form itself, so it trains no residual heads.",
            "Use --objective cyclic, or leave refine out.",
        )
    moving = [name for name, table in config.modalities.items() if not table.get("frozen", True)]
    if config.refine and moving:
        raise UsageError(
            "Residual heads are held to the closed form of fixed codes.",
            f"Leave modalities.{moving[0]}.frozen=false out, or refine.",
        )


class Alignment:
    """Learns one embedding space for several modalities, from paired and unpaired samples."""

    kept = ""
    epochs_done = 0
    fold_ranks: list[float] | None = None
    has_solution = False
    closed_form: Mapping[str, Any] = {}
    named_encoders: Mapping[str, list[str]] = {}

    def __init__(self, ranks: Ranks, datasets: Sequence[StoredDataset], config: TrainConfig) -> None:
        """
        Args:
            ranks: The processes of the run.
            datasets: The dataset of the run, then further ones, whose samples are all unpaired.
            config: Complete settings, see `filled_in`.

        Raises:
            CyclicError: there is no training sample, or none with one of the modalities.
            UsageError: an objective, a modality, the batch size or the strategy does not fit.
        """
        self.ranks, self.config = ranks, config
        if config.strategy == "fsdp":
            raise UsageError("Image–text models do not support FSDP.", "Use --strategy ddp.")
        if len(config.modalities) < 2:
            raise UsageError("An image–text model needs two modalities.", "Name more, or use --objective autoencode.")
        self.objectives = JointObjectives(config.terms, config.refine)
        self.data = PairedData(datasets, config)
        self.mixture = self.data.mixture
        self._check_pairs()
        assert config.batch_size is not None
        if config.batch_size < 2:
            raise UsageError("A contrastive loss needs at least two samples per batch.", "Use a --batch-size from 2.")
        self.batch_size = config.batch_size
        self.samples, self.patients = self.data.samples, self.data.patients
        self.steps_per_epoch = self.mixture.steps_per_epoch(self.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        self.module = self._module()
        self.norms: dict[str, float] = {}

    def _check_pairs(self) -> None:
        if not len(self.mixture.paired) and self.objectives.pairs_only:
            raise UsageError(
                f"There are no paired samples, and every objective needs them: {', '.join(self.objectives.names)}.",
                "Use a larger --paired-fraction, data with pairs, or an objective that needs none.",
            )

    def _module(self) -> Any:
        torch.manual_seed(self.config.seed)
        module = make_joint(self.data.modalities, self.data.facts, self.config.embedding, self.config.private)
        module.decoded_share = min(1.0, DECODED_PER_BATCH / self.batch_size)
        return module

    # ------------------------------------------------------------------------------------------------- setup

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint stores about the model besides its weights."""
        config = {
            "embedding": self.config.embedding, "private": self.config.private,
            "decoders": self.objectives.train_decoders, **self.portable_settings,
        }  # fmt: skip
        shape = list(self.data.dataset.image_shape)
        return {"name": "joint", "config": config, "image_shape": shape, "facts": self.data.facts}

    @property
    def portable_settings(self) -> dict[str, Any]:
        return self.data.portable_settings

    @property
    def initialisation(self) -> str:
        paired, inactive = len(self.mixture.paired), self.objectives.inactive_without_pairs
        note = f"; inactive objectives, which need pairs: {', '.join(inactive)}" if inactive and not paired else ""
        return f"the encoders from {self.data.counts}; {paired} samples are paired{note}"

    def initialise(self, tick: Tick, report: Report) -> None:
        """Initialise the encoders from the training data."""

        def tick_of(name: str, done: int, total: int) -> None:
            tick(done, total, f"{name}s for initialisation")

        self.ranks.agreed(lambda: self.module.initialise(self.mixture.pools, self.config.seed, tick_of))

    def restore(self, architecture: dict[str, Any], encoders: Path, tick: Tick, report: Report) -> None:
        """Does nothing: the settings and the data determine the module."""

    def write_encoders(self, folder: Path) -> None:
        """Does nothing: the encoders are part of the checkpoint."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters in groups. Biases, norms and the temperature of the contrastive loss have no weight decay.

        Encoders have a learning rate of their own (`fitted_lr`), because most are initialised from all training data.
        """
        groups = []
        for of_encoders, share in ((False, 1.0), (True, self.config.fitted_lr)):
            some = [one for name, one in self.module.named_parameters() if name.startswith("encoders.") == of_encoders]
            groups += [
                {"params": [one for one in some if one.dim() > 1], "share": share},
                {"params": [one for one in some if one.dim() <= 1], "share": share, "weight_decay": 0.0},
            ]
        return groups

    def plan(self) -> Plan:
        return make_plan(self.config, self.ranks, self.module, self.objectives.names, self.batch_size, 0)

    def set_up(self, model: Any, plan: Plan) -> None:
        self.model, self.memory_format = model, layout(plan)

    def close(self) -> None:
        """Does nothing."""

    # ------------------------------------------------------------------------------------------------- steps

    def batch(self, step: int) -> MixedBatch:
        """The paired samples and unpaired items of a step, counted from 0."""
        share = None if self.objectives.pairs_only else self.config.paired_share
        return self.mixture.batch(step, self.config.seed, self.batch_size, share)

    def keys(self, batch: MixedBatch) -> list[str]:
        return self.data.sample_keys(batch)

    def weights(self, step: int) -> dict[str, float]:
        return self.objectives.weights(step / self.steps, self.mixture.scarcity)

    def losses(self, batch: MixedBatch, step: int) -> dict[str, float]:
        """This process's contribution to each loss of the batch. Its gradients are added to those of the parameters."""
        weights = self.weights(step)
        outputs, partners = self._outputs(batch.part(self.ranks), step)
        losses = self.objectives.losses(outputs, partners, weights)
        if (step + 1) % NORMS_EVERY == 0 and not self.ranks.sharded:
            self.norms = {name: self._norm(weights[name] * loss) for name, loss in losses.items()}
        # Every process computes the loss of the whole batch; the backward pass collects its gradient from all of them.
        zero = 0 * torch.stack([one.float().sum() for one in outputs["embedding"].values()]).sum()
        total = torch.stack([zero, *(weights[name] * loss for name, loss in losses.items())]).sum()
        self.ranks.fabric.backward(total + self.ranks.zero_with_gradient(outputs))
        return {
            name: float(losses[name].detach() if name in losses else 0.0) / self.ranks.world
            for name in self.objectives.names
        }

    def gradient_norms(self) -> dict[str, float]:
        """The gradient norm of each weighted loss, if measured since the last call; else empty."""
        norms, self.norms = self.norms, {}
        return norms

    def _outputs(self, part: MixedBatch, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The outputs of all processes for a batch, and its samples and contents for the objectives."""
        batch = self.data.load(part, step, self.ranks.fabric.device, self.memory_format)
        outputs = self.model(batch.items, batch.samples, self.objectives.needs, batch.keep)
        whole = self.ranks.gathered_tree({"outputs": outputs, "sample": batch.samples, "content": batch.contents})
        return whole["outputs"], {"sample": whole["sample"], "content": whole["content"]}

    def _norm(self, loss: Tensor) -> float:
        """The norm of a loss's gradient in the layers that map codes into the shared space."""
        gradients = torch.autograd.grad(loss, self.module.trained_heads, retain_graph=True, allow_unused=True)
        found = [gradient.flatten() for gradient in gradients if gradient is not None]
        flat = torch.cat(found) if found else torch.zeros(1, device=loss.device)
        return float((self.ranks.summed(flat) / self.ranks.world).norm())

    # -------------------------------------------------------------------------------------------- validation

    def validate(self, is_stopped: Callable[[], bool], show: ShowImages | None) -> dict[str, float] | None:
        """Retrieval metrics between the modalities and, where decoders are trained, errors of reconstructed images.

        Without an objective that aligns modalities there are no retrieval metrics, as they would mean nothing.
        """
        samples = self.data.validation
        retrieval: dict[str, float] | None = {}
        if self.objectives.align:
            retrieval = validate_retrieval(self.ranks, self.module, samples, is_stopped)
        if retrieval is None or not self.objectives.train_decoders or "image" not in samples:
            return retrieval
        images = Samples.of(self.data.dataset, "val")
        errors = validate(self.ranks, Reconstructing(self.module), images, is_stopped, show)
        return None if errors is None else retrieval | errors

    @staticmethod
    def is_better(val: dict[str, float], best: dict[str, float]) -> bool:
        """Compares the geometric mean rank; a tie goes to the later checkpoint. Without ranks, compares the MSE.

        With neither metric the later checkpoint wins. The geometric mean weighs all ranks alike. The mean reciprocal
        rank would depend on the first places alone: early in training one report may be the nearest of many images, and
        such a model could win over one that ranks all partners better.
        """
        if "rank" in val:
            return val["rank"] <= best["rank"]
        return "mse" not in val or val["mse"] < best["mse"]
