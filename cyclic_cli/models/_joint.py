"""The joint model: an encoder for each modality, and one space that all of them are encoded into.

    value ─ encoder.encode → code ─ head → embedding (unit norm, shared by all modalities), and a private part
    value ← encoder.decode ─ code ← expansion ─ embedding, and the private part, or zeros where it is not known

An image holds what no report says, a report what no image shows: the private part is what a cycle carries around
for it, so that the embedding need not hide it. Nothing here knows how many modalities there are.

Encoders that are `fitted` start from all values, so what is like what among values without a partner they know already.
How such values are embedded moves only what stands behind these encoders: an encoder that may bend sends every walk
home without having found anything in common. (What a decoder has drawn is encoded with a gradient.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli.data.mixture import UNPAIRED, Modality, Pool
from cyclic_cli.errors import CyclicError

OUTPUTS = (
    "embedding", "scale", "bias", "reconstruction", "translation", "code_cycle", "latent_cycle", "half_latent_cycle",
    "data_cycle", "half_data_cycle",
)  # fmt: skip
DECODED = {"reconstruction", "translation", "data_cycle", "half_data_cycle"}  # outputs that train the decoders
TEMPERATURE = 0.07  # of the contrast at the start, as in CLIP
SCALE_LIMIT = math.log(100)  # of the logarithm of its inverse
SIGMOID_BIAS = -10.0  # at the start, as in SigLIP
PRIVATE_DROPOUT = 0.5  # share of values whose private part a reconstruction does without
INITIALISATION_BATCH = 64
INITIALISATION_SAMPLES = 10_000  # of each modality, at most, that its encoder is started from

Outputs = dict[str, Any]  # of OUTPUTS: tensors by modality, or by (from, to)


class JointModel(nn.Module):
    """Encoders into and out of one space."""

    def __init__(self, encoders: Mapping[str, Any], embedding: int, private: int) -> None:
        """
        Args:
            encoders: By modality, see `modalities`.
            embedding: Numbers of the shared part of a code.
            private: Numbers of the part that is the modality's own.
        """
        super().__init__()
        self.embedding, self.private = embedding, private
        self.decoded_share = 1.0  # of a batch, chosen at random, that is decoded for `reconstruction` and `translation`
        self.encoders: Any = nn.ModuleDict(encoders)
        width = embedding + private
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.code, width) for name, encoder in encoders.items()})
        self.expansions = nn.ModuleDict({name: nn.Linear(width, encoder.code) for name, encoder in encoders.items()})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))
        self.bias = nn.Parameter(torch.tensor(SIGMOID_BIAS))

    @property
    def modalities(self) -> list[str]:
        return list(self.encoders)

    def initialise(self, pools: Mapping[str, Pool], seed: int, tick: Callable[[str, int, int], None]) -> None:
        """Start every encoder from the training values; `tick` gets a modality, its values seen and those to see."""

        def values(name: str) -> Iterator[Tensor]:
            done, total = 0, min(len(pools[name]), INITIALISATION_SAMPLES)
            for batch in pools[name].shuffled(seed, INITIALISATION_BATCH, INITIALISATION_SAMPLES):
                tick(name, done, total)
                yield batch
                done += len(batch)
            tick(name, total, total)

        for name, encoder in self.encoders.items():
            encoder.initialise(values(name))

    # ------------------------------------------------------------------------------------------ one value

    def parts(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding (N, embedding), of unit norm, and the private part (N, private) of values."""
        return self.split(name, self.encoders[name].encode(value))

    def split(self, name: str, code: Tensor) -> tuple[Tensor, Tensor]:
        """The same of codes (N, code) of a modality's encoder."""
        shared, private = self.heads[name](code).split([self.embedding, self.private], 1)
        return functional.normalize(shared, dim=1), private

    def embed(self, name: str, value: Tensor) -> Tensor:
        """The embeddings (N, embedding), of unit norm, of values of a modality."""
        return self.parts(name, value)[0]

    def code(self, name: str, embedding: Tensor, private: Tensor | None = None) -> Tensor:
        """The code of a modality (N, code) that an embedding stands for; without a private part it is the mean one."""
        if private is None:
            private = embedding.new_zeros(len(embedding), self.private)
        code: Tensor = self.expansions[name](torch.cat([embedding, private], 1))
        return code

    # ---------------------------------------------------------------------------------------------- batches

    def forward(
        self, values: Mapping[str, Tensor], samples: Mapping[str, Tensor], needs: Iterable[str],
        keep: Mapping[str, Tensor],
    ) -> Outputs:  # fmt: skip
        """Return what objectives need of a batch.

        Args:
            values: By modality, (N, ...); without a modality that no value of the batch has.
            samples: By modality (N,): equal numbers belong together, UNPAIRED to none.
            needs: Of OUTPUTS.
            keep: By modality (N,) in [0, 1), random: those from `PRIVATE_DROPOUT` on keep their private part in a
                reconstruction; those nearest to it are decoded, a `decoded_share` of all.
        """
        codes = {name: self._codes(name, value, samples[name] == UNPAIRED) for name, value in values.items()}
        batch = _Batch(self, values, samples, codes, keep)
        outputs: Outputs = {"embedding": {name: shared for name, (shared, _) in batch.parts.items()}}
        for need in needs:
            if need not in outputs:
                outputs[need] = getattr(batch, need)
        return outputs

    def _codes(self, name: str, value: Tensor, alone: Tensor) -> Tensor:
        """Codes (N, code); those of values `alone` (N,) bool without a gradient where the encoder is fitted."""
        encoder = self.encoders[name]
        if not encoder.fitted or not alone.any():
            codes: Tensor = encoder.encode(value)
            return codes
        paired = (~alone).nonzero()[:, 0]
        some = paired if len(paired) else alone.nonzero()[:1, 0]  # data-parallel training waits for every weight
        known = encoder.encode(value[some]).float()  # first: mixed precision may keep weights cast without a gradient
        with torch.no_grad():
            codes = encoder.encode(value[alone]).float()
        codes = codes.new_zeros(len(value), encoder.code).index_put((alone.nonzero()[:, 0],), codes)
        return codes.index_put((some,), known) if len(paired) else codes + 0 * known.sum()


class _Batch:
    """What becomes of the codes of a batch: each property but `parts` is one of OUTPUTS, computed once."""

    def __init__(
        self, model: JointModel, values: Mapping[str, Tensor], samples: Mapping[str, Tensor],
        codes: Mapping[str, Tensor], keep: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        self.model, self.values, self.samples, self.codes, self.keep = model, values, samples, codes, keep
        self.parts = {name: model.split(name, code) for name, code in codes.items()}
        self.pairs = list(permutations(model.modalities, 2))

    @cached_property
    def scale(self) -> Tensor:
        """() of a contrast. The weight itself is held at its limit, so that it may fall again."""
        with torch.no_grad():
            self.model.log_scale.clamp_(max=SCALE_LIMIT)
        return self.model.log_scale.exp()

    @cached_property
    def bias(self) -> Tensor:
        """() of a contrast by sigmoids."""
        return self.model.bias + 0  # an output that is a parameter itself would escape data-parallel training

    @cached_property
    def reconstruction(self) -> dict[str, Tensor]:
        """By modality (D,): errors of values decoded from their own embedding and private part."""
        errors = {}
        for name, (shared, private) in self.parts.items():
            places = self._decoded(name, torch.arange(len(shared), device=shared.device))
            kept = private[places] * (self.keep[name][places] >= PRIVATE_DROPOUT)[:, None]
            code = self.model.code(name, shared[places], kept)
            errors[name] = self.model.encoders[name].errors(code, self.values[name][places])
        return errors

    @cached_property
    def translation(self) -> dict[tuple[str, str], Tensor]:
        """By (a, b) (D,): errors of b decoded from the embedding of a, of samples that may know both."""
        errors = {}
        for a, b in self.pairs:
            if a in self.values and b in self.values:
                of_a, of_b = linked(self.samples[a], self.samples[b])
                some = self._decoded(a, of_a)
                of_a, of_b = of_a[some], of_b[some]
                code = self.model.code(b, self.parts[a][0][of_a])
                errors[a, b] = self.model.encoders[b].errors(code, self.values[b][of_b])
        return errors

    @cached_property
    def code_cycle(self) -> dict[tuple[str, str], Tensor]:
        """By (a, b) (N,): errors of a's code after a → shared → b's code → shared → a's code, in its spread."""
        return {
            (a, b): (self.model.code(a, returned, self.parts[a][1]) - self.codes[a].detach()).square().mean(1)
            for (a, b), returned in self._through(self._code).items()
        }

    @cached_property
    def latent_cycle(self) -> dict[tuple[str, str], Tensor]:
        """By (a, b) (N, embedding): the embedding of what b's decoder draws of a's embedding."""
        return self._through(self._value)

    @cached_property
    def half_latent_cycle(self) -> dict[tuple[str, str], Tensor]:
        """The same, without a gradient through what is drawn."""
        return self._through(self._fixed)

    @cached_property
    def data_cycle(self) -> dict[tuple[str, str], Tensor]:
        """By (a, b) (N,): errors of a's values decoded from the embedding that came back from b."""
        return self._returned(self.latent_cycle)

    @cached_property
    def half_data_cycle(self) -> dict[tuple[str, str], Tensor]:
        return self._returned(self.half_latent_cycle)

    # ---------------------------------------------------------------------------------------------- helpers

    def _decoded(self, name: str, places: Tensor) -> Tensor:
        """Which of some places (M,) of a batch are decoded, by `keep`: as many with a private part as without."""
        distance = (self.keep[name][places] - PRIVATE_DROPOUT).abs()
        return (distance <= self.model.decoded_share / 2).nonzero()[:, 0]

    def _through(self, there: Any) -> dict[tuple[str, str], Tensor]:
        return {(a, b): there(b, self.parts[a][0]) for a, b in self.pairs if a in self.values}

    def _code(self, name: str, embedding: Tensor) -> Tensor:
        return self.model.split(name, self.model.code(name, embedding))[0]

    def _value(self, name: str, embedding: Tensor) -> Tensor:
        return self.model.embed(name, self.model.encoders[name].drawn(self.model.code(name, embedding)))

    def _fixed(self, name: str, embedding: Tensor) -> Tensor:
        with torch.no_grad():
            drawn = self.model.encoders[name].drawn(self.model.code(name, embedding))
        return self.model.embed(name, drawn)

    def _returned(self, embeddings: dict[tuple[str, str], Tensor]) -> dict[tuple[str, str], Tensor]:
        return {
            (a, b): self.model.encoders[a].errors(self.model.code(a, embedding, self.parts[a][1]), self.values[a])
            for (a, b), embedding in embeddings.items()
        }


class Reconstructing(nn.Module):
    """The way of a joint model's images to their reconstruction, as that of an autoencoder."""

    def __init__(self, joint: Any) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the reconstruction (N, C, H, W) of images, from embedding and private part."""
        code = self.joint.code("image", *self.joint.parts("image", image))
        return {"reconstruction": self.joint.encoders["image"].decode(code)}


def linked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The places (P,) in two lists of sample numbers (N,), (M,) whose samples are the same and may know it."""
    same = (a[:, None] == b[None, :]) & (a != UNPAIRED)[:, None]
    of_a, of_b = same.nonzero(as_tuple=True)
    return of_a, of_b


def make_joint(modalities: Iterable[Modality], facts: Mapping[str, Any], embedding: int, private: int) -> JointModel:
    """A joint model, not yet started. Raises UsageError when an encoder cannot be made."""
    encoders = {one.name: one.file.Encoder(one.config, facts[one.name]) for one in modalities}
    return JointModel(encoders, embedding, private)


def rebuild(architecture: Mapping[str, Any], where: str) -> JointModel:
    """The joint model that a checkpoint describes, without its weights.

    Raises:
        CyclicError: the description is damaged. `where` names the file.
    """
    try:
        config, facts = architecture["config"], architecture["facts"]
        modalities = [Modality.of(str(name), dict(table)) for name, table in config["modalities"].items()]
        return make_joint(modalities, facts, int(config["embedding"]), int(config["private"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CyclicError(f"{where} describes a model that cannot be made.", "Train the model again.") from error
