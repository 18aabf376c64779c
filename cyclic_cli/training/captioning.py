"""Trains a text decoder on the fixed codes of a finished image–text model (`--objective captioning --init-from RUN`).

The rest of the model stays as it is, bit for bit. The codes of the training texts are computed once. The decoder sees
what it will see when it writes a text for an image: the code that an embedding gives, not that of a text itself.

    text  → code → embedding → predicted code → decoder → cross-entropy of the text
    image → code → embedding → predicted code ↗

In each epoch a hash decides whether a paired text is written from its own embedding or from that of its image. Unpaired
texts are written from their own embedding (text-only training, as in DeCap: Li et al., ICLR 2023). Pairs are those that
the image–text model knows. Gaussian noise is added to the codes (CapDec: Nukrai et al., Findings of EMNLP 2022).

Words that the reports of fewer than ten patients contain are left out of the texts before the decoder sees them. What
it never saw, its weights cannot repeat.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli import config as settings
from cyclic_cli.codes.cache import FeatureCache
from cyclic_cli.codes.cached_codes import TickOf, allocated, cached_codes, gathered
from cyclic_cli.codes.sources import ROWS, Items, Share, Source, sources_of
from cyclic_cli.codes.text_codes import DECODER, DecoderConfig, TextDecoder
from cyclic_cli.codes.text_reader import TERMS
from cyclic_cli.config import TrainConfig
from cyclic_cli.data import mixture
from cyclic_cli.data.mixture import UNPAIRED, Modality, Pool, Subset
from cyclic_cli.data.samples import EpochOrder, sample_noise
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Report, silent
from cyclic_cli.modalities import text as texts
from cyclic_cli.models._rebuilding import CLOSED_FORM, attach_frozen, frozen_encoders, rebuild
from cyclic_cli.pretrained import stored
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.storage.checkpoint import Checkpoint
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.text_encoders._known_words import of_many_patients, without_rare
from cyclic_cli.training.gradients import Plan, make_plan
from cyclic_cli.training.learner import ShowImages, Tick
from cyclic_cli.training.validation import in_batches

RECIPE = {"lr": 3e-3, "batch_size": 64, "weight_decay": 0.01, "warmup": 0.1}
STEPS_PER_EPOCH = 8  # at least; a batch is never made smaller than `SMALLEST_BATCH` for it
SMALLEST_BATCH = 16
NOISE = 1.0  # standard deviation of the noise that is added to codes, relative to that of the codes
LOSS = "cross_entropy"
OWN = ("vocabulary", "length")  # settings of texts that a run may choose; all others are those of the initial run
SAMPLE = 4096  # codes of each kind on which their mean and spread are measured
BATCH = 32  # images or texts that pass through encoders that were trained


def filled_in(config: TrainConfig, samples: int, initial: Checkpoint | None) -> TrainConfig:
    """Fills settings that are None from `RECIPE`, and takes those of the data and the modalities from `initial`.

    Patients and pairs are at most those of the initial run. With few training `samples` the batches are smaller, so
    that an epoch has several steps.

    Raises:
        UsageError: `initial` is not an image–text model on fixed codes, or a setting contradicts it.
        CyclicError: `initial` is damaged.
    """
    before = _checked(initial)
    try:
        return _filled_in(config, samples, before)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CyclicError("The checkpoint of --init-from is damaged.", "Copy it again.") from error


def _filled_in(config: TrainConfig, samples: int, before: Checkpoint) -> TrainConfig:
    if config.start != CLOSED_FORM:
        raise UsageError(
            "--objective captioning takes the model of --init-from as it is, so no architecture can be named.",
            "Leave out --arch, start and the architectures of modalities; --set model.width is of the decoder.",
        )
    if config.objectives:
        raise UsageError("--objective captioning has one loss, that of its decoder.", "Leave objectives out.")
    if config.refine:
        raise UsageError("--objective captioning changes no head of the model of --init-from.", "Leave refine out.")
    known = before.provenance.get("settings", {})
    paired_seed = int(known.get("paired_seed", 0))
    if config.paired_seed not in (TrainConfig.paired_seed, paired_seed):
        raise UsageError(f"The pairs of --init-from are those of paired_seed={paired_seed}.", "Leave paired_seed out.")
    largest = max(SMALLEST_BATCH, samples // STEPS_PER_EPOCH)
    return replace(
        settings.with_recipe(config, RECIPE | {"batch_size": min(RECIPE["batch_size"], largest)}),
        model=asdict(settings.build(DecoderConfig, config.model, "the decoder")),
        modalities=_modalities(before.architecture["config"]["modalities"], config.modalities),
        fraction=min(config.fraction, float(known.get("fraction", 1.0))),
        paired_fraction=min(config.paired_fraction, float(known.get("paired_fraction", 1.0))),
        paired_seed=paired_seed,
    )


def _checked(initial: Checkpoint | None) -> Checkpoint:
    """The checkpoint itself. Raises UsageError unless it is an image–text model on fixed codes."""
    if initial is None:
        raise UsageError(
            "--objective captioning trains the text decoder of a finished image–text model.",
            "Name its run with --init-from; cyclic train DATASET --objective aligned makes one.",
        )
    if initial.architecture["name"] != "joint":
        raise UsageError(
            "The model of --init-from is one of images alone, so it has no codes of texts.",
            "Name an image–text run; cyclic train DATASET --objective aligned makes one.",
        )
    if initial.architecture["config"].get("start") != CLOSED_FORM:
        raise UsageError(
            "The image–text model of --init-from was trained from the data, and such a model has its own decoder.",
            "Train it again with --set modalities.text.arch=transformer, or name a run of --objective aligned.",
        )
    return initial


def _modalities(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of modalities of the initial run, with those of `OWN` from the run itself.

    Raises UsageError when the run gives another setting.
    """
    tables = {name: asdict(Modality.of(name, dict(table)).config) for name, table in before.items()}
    for name, table in given.items():
        if table.get("encoder"):
            raise UsageError(f"--{name}-encoder: the encoders are those of --init-from.", "Leave the encoder out.")
        values = asdict(Modality.of(name, dict(table)).config)
        for key in table:
            if name == "text" and key in OWN:
                tables[name][key] = values[key]
            elif tables[name][key] != values[key]:
                raise UsageError(
                    f"modalities.{name}.{key} is that of --init-from.",
                    f"Leave it out; only {' and '.join(f'modalities.text.{one}' for one in OWN)} may differ.",
                )
    return tables


class Captions(nn.Module):
    """The image–text model as training sees it: the errors of texts that are written from codes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def decoder(self) -> TextDecoder:
        found: TextDecoder = self.model.encoders["text"].decoder
        return found

    def forward(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Return (N,) the cross-entropies per token of tokens (N, L), see `Decoder.errors`, given codes (N, code)."""
        return self.decoder.errors(code, tokens)


class Captioning:
    """Learns to write the reports of a dataset from the embeddings of an image–text model."""

    kept = "model"
    has_solution = False
    named_encoders: Mapping[str, list[str]] = {}  # the initial run names them
    epochs_done = 0
    fold_ranks: list[float] | None = None

    def __init__(
        self, ranks: Ranks, dataset: StoredDataset, config: TrainConfig, initial: Checkpoint, encoders: Path
    ) -> None:
        """
        Args:
            ranks: The processes of the run.
            dataset: The dataset that `initial` was trained on.
            config: Complete settings, see `filled_in`.
            initial: The image–text model.
            encoders: The folder of its pretrained encoders.

        Raises:
            CyclicError: The dataset is another one or has no training texts; or the checkpoint is damaged.
            UsageError: A setting or the strategy does not fit.
        """
        if config.strategy == "fsdp":
            raise UsageError("--objective captioning does not support FSDP.", "Use --strategy ddp.")
        if initial.provenance.get("dataset") != dataset.facts.fingerprint:
            raise CyclicError(
                "The model of --init-from was trained on another dataset, or on an earlier state of this one.",
                "Name its dataset; or train it on this one: cyclic train DATASET --objective aligned.",
            )
        self.ranks, self.dataset, self.config, self.initial = ranks, dataset, config, initial
        self.closed_form: Mapping[str, Any] = initial.architecture.get("alignment", {})  # of the initial run
        self._initial_encoders, self._cache = encoders, FeatureCache()
        self._tick: Tick = lambda done, total, unit: None
        self._report: Report = silent
        self.modalities = [Modality.of(name, table) for name, table in config.modalities.items()]
        facts = {name: dict(own) for name, own in initial.architecture["facts"].items()}
        index = mixture.read_index(dataset, self.modalities, "train", config.fraction)
        has_text = np.asarray(index["has_text"], bool)
        if not has_text.any():
            raise CyclicError(
                "There are no training texts to learn from.", "Use a larger --fraction, or a dataset with reports."
            )
        self.of_texts = texts.Config(
            arch="transformer", **{name: config.modalities["text"][name] for name in OWN}
        )  # how the decoder reads and writes texts
        known = {name: column[has_text] for name, column in index.items()}
        self._words = frozenset(of_many_patients(known["text"].tolist(), known["patient"].tolist()))
        found = texts.fit(dataset, known | {"text": self._without_rare(known["text"])}, self.of_texts)
        kept = {name: found[name] for name in ("tokenizer", "frequencies", "nats", "limit")}
        facts["text"][DECODER] = {"settings": dict(config.model), **kept}
        self.facts = facts
        self.mixture = mixture.make_mixture(
            [mixture.Source(dataset, index)], self.modalities, facts, config.paired_fraction, config.paired_seed
        )
        self.samples, self.patients = len(self.texts), len(set(index["patient"][has_text].tolist()))
        assert config.batch_size is not None
        self.batch_size = min(config.batch_size, self.samples)
        self.steps_per_epoch = -(-self.samples // self.batch_size)
        self.steps = self.steps_per_epoch * config.epochs
        torch.manual_seed(config.seed)
        self.module: Any = Captions(rebuild(self.architecture, "The checkpoint of --init-from"))
        self.module.requires_grad_(False)
        self.module.decoder.requires_grad_(True)
        self._order: tuple[int, EpochOrder] = (-1, EpochOrder(0, 0, 0))  # epoch, its order

    def _without_rare(self, written: np.ndarray) -> np.ndarray:
        """Texts (N,) without words of few patients."""
        return np.array([without_rare(text, self._words) for text in written.tolist()], object)

    @property
    def texts(self) -> Pool:
        """The training texts."""
        return self.mixture.pools["text"]

    # ------------------------------------------------------------------------------------------------- setup

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint stores about the model besides its weights: that of the initial run, with a decoder."""
        before = self.initial.architecture
        return {**before, "config": before["config"] | self.portable_settings, "facts": self.facts}

    @property
    def portable_settings(self) -> dict[str, Any]:
        return {"modalities": {one.name: mixture.portable(one) for one in self.modalities}}

    @property
    def initialisation(self) -> str:
        pairs = len(self.mixture.paired)
        return f"a text decoder for the model {self.initial.fingerprint}: {self.samples} texts, {pairs} are paired"

    def initialise(self, tick: Tick, report: Report) -> None:
        """Take the weights of the initial model, and standardise the codes that its embeddings give."""
        self._tick, self._report = tick, report
        self._attach(self._initial_encoders)
        weights = {name: torch.from_numpy(value) for name, value in self.initial.weights.items()}
        prefix = f"encoders.text.{DECODER}."
        kept = {name: one for name, one in weights.items() if not name.startswith(prefix)}  # an earlier decoder is left
        own = {name: one for name, one in self.module.model.state_dict().items() if name.startswith(prefix)}
        try:
            self.module.model.load_state_dict(kept | own)
        except RuntimeError as error:
            raise CyclicError("The checkpoint of --init-from is damaged.", "Copy it again.") from error
        with self.ranks.report_lost_peer():
            own_codes, of_images, _ = self._codes
        codes = torch.from_numpy(np.concatenate([own_codes[:SAMPLE], of_images[:SAMPLE]]))
        decoder = self.module.decoder
        decoder.mean.copy_(codes.mean(0))
        decoder.spread.copy_((codes - decoder.mean.cpu()).square().mean().sqrt().clamp(min=1e-6))

    def restore(self, architecture: dict[str, Any], encoders: Path, tick: Tick, report: Report) -> None:
        """Attach the pretrained encoders of the run. Codes are computed after the weights of the state are loaded."""
        self._tick, self._report = tick, report
        self._attach(encoders)

    def _attach(self, folder: Path) -> None:
        def read(fingerprint: str) -> PretrainedEncoder:
            return stored.read_encoder(folder, fingerprint)

        attach_frozen(self.module.model, self.architecture, read)

    def write_encoders(self, folder: Path) -> None:
        """Write the frozen pretrained encoders into the folder of the run."""
        for name, fingerprint in frozen_encoders(self.architecture):
            stored.write_encoder(folder, self.module.model.encoders[name].pretrained[fingerprint])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters of the decoder. Biases and norms have no weight decay."""
        parameters = list(self.module.decoder.parameters())
        return [
            {"params": [one for one in parameters if one.dim() > 1], "share": 1.0},
            {"params": [one for one in parameters if one.dim() <= 1], "share": 1.0, "weight_decay": 0.0},
        ]

    def plan(self) -> Plan:
        return make_plan(self.config, self.ranks, self.module, [self.config.objective], self.batch_size, 0)

    def set_up(self, model: Any, plan: Plan) -> None:
        self.model = model

    def close(self) -> None:
        """Does nothing."""

    # ------------------------------------------------------------------------------------------------- codes

    @cached_property
    def _codes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `_computed_codes`."""
        return self.ranks.together(self._computed_codes)

    def _computed_codes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the decoder reads in training.

        Returns:
            By text (N, code), the code that its own embedding gives; by pair (P, code), the code that the embedding of
            the image gives; by text (N,), the number of its pair or UNPAIRED.
        """
        images, paired = self.mixture.rows["image"], self.mixture.rows["text"]
        pair_of = np.full(len(self.texts), UNPAIRED)
        pair_of[paired] = np.arange(len(paired))
        return (
            self._predicted("text", self.texts, "training"),
            self._predicted("image", Subset(self.mixture.pools["image"], images), "training"),
            pair_of,
        )

    @torch.no_grad()
    def _predicted(self, name: str, items: Items, part: str) -> np.ndarray:
        """The codes of texts (N, code) that the embeddings of N images or texts give."""
        model, device = self.module.model, self.ranks.fabric.device
        found = allocated((len(items), model.encoders["text"].code))
        if not len(items):
            return found
        codes = self._fixed_codes(name, items, part)
        for first in range(0, len(items), ROWS):
            code = torch.from_numpy(np.asarray(codes[first : first + ROWS])).to(device)
            found[first : first + ROWS] = model.code("text", model.split(name, code)[0]).float().cpu().numpy()
        return found

    def _fixed_codes(self, name: str, items: Items, part: str) -> np.ndarray:
        """The codes (N, code) of N images or texts in their modality. Each process computes those of its share."""
        share = Share(items, self.ranks.part(np.arange(len(items))), self.ranks)
        own = self._codes_of_share(name, share.items, part)[: len(share)]
        return gathered(own, share.numbers, len(items), self.ranks)

    def _codes_of_share(self, name: str, items: Items, part: str) -> np.ndarray:
        encoder, device = self.module.model.encoders[name], self.ranks.fabric.device
        if self._is_frozen(name):
            return cached_codes(encoder, self._sources(name), items, self._tick_of(name, part), self._report)
        found = allocated((len(items), encoder.code))  # the cache knows encoders as they were before their training
        for first in range(0, len(items), BATCH):
            numbers = np.arange(first, min(first + BATCH, len(items)))
            found[numbers] = encoder.encode(items.load(numbers).to(device)).float().cpu().numpy()
            self._tick(int(numbers[-1]) + 1, len(items), f"{part} {name}s encoded")
        return found

    def _is_frozen(self, name: str) -> bool:
        return bool(self.config.modalities[name]["frozen"])

    def _sources(self, name: str) -> list[Source]:
        encoders = list(self.module.model.encoders[name].pretrained.values())
        return sources_of(name, encoders, self.facts[name].get(TERMS), self._cache, self.ranks.fabric.device)

    def _tick_of(self, name: str, part: str) -> TickOf:
        return lambda title: lambda done, total: self._tick(done, total, f"{part} {name}s encoded by {title}")

    @cached_property
    def _tokens(self) -> Any:
        """The training texts as tokens of the decoder's vocabulary."""
        return self._tokens_of(self.texts.parts[0].texts)

    def _tokens_of(self, written: np.ndarray) -> Any:
        return texts.Samples(
            self.dataset, {"text": self._without_rare(written)}, self.of_texts, self.facts["text"][DECODER]
        )

    # ------------------------------------------------------------------------------------------------- steps

    def batch(self, step: int) -> np.ndarray:
        """The numbers (N,) of the texts of a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, EpochOrder(self.samples, self.config.seed, epoch)
        # In the order of their keys, so that the batches of unpaired texts do not depend on whose images they are.
        return self.texts.by_key[self._order[1][within * self.batch_size : (within + 1) * self.batch_size]]

    def weights(self, step: int) -> dict[str, float]:
        return {LOSS: 1.0}

    def losses(self, batch: np.ndarray, step: int) -> dict[str, float]:
        """This process's contribution to the loss of the batch. Its gradient is added to that of the parameters."""
        part = self.ranks.part(batch)
        share, chosen = len(part) / len(batch), part if len(part) else batch[:1]
        device = self.ranks.fabric.device
        tokens = self._tokens.load(chosen).to(device, non_blocking=True)
        code = self._inputs(chosen, step // self.steps_per_epoch).to(device, non_blocking=True)
        loss = self.model(code, tokens).mean() * share
        self.ranks.fabric.backward(loss * self.ranks.world)  # processes average their gradients
        return {LOSS: float(loss.detach())}

    def _inputs(self, chosen: np.ndarray, epoch: int) -> Tensor:
        """The codes (M, code) from which the texts with the numbers `chosen` (M,) are written in an epoch."""
        own, of_images, pair_of = self._codes
        codes, pairs = np.array(own[chosen]), pair_of[chosen]
        keys, seed = self.texts.keys[chosen], self.config.seed
        from_image = sample_noise(keys, 1, seed, epoch, "image")[:, 0].numpy() > 0
        places = np.flatnonzero(from_image & (pairs != UNPAIRED))
        codes[places] = of_images[pairs[places]]
        noise = sample_noise(keys, codes.shape[1], seed, epoch, "code")
        return torch.from_numpy(codes) + NOISE * float(self.module.decoder.spread) * noise

    def keys(self, batch: np.ndarray) -> list[str]:
        """The first 16 characters of the index keys of a batch's samples."""
        return [key[:16] for key in self.texts.sample_keys[batch].tolist()]

    def gradient_norms(self) -> dict[str, float]:
        """Empty: there is one loss."""
        return {}

    # -------------------------------------------------------------------------------------------- validation

    @cached_property
    def _validation(self) -> tuple[Any, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """See `_read_validation`."""
        return self.ranks.together(self._read_validation)

    def _read_validation(self) -> tuple[Any, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """The tokens of the validation texts, and by modality the codes (N, code) and the texts (N,) to be written."""
        index = mixture.read_index(self.dataset, self.modalities, "val")
        found = {
            one.name: mixture.present_samples(self.dataset, one, index, self.facts[one.name]) for one in self.modalities
        }
        (items, of_texts), (_, of_images) = found["text"], found["image"]
        both = (of_texts != UNPAIRED) & (of_images != UNPAIRED)
        pools = {name: Pool([samples], np.empty(len(samples), object)) for name, (samples, _) in found.items()}
        codes = (
            self._predicted("text", pools["text"], "validation"),
            self._predicted("image", Subset(pools["image"], of_images[both]), "validation"),
        )
        numbers = np.arange(len(items)), of_texts[both]
        return self._tokens_of(items.texts), {
            name: (own, number) for name, own, number in zip(("text", "image"), codes, numbers, strict=True)
        }

    @torch.no_grad()
    def validate(self, is_stopped: Callable[[], bool], show: ShowImages | None) -> dict[str, float] | None:
        """How well validation reports are predicted.

        Returns:
            `cross_entropy_from_images` and `cross_entropy_from_texts`: given the embeddings of their images and their
            own, per token, relative to the mean predictor, averaged over the reports. Empty without reports; None when
            `is_stopped` returned True.
        """
        tokens, parts = self._validation
        device, val = self.ranks.fabric.device, dict[str, float]()
        self.module.eval()
        for name, (codes, numbers) in parts.items():
            errors: list[Tensor] = []
            for mine, loaded in in_batches(self.ranks, len(codes)):
                if is_stopped():
                    return None
                code = torch.from_numpy(np.asarray(codes[loaded])).to(device)
                found = self.module(code, tokens.load(numbers[loaded]).to(device))
                errors.append(found[: len(mine)].double())
            if errors and len(codes):
                val[f"{LOSS}_from_{name}s"] = float(self.ranks.gathered(torch.cat(errors), len(codes)).mean())
        self.module.train()
        return val

    @staticmethod
    def is_better(val: dict[str, float], best: dict[str, float]) -> bool:
        """Compares the error of texts that are written from images; without pairs, from their own embeddings."""
        name = next(f"{LOSS}_from_{one}s" for one in ("image", "text") if f"{LOSS}_from_{one}s" in val)
        return val[name] < best[name]
