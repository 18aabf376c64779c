"""Trains an image–text model that starts at the closed form, and keeps it where training brings nothing.

The codes of images and texts are fixed: features of pretrained encoders and cheap features, reduced by principal
components (`fixed_codes.py`). Regularised CCA and ridge maps between the codes are the initial heads. `--objective
aligned` stops there. Other objectives train the heads on the codes, which were computed once; with `refine: true` they
train residual heads beside them (see `AlignedModel`). The closed form is the first candidate for the best checkpoint,
and wins ties.

With `frozen: false` the pretrained encoders of a modality are trained as well, on images or tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli.alignment.choice import choose_by, measure
from cyclic_cli.alignment.cycle import Unpaired, complete
from cyclic_cli.alignment.maps import MODALITIES, Blocks, Setting
from cyclic_cli.alignment.moments import Pairs
from cyclic_cli.codes.cache import FeatureCache
from cyclic_cli.codes.cached_codes import TickOf, cached_codes, gathered
from cyclic_cli.codes.coded import trained_name
from cyclic_cli.codes.sources import Share, Source, sources_of
from cyclic_cli.codes.text_reader import TERMS
from cyclic_cli.config import TrainConfig
from cyclic_cli.data.mixture import Pool
from cyclic_cli.data.samples import Samples
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import UsageError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.models._aligned import HIDDEN
from cyclic_cli.models._rebuilding import CLOSED_FORM, make_aligned, used_encoders
from cyclic_cli.pretrained import find, stored
from cyclic_cli.pretrained.encoder import PretrainedEncoder
from cyclic_cli.pretrained.tokens import Tokens
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.training import fixed_codes
from cyclic_cli.training.alignment import Alignment
from cyclic_cli.training.fixed_codes import CandidatePart, Shares
from cyclic_cli.training.fold_choice import ranks_of_epochs
from cyclic_cli.training.gradients import Plan, make_plan
from cyclic_cli.training.learner import ShowImages, Tick
from cyclic_cli.training.validation import errors_of_drawings, joined, validate_retrieval

Named = dict[str, list[CandidatePart]]  # by modality


def encoder_paths(named: str | Sequence[str] | None) -> list[str]:
    """The paths in the setting `encoder` of a modality."""
    return [named] if isinstance(named, str) else list(named or ())


def open_encoders(name: str, config: Any, image_shape: tuple[int, int, int]) -> list[PretrainedEncoder]:
    """The pretrained encoders that the settings of a modality name.

    Args:
        name: Of the modality.
        config: Its settings.
        image_shape: (C, H, W) of the dataset.

    Raises:
        CyclicError: An encoder is missing or cannot be used.
    """
    paths = encoder_paths(config.encoder)
    overrides = {key: value for key in ("mean", "std") if (value := getattr(config, key, None)) is not None}
    opened = [find.open_encoder(path, name, image_shape if name == "image" else None, overrides) for path in paths]
    for path, encoder in zip(paths, opened, strict=True):
        if not config.frozen and not encoder.trainable:
            raise UsageError(
                f"{path} is a fixed graph, so it cannot be trained.", f"Leave modalities.{name}.frozen=false out."
            )
    return opened


class CodeSamples:
    """Codes in place of the content of samples."""

    def __init__(self, keys: np.ndarray, codes: np.ndarray) -> None:
        """`keys` (N,) are those of the modality's `Samples`, `codes` (N, code) theirs."""
        self.keys, self.codes = keys, codes

    def __len__(self) -> int:
        return len(self.keys)

    def load(self, chosen: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(self.codes[chosen]))

    def augmented(self, codes: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        return codes


@dataclass(frozen=True)
class Solution:
    """The closed form as plain values, as processes exchange it."""

    facts: dict[str, Any]  # by modality
    blocks: list[dict[str, Any]]  # of the embedding, see `AlignedModel`
    choice: dict[str, Any]  # for people
    weights: dict[str, np.ndarray]  # of the model


@dataclass(frozen=True)
class Aligned:
    """The parts of the codes that were kept, and the map between the codes."""

    parts: Named
    closed: Blocks  # of the closed form
    blocks: Blocks  # the same, or completed by unpaired samples
    choice: dict[str, Any]  # for people


class ClosedFormAlignment(Alignment):
    """Learns one embedding space for images and texts on fixed codes, from the closed form on."""

    has_solution = True

    def __init__(self, ranks: Ranks, datasets: Sequence[StoredDataset], config: TrainConfig) -> None:
        """See `Alignment`. Raises UsageError when a pretrained encoder cannot be read."""
        super().__init__(ranks, datasets, config)
        self._encoders: dict[str, dict[str, PretrainedEncoder]] = {}  # by modality, by fingerprint
        self._blocks: list[dict[str, Any]] = []
        self._residual = HIDDEN if config.refine else None
        self._cache = FeatureCache()
        self._tick: Tick = lambda done, total, unit: None
        self._report: Report = silent

    def _module(self) -> Any:
        """An empty module: the parts of the codes are not known yet."""
        if set(self.config.modalities) != set(MODALITIES):
            raise UsageError("The closed form needs images and texts.", "Add --set start=data.")
        return nn.Module()

    def _check_pairs(self) -> None:
        if len(self.mixture.paired) < 2:
            raise UsageError(
                "The closed form needs paired samples, and there are none.",
                "Use a larger --paired-fraction, data with pairs, or --set start=data.",
            )

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint stores about the model besides its weights."""
        config = {"start": CLOSED_FORM, "blocks": self._blocks, "decoders": True, **self.portable_settings}
        if self._residual is not None:
            config["residual"] = self._residual
        shape = list(self.data.dataset.image_shape)
        facts = {"facts": self.data.facts, "alignment": dict(self.closed_form)}
        return {"name": "joint", "config": config, "image_shape": shape, **facts}

    @property
    def initialisation(self) -> str:
        return f"the closed form from {self.data.counts}; {len(self.mixture.paired)} samples are paired"

    def plan(self) -> Plan:
        names = self.objectives.names or [self.config.objective]
        return make_plan(self.config, self.ranks, self.module, names, self.batch_size, 0)

    # ------------------------------------------------------------------------------------------------- setup

    def initialise(self, tick: Tick, report: Report) -> None:
        """Compute the features of the training samples, the parts of the codes, and the closed form."""
        self._tick, self._report = tick, report
        with self.ranks.report_lost_peer():
            solution = self.ranks.together(self._solve)
        self._take(solution.facts, solution.blocks, solution.choice)
        weights = {name: torch.from_numpy(one) for name, one in solution.weights.items()}
        for modality in self.data.modalities:
            if not modality.config.frozen:
                weights |= self._weights_to_train(modality.name)
        self.module.load_state_dict(self.module.state_dict() | weights)

    def _weights_to_train(self, name: str) -> dict[str, Tensor]:
        """The weights of the pretrained encoders of a modality, by their names in the module."""
        used = {one.fingerprint for one in used_encoders(self.data.facts[name])}
        return {
            f"encoders.{name}.{trained_name(fingerprint)}.{key}": value
            for fingerprint, encoder in self._encoders[name].items()
            if fingerprint in used
            for key, value in encoder.state_dict().items()
        }

    def restore(self, architecture: dict[str, Any], encoders: Path, tick: Tick, report: Report) -> None:
        """Make the module that a saved state describes, with the frozen encoders of the run."""
        self._tick, self._report = tick, report
        for name, modality in zip(self.config.modalities, self.data.modalities, strict=True):
            used = used_encoders(architecture["facts"][name]) if modality.config.frozen else []
            self._encoders[name] = {one.fingerprint: stored.read_encoder(encoders, one.fingerprint) for one in used}
        self._residual = architecture["config"].get("residual")
        self._take(architecture["facts"], architecture["config"]["blocks"], architecture["alignment"])

    def write_encoders(self, folder: Path) -> None:
        """Write the frozen pretrained encoders that the codes use into the folder of the run."""
        for modality in self.data.modalities:
            if modality.config.frozen:
                for encoder in used_encoders(self.data.facts[modality.name]):
                    stored.write_encoder(folder, self._encoders[modality.name][encoder.fingerprint])

    def _take(self, facts: dict[str, Any], blocks: list[dict[str, Any]], choice: dict[str, Any]) -> None:
        """Make the module from the facts of the closed form."""
        for name, own in facts.items():
            self.data.facts[name].update(own)  # in place, because samples hold the facts of their modality
        self._blocks, self.closed_form = blocks, choice
        torch.manual_seed(self.config.seed)
        self.module = make_aligned(self.data.modalities, self.data.facts, blocks, self._residual)
        for modality in self.data.modalities:
            for fingerprint, encoder in self._encoders[modality.name].items():
                used = {one.fingerprint for one in used_encoders(facts[modality.name])}
                if modality.config.frozen and fingerprint in used:
                    self.module.encoders[modality.name].attach(fingerprint, encoder)

    def _open_encoders(self, name: str, config: Any) -> None:
        opened = open_encoders(name, config, self.data.dataset.image_shape)
        self._encoders[name] = {one.facts.fingerprint: one for one in opened}
        if opened:
            self.named_encoders = {**self.named_encoders, name: list(self._encoders[name])}
        self._comment(name)

    def _comment(self, name: str) -> None:
        """Say what an encoder does not see as it was trained: images that were enlarged, and texts that were cut."""
        for encoder in self._encoders[name].values():
            family, geometry, size = encoder.facts.family, encoder.facts.geometry, self.data.dataset.image_shape[1]
            if geometry and size < geometry.native:
                said = f"{family} was trained with {geometry.native} pixels per side, the images have {size}"
                self._report(Note(f"{said}; cyclic prepare --size {geometry.native} makes larger ones"))
            if name == "text":
                tokens, pool = Tokens(encoder.facts.tokenizer, encoder.facts.window or 0), self.mixture.pools[name]
                texts = list(dict.fromkeys(pool.texts(np.arange(len(pool)))))
                if several := sum(count > 1 for count in tokens.windows(texts)):
                    said = f"{several} of {len(texts)} different texts are longer than {encoder.facts.window} tokens"
                    self._report(Note(f"{said}; {family} reads them in windows, which are averaged"))

    def _sources(self, name: str) -> list[Source]:
        encoders, terms = list(self._encoders[name].values()), self.data.facts[name].get(TERMS)
        return sources_of(name, encoders, terms, self._cache, self.ranks.fabric.device)

    def _tick_of(self, name: str, part: str = "training") -> TickOf:
        """Return the progress of a source by its title; each has a name of its own, so that rates are right."""
        return lambda title: lambda done, total: self._tick(done, total, f"{part} {name}s encoded by {title}")

    # ------------------------------------------------------------------------------------------- closed form

    def _solve(self) -> Solution:
        """The closed form, from all samples and the known pairs. Each process reads its share, see `fixed_codes`."""
        found, shares = self.align(self.candidates()), Shares.make(self.mixture, self.ranks)
        blocks = [{"dims": one.matrix["image"].shape[1], "weight": one.weight} for one in found.blocks]
        weights = self._weights(found.parts, found.blocks, shares)
        facts = {name: self._facts(name, some) for name, some in found.parts.items()}
        facts["image"]["drawing"] = len(weights["encoders.image.drawing.components"])
        solution = Solution(facts, blocks, found.choice, weights)
        return self.ranks.agreed(lambda: solution)

    def candidates(self) -> Named:
        """All parts that the codes may have. They depend on all samples, and on the number of pairs alone."""
        for name, modality in zip(self.config.modalities, self.data.modalities, strict=True):
            self._open_encoders(name, modality.config)
        pairs = len(self.mixture.paired)
        return {
            name: fixed_codes.candidate_parts(self._sources(name), share, pairs, self._tick_of(name), self._report)
            for name, share in Shares.make(self.mixture, self.ranks).of.items()
        }

    def align(self, parts: Named) -> Aligned:
        """The maps between the codes, chosen and fitted by the known pairs; for `cyclic` completed by other samples.

        `parts` are the `candidates`. All processes call it together.
        """
        ranks, shares = self.ranks, Shares.make(self.mixture, self.ranks)
        patients = self.data.patient_of[self.mixture.paired]
        parts = {
            name: fixed_codes.chosen_outputs(parts[name], parts[other], name, other, shares, patients, ranks)
            for name, other in (MODALITIES, MODALITIES[::-1])
        }
        images, texts = (fixed_codes.codes_of(parts[name], shares.rows[name]) for name in MODALITIES)
        columns = {name: fixed_codes.columns(some) for name, some in parts.items()}
        joining = {part.name for some in parts.values() for part in fixed_codes.joining(some)}
        known = Pairs(images, texts, shares.pairs, ranks)
        measured = measure(known, patients, self.groups)
        form = ranks.agreed(lambda: choose_by(measured, columns, joining))
        blocks, choice = form.blocks, form.to_json() | {"setting": asdict(form.setting)}
        if self.config.objective == "cyclic":
            unpaired = self._unpaired(parts, shares)
            found = complete(form, measured, known, patients, unpaired, self.config.cycle_rule, ranks)
            self._report(Note(found.said))
            blocks, choice = ranks.agreed(lambda: found.blocks), choice | {"cycle": found.to_json()}
        kept = {name: [part for part in some if part.name in form.parts[name]] for name, some in parts.items()}
        return Aligned(kept, form.blocks, blocks, choice)

    def _unpaired(self, parts: Named, shares: Shares) -> Unpaired:
        """The samples in no pair. Their order does not depend on which image belongs to which text."""
        numbers, patient_of = self.mixture.unpaired, self.data.patient_by_sample
        patients = {
            name: np.array(
                [patient_of.get(key, "") for key in self.mixture.pools[name].sample_keys[some].tolist()], str
            )
            for name, some in numbers.items()
        }

        def codes(name: str, some: np.ndarray) -> np.ndarray:
            return fixed_codes.codes_of_all(parts[name], shares.of[name], numbers[name][some], self.ranks)

        return Unpaired({name: len(some) for name, some in numbers.items()}, codes, patients)

    def _facts(self, name: str, parts: Sequence[CandidatePart]) -> dict[str, Any]:
        """The facts of a modality with the parts of its code and the encoders that these need."""
        used = {part.source.name for part in parts}
        facts = self.data.facts[name] | {
            "parts": [asdict(part.facts) for part in parts],
            "encoders": [stored.facts_to_json(one.facts) for key, one in self._encoders[name].items() if key in used],
        }
        return {key: value for key, value in facts.items() if key != TERMS or TERMS in used}

    def _weights(self, parts: Named, blocks: Any, shares: Shares) -> dict[str, np.ndarray]:
        """The weights of the model by name."""
        weights: dict[str, np.ndarray] = {}
        codes = {name: fixed_codes.codes_of(some, np.arange(len(shares.of[name]))) for name, some in parts.items()}
        for name, some in parts.items():
            prefix = f"encoders.{name}"
            for place, part in enumerate(some):
                weights[f"{prefix}.parts.{place}.mean"] = part.components.mean
                weights[f"{prefix}.parts.{place}.matrix"] = part.components.matrix
            weights[f"{prefix}.spread"] = np.array(fixed_codes.spread_of(codes[name], self.ranks))
            for layer, (matrix, offset) in (
                ("heads", fixed_codes.head_of(blocks, name)),
                ("expansions", fixed_codes.expansion(blocks, codes, shares.rows, name, self.ranks)),
            ):
                weights[f"{layer}.{name}.weight"], weights[f"{layer}.{name}.bias"] = matrix.T, offset
        drawing = fixed_codes.learn_drawing(codes["image"], shares.of["image"], self._tick_of("image")("pixels"))
        weights["encoders.image.variance"] = drawing.pop("variance")
        weights |= {f"encoders.image.drawing.{name}": value for name, value in drawing.items()}
        return {name: np.asarray(value, np.float32) for name, value in weights.items()}

    # ------------------------------------------------------------------------------------- codes in training

    def _replace_content(self) -> None:
        """Replace the content of frozen modalities by their codes, in the training samples, unless it was done."""
        for modality in self.data.modalities:
            pool = self.mixture.pools[modality.name]
            if modality.config.frozen and not isinstance(pool.parts[0], CodeSamples):
                share = Shares.make(self.mixture, self.ranks).of[modality.name]
                samples = CodeSamples(pool.keys, self._codes(modality.name, share))
                self.mixture.pools[modality.name] = Pool([samples], pool.sample_keys)

    def _codes(self, name: str, share: Share, part: str = "training") -> np.ndarray:
        """The codes (N, code) of all samples of a pool, in every process, because batches are drawn from all of them.

        Each process computes those of its `share`, from cached features.
        """
        return self.ranks.together(lambda: self._gathered_codes(name, share, part))

    def _gathered_codes(self, name: str, share: Share, part: str) -> np.ndarray:
        encoder, tick_of = self.module.encoders[name], self._tick_of(name, part)
        own = cached_codes(encoder, self._sources(name), share.items, tick_of, self._report)[: len(share)]
        return gathered(own, share.numbers, len(share.pool), self.ranks)

    def losses(self, batch: Any, step: int) -> dict[str, float]:
        self._replace_content()
        return super().losses(batch, step)

    # -------------------------------------------------------------------------------------------- validation

    @cached_property
    def _validation(self) -> dict[str, tuple[Any, np.ndarray]]:
        """The validation samples by modality, with codes in place of the content of frozen modalities."""
        found = dict(self.data.validation)
        for modality in self.data.modalities:
            samples, numbers = found[modality.name]
            if modality.config.frozen and len(samples):
                pool = Pool([samples], np.empty(len(samples), object))
                share = Share(pool, self.ranks.part(np.arange(len(pool))), self.ranks)
                codes = self._codes(modality.name, share, "validation")
                found[modality.name] = CodeSamples(samples.keys, codes), numbers
        return found

    def validate(self, is_stopped: Callable[[], bool], show: ShowImages | None) -> dict[str, float] | None:
        """Retrieval between images and texts, and errors of drawn images; empty without validation data."""
        retrieval = validate_retrieval(self.ranks, self.module, self._validation, is_stopped)
        if retrieval is None:
            return None
        if not retrieval and self.fold_ranks is None:
            self.fold_ranks = self._ranks_on_folds()
        if not retrieval and self.fold_ranks:
            retrieval = {"rank_on_folds": self.fold_ranks[self.epochs_done]}
        return retrieval | self._drawing_errors

    def _ranks_on_folds(self) -> list[float]:
        """The ranks of `fold_choice`. They are measured before the first step, while the module is the closed form."""
        if not self.steps:
            return []
        self._replace_content()
        found = ranks_of_epochs(self)
        said = "folds of the known pairs decide how many epochs help" if found else "the closed form will be kept"
        self._report(Note(f"no pairs for validation: {said}"))
        return found

    @property
    def all_frozen(self) -> bool:
        return all(modality.config.frozen for modality in self.data.modalities)

    @property
    def setting(self) -> Setting:
        """The setting of the closed form."""
        chosen = self.closed_form["setting"]
        return Setting(chosen["cca"] and (chosen["cca"][0], chosen["cca"][1]), chosen["ridge"])

    @cached_property
    def groups(self) -> np.ndarray:
        """(P,) Numbers of the known pairs, equal for pairs with equal texts."""
        return joined(*(self.mixture.pools[name].keys[self.mixture.rows[name]] for name in MODALITIES))

    @cached_property
    def _drawing_errors(self) -> dict[str, float]:
        """Errors of images drawn from their codes. Training does not change them."""
        samples = self._validation["image"][0]
        if not isinstance(samples, CodeSamples) or not len(samples):
            return {}
        draw, images = self.module.encoders["image"].decode, Samples.of(self.data.dataset, "val")
        return errors_of_drawings(draw, samples.codes, images, self.ranks.fabric.device)

    @staticmethod
    def is_better(val: dict[str, float], best: dict[str, float]) -> bool:
        """Compares the geometric mean rank; a tie goes to the earlier checkpoint, and so to the closed form."""
        name = next((name for name in ("rank", "rank_on_folds") if name in val), None)
        return name is not None and val[name] < best[name]
