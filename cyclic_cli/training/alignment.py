"""What a run learns when it aligns modalities: mixed batches, the joint model, its objectives, its validation.

The other thing a run may learn stands in `autoencoding.py`; `training.py` runs both, and asks the same of each.
Objectives look at whole batches, so the outputs of all processes are gathered before any of them.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclic_cli import registry
from cyclic_cli.config import JOINT_RECIPE, PRESETS, SCHEDULE, Term, TrainConfig, with_recipe
from cyclic_cli.data.mixture import Chosen, Modality, Source, fit, make_mixture, portable, present_samples, read_index
from cyclic_cli.data.samples import Samples, sample_noise
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import UsageError
from cyclic_cli.models._joint import DECODED, OUTPUTS, Reconstructing, make_joint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training.autoencoding import Tick, nothing_to_train_on
from cyclic_cli.training.gradients import Plan, layout, make_plan
from cyclic_cli.training.validation import validate, validate_retrieval

DECODED_VALUES = 48  # of a batch and modality, about: decoding costs more than all the rest, and few are enough
STEPS_OF_AN_EPOCH = 4  # at least, if batches of `SMALLEST_BATCH` are enough for it
SMALLEST_BATCH = 16
NORMS_EVERY = 50  # steps between two measurements of what each objective asks of the shared layers


def filled_in(config: TrainConfig, samples: int) -> TrainConfig:
    """The settings with what was left open taken from the joint recipe and the preset.

    Of few `samples` the batches are smaller, so that an epoch has some steps.
    """
    largest = max(SMALLEST_BATCH, samples // STEPS_OF_AN_EPOCH)
    config = with_recipe(config, JOINT_RECIPE | {"batch_size": min(JOINT_RECIPE["batch_size"], largest)})
    config = replace(config, objectives=dict(config.objectives or PRESETS[config.objective]))
    tables = dict(config.modalities)
    if "image" in tables:  # --arch and the like are its settings, unless its table says otherwise
        usual = {"arch": config.arch, "model": config.model, "augment": config.augment}
        tables["image"] = usual | tables["image"]
        config = replace(config, **{name: tables["image"][name] for name in usual})
    return replace(config, modalities={name: asdict(Modality.of(name, table).config) for name, table in tables.items()})


class Alignment:
    """The values of datasets, paired or alone, and the model that is to bring their modalities into one space."""

    def __init__(self, ranks: Ranks, datasets: Sequence[StoredDataset], config: TrainConfig) -> None:
        """
        Args:
            ranks: The processes of the run.
            datasets: The run's own, then further ones, whose values are all taken as alone.
            config: Filled in.

        Raises:
            CyclicError: a modality has no training value.
            UsageError: an objective or an encoder does not fit.
        """
        self.ranks, self.config = ranks, config
        self.dataset = datasets[0]
        if config.strategy == "fsdp":
            raise UsageError("Models of several modalities are not divided among devices.", "Take --strategy ddp.")
        if len(config.modalities) < 2:
            raise UsageError("A joint objective needs two modalities.", "Name more of them, or --objective autoencode.")
        self.terms = config.terms
        self.objectives = {term.name: _objective(term) for term in self.terms}
        self.needs = list(dict.fromkeys(need for one in self.objectives.values() for need in one.NEEDS))
        self.modalities = [Modality.of(name, table) for name, table in config.modalities.items()]
        sources = [
            Source(dataset, read_index(dataset, self.modalities, "train", 1.0 if number else config.fraction))
            for number, dataset in enumerate(datasets)
        ]
        own = sources[0].index
        self.samples, self.patients = len(own["sample"]), len(set(own["patient"].tolist()))
        if not self.samples:
            raise nothing_to_train_on(self.dataset, config)
        self.facts = {one.name: fit(sources, one) for one in self.modalities}
        self.mixture = make_mixture(sources, self.modalities, self.facts, config.paired_fraction)
        if not len(self.mixture.paired) and len(self._needing_pairs) == len(self.objectives):
            raise UsageError(
                f"No pair is known, and without any there is nothing to learn by {', '.join(self._needing_pairs)}.",
                "Give a larger --paired-fraction, data with both, or an objective that needs no pairs.",
            )
        assert config.batch_size is not None
        self.batch_size = config.batch_size
        if self.batch_size < 2:
            raise UsageError("A batch of one has nothing to tell it from.", "Give a --batch-size from 2.")
        self.steps_per_epoch = self.mixture.steps_per_epoch(self.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        torch.manual_seed(config.seed)
        self.module = make_joint(self.modalities, self.facts, config.embedding, config.private)
        self.module.decoded_share = min(1.0, DECODED_VALUES / self.batch_size)
        self.norms: dict[str, float] = {}

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint says of the model besides its weights."""
        config = {
            "embedding": self.config.embedding, "private": self.config.private,
            "decoders": bool(DECODED.intersection(self.needs)), **self.portable_settings,
        }  # fmt: skip
        shape = list(self.dataset.image_shape)
        return {"name": "joint", "config": config, "image_shape": shape, "facts": self.facts}

    @property
    def portable_settings(self) -> dict[str, Any]:
        """Settings as a checkpoint holds them, in place of those that name a place on this machine."""
        return {"modalities": {one.name: portable(one) for one in self.modalities}}

    @property
    def initialisation(self) -> str:
        """What is started from what, in words."""
        pools = ", ".join(f"{len(pool)} {name}s" for name, pool in self.mixture.pools.items())
        paired = len(self.mixture.paired)
        resting = "" if paired or not self._needing_pairs else f", without which rest: {', '.join(self._needing_pairs)}"
        return f"the encoders from {pools}; {paired} samples are paired{resting}"

    @property
    def _of_pairs(self) -> list[str]:
        """The objectives that look at pairs alone."""
        return [name for name, one in self.objectives.items() if getattr(one, "PAIRS_ONLY", False)]

    @property
    def _needing_pairs(self) -> list[str]:
        """The objectives that are nothing without any pair."""
        needing = {name for name, one in self.objectives.items() if getattr(one, "NEEDS_PAIRS", False)}
        return [name for name in self.objectives if name in needing.union(self._of_pairs)]

    def initialise(self, tick: Tick) -> None:
        """Start the encoders from the training values."""
        self.module.initialise(
            self.mixture.pools, self.config.seed, lambda name, done, total: tick(done, total, f"{name}s of the start")
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights, which decay, and apart from them biases, norms and the scale of the contrast, which do not.

        Those of encoders, most of which start from all values, learn at a rate of their own.
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
        return make_plan(self.config, self.ranks, self.module, list(self.objectives), self.batch_size, 0)

    def set_up(self, model: Any, plan: Plan) -> None:
        """Take the model as Fabric set it up."""
        self.model, self.layout = model, layout(plan)

    def close(self) -> None:
        """Nothing is held."""

    # ------------------------------------------------------------------------------------------------ steps

    def chosen(self, step: int) -> Chosen:
        """The values of a step (from 0) of the run."""
        share = None if len(self._of_pairs) == len(self.objectives) else self.config.paired_share
        return self.mixture.chosen(step, self.config.seed, self.batch_size, share)

    def weights(self, step: int) -> dict[str, float]:
        """The weight of each objective in a step."""
        scarcity = self.mixture.scarcity
        return {term.name: term.at(step / self.steps) * (scarcity if term.scarce else 1.0) for term in self.terms}

    def losses(self, chosen: Chosen, step: int) -> dict[str, float]:
        """What this process adds to the losses of a batch, by objective; gradients are added to the parameters'."""
        weights = self.weights(step)
        outputs, batch = self._whole(chosen.part(self.ranks), step)
        losses = {
            term.name: self.objectives[term.name].loss(outputs, batch, **term.settings)
            for term in self.terms
            if weights[term.name]
        }
        if (step + 1) % NORMS_EVERY == 0 and not self.ranks.sharded:
            self.norms = {name: self._norm(weights[name] * loss) for name, loss in losses.items()}
        # Every process computes the same loss of the whole batch; its gradient comes back from all of them.
        nothing = 0 * torch.stack([one.float().sum() for one in outputs["embedding"].values()]).sum()
        total = torch.stack([nothing, *(weights[name] * loss for name, loss in losses.items())]).sum()
        self.ranks.fabric.backward(total + self.ranks.untouched(outputs))
        return {
            term.name: float(losses[term.name].detach() if term.name in losses else 0.0) / self.ranks.world
            for term in self.terms
        }

    def _whole(self, part: Chosen, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The outputs of the model for a batch, and what belongs together in it, of all processes."""
        seed, device = self.config.seed, self.ranks.fabric.device
        values, samples, contents, keep = {}, {}, {}, {}
        for name, numbers in part.numbers.items():
            pool = self.mixture.pools[name]
            value, keys = pool.load(numbers, (seed, step)), pool.keys[numbers]
            if value.dim() == 4:
                value = value.contiguous(memory_format=self.layout)
            values[name] = value.to(device, non_blocking=True)
            samples[name] = torch.from_numpy(part.samples[name]).to(device)
            contents[name] = torch.from_numpy(keys.view(np.int64).copy()).to(device)
            keep[name] = _uniform(keys, seed, step).to(device)
        outputs = self.model(values, samples, self.needs, keep)
        together = self.ranks.gathered_tree({"outputs": outputs, "sample": samples, "content": contents})
        return together["outputs"], {"sample": together["sample"], "content": together["content"], "step": step}

    def _norm(self, loss: Tensor) -> float:
        """The norm of an objective's gradient in the layers that lead into the shared space."""
        heads = list(self.module.heads.parameters())
        gradients = torch.autograd.grad(loss, heads, retain_graph=True, allow_unused=True)
        found = [gradient.flatten() for gradient in gradients if gradient is not None]
        flat = torch.cat(found) if found else torch.zeros(1, device=loss.device)
        return float((self.ranks.summed(flat) / self.ranks.world).norm())

    def gradient_norms(self) -> dict[str, float]:
        """Those measured since they were last asked for, by objective, each times its weight."""
        norms, self.norms = self.norms, {}
        return norms

    def keys(self, chosen: Chosen) -> list[str]:
        """The starts of the keys in the index of the samples that the values of a batch are of.

        Not the keys of the values, which of a text are a hash of what it says.
        """
        names = [self.mixture.pools[name].names[numbers] for name, numbers in chosen.numbers.items()]
        return [name[:16] for name in dict.fromkeys(np.concatenate(names).tolist())]

    # -------------------------------------------------------------------------------------------- validation

    def validate(
        self, is_stopped: Callable[[], bool], seen: Callable[[Tensor, Tensor], None] | None
    ) -> dict[str, float] | None:
        """Retrieval between the modalities of unseen patients and, where decoders are trained, errors of images.

        What only reconstructs says nothing of how modalities lie to one another, so it is not asked.
        """
        aligns = self.needs != ["reconstruction"]
        found = validate_retrieval(self.ranks, self.module, self._val, is_stopped) if aligns else {}
        if found is None or not DECODED.intersection(self.needs) or "image" not in self._val:
            return found
        errors = validate(self.ranks, Reconstructing(self.module), Samples.of(self.dataset, "val"), is_stopped, seen)
        return None if errors is None else found | errors

    @cached_property
    def _val(self) -> dict[str, tuple[Any, np.ndarray]]:
        """By modality the values of the validation samples, and for each sample their number, or UNPAIRED."""
        index = read_index(self.dataset, self.modalities, "val")
        return {one.name: present_samples(self.dataset, one, index, self.facts[one.name]) for one in self.modalities}

    @staticmethod
    def is_better(val: dict[str, float], best: dict[str, float]) -> bool:
        """By the geometric mean of the ranks of partners, of equal ones the later; else by the error; else the later.

        It weighs all ranks alike. The mean of their inverses sees the first places alone, so one report that many
        images are next to, as early in a training, can win over a model that knows all of them better.
        """
        if "rank" in val:
            return val["rank"] <= best["rank"]
        return "mse" not in val or val["mse"] < best["mse"]


def _uniform(keys: np.ndarray, seed: int, step: int) -> Tensor:
    """A number (N,) in [0, 1) a value, from (seed, step, key) alone."""
    if not len(keys):
        return torch.zeros(0)
    return torch.special.ndtr(sample_noise(keys, 1, seed, step, "private")[:, 0])


def _objective(term: Term) -> Any:
    """The file of an objective. Raises UsageError when it does not know a setting, or is for autoencoders."""
    file = registry.load("objectives", term.name, "objective")
    missing = [need for need in file.NEEDS if need not in OUTPUTS]
    if missing or not getattr(file, "JOINT", True):
        raise UsageError(
            f"The objective {term.name!r} needs {', '.join(missing or ['pixels'])}, which no joint model gives.",
            "Leave it out, or take --objective autoencode.",
        )
    parameters = inspect.signature(file.loss).parameters.items()
    known = {name: one.default for name, one in parameters if one.kind is one.KEYWORD_ONLY}
    for name, value in term.settings.items():
        registry.check(name, [*known, *SCHEDULE, "scarce"], f"setting of objectives.{term.name}")
        whole = isinstance(known[name], int)
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (number and 0 < value < math.inf):
            wanted = "a whole number from 1" if whole else "a number above 0"
            raise UsageError(f"objectives.{term.name}.{name} cannot be {value!r}.", f"Give {wanted}.")
    return file
