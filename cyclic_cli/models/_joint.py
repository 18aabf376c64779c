"""The image–text model: one encoder per modality, and one embedding space that all modalities share.

    content → encoder.encode → code → head → embedding (L2-normalised, shared by all modalities) and private part
    content ← encoder.decode ← code ← expansion ← embedding and private part (zeros where it is not known)

The content of a sample in a modality is its image or its text. An image shows details that no report mentions, and a
report mentions facts that no image shows. The private part holds such details. A cycle carries it along, so that the
embedding need not encode it. Nothing in this file depends on the number of modalities.

An encoder that is `fitted` is initialised in closed form from all training samples, so similar samples already have
similar codes. Embeddings of unpaired samples send no gradient into such an encoder; they train only the layers after
it. The reason is that a flexible encoder can minimise the walker loss without finding anything that the modalities
share. Decoded samples that are encoded again, as in a cycle, do send a gradient.
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

OUTPUTS = ("embedding", "scale", "bias", "reconstruction", "translation", "data_cycle")
DECODED = {"reconstruction", "translation", "data_cycle"}  # outputs that train the decoders
TEMPERATURE = 0.07  # initial temperature of the contrastive losses, as in CLIP
SCALE_LIMIT = math.log(100)  # largest logarithm of the inverse temperature, as in CLIP
SIGMOID_BIAS = -10.0  # initial bias of the sigmoid loss, as in SigLIP
PRIVATE_DROPOUT = 0.5  # fraction of the samples that are reconstructed without their private part
INITIALISATION_BATCH = 64
INITIALISATION_SAMPLES = 10_000  # most samples of each modality from which its encoder is initialised

Outputs = dict[str, Any]  # by names of OUTPUTS: tensors by modality, or by (from, to)
Pairs = dict[tuple[str, str], Tensor]  # by two different modalities (from, to)


class JointModel(nn.Module):
    """Encodes the content of each modality into the shared space, and decodes embeddings back to it."""

    def __init__(self, encoders: Mapping[str, Any], embedding: int, private: int) -> None:
        """
        Args:
            encoders: By modality, the `Encoder` of its file (see `modalities`).
            embedding: Dimensions of the embedding.
            private: Dimensions of the private part.
        """
        super().__init__()
        self.embedding, self.private = embedding, private
        self.decoded_share = 1.0  # random fraction of a batch that is decoded for `reconstruction` and `translation`
        self.encoders: Any = nn.ModuleDict(encoders)
        width = embedding + private
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.code, width) for name, encoder in encoders.items()})
        self.expansions = nn.ModuleDict({name: nn.Linear(width, encoder.code) for name, encoder in encoders.items()})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))
        self.bias = nn.Parameter(torch.tensor(SIGMOID_BIAS))

    @property
    def modalities(self) -> list[str]:
        return list(self.encoders)

    @property
    def trained_heads(self) -> list[nn.Parameter]:
        """The parameters that map codes into the shared space, without those that training leaves as they are."""
        return list(self.heads.parameters())

    def initialise(self, pools: Mapping[str, Pool], seed: int, tick: Callable[[str, int, int], None]) -> None:
        """Initialise every encoder from the training samples.

        `tick` is called with the modality, the number of samples read so far, and the number to be read.
        """

        def contents(name: str) -> Iterator[Tensor]:
            done, total = 0, min(len(pools[name]), INITIALISATION_SAMPLES)
            for batch in pools[name].shuffled(seed, INITIALISATION_BATCH, INITIALISATION_SAMPLES):
                tick(name, done, total)
                yield batch
                done += len(batch)
            tick(name, total, total)

        for name, encoder in self.encoders.items():
            encoder.initialise(contents(name))

    # ------------------------------------------------------------------------------------------ one modality

    def parts(self, name: str, content: Tensor) -> tuple[Tensor, Tensor]:
        """Return the L2-normalised embeddings (N, embedding) and the private parts (N, private) of content."""
        return self.split(name, self.encoders[name].encode(content))

    def split(self, name: str, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same as `parts`, from codes (N, code) of the modality's encoder."""
        shared, private = self.heads[name](code).split([self.embedding, self.private], 1)
        return functional.normalize(shared, dim=1), private

    def embed(self, name: str, content: Tensor) -> Tensor:
        """Return the L2-normalised embeddings (N, embedding) of content of a modality."""
        return self.parts(name, content)[0]

    def code(self, name: str, embedding: Tensor, private: Tensor | None = None) -> Tensor:
        """Return the codes (N, code) of a modality for embeddings (N, embedding) and private parts (N, private).

        Without private parts, zeros are used.
        """
        if private is None:
            private = embedding.new_zeros(len(embedding), self.private)
        code: Tensor = self.expansions[name](torch.cat([embedding, private], 1))
        return code

    def latent(self, name: str, content: Tensor) -> Tensor:
        """Return all that the decoder of a modality gets from its own content: embedding and private part, (N, L)."""
        return torch.cat(self.parts(name, content), 1)

    def code_of_latent(self, name: str, latent: Tensor) -> Tensor:
        """Return the codes (N, code) of what `latent` returned."""
        return self.code(name, *torch.split(latent, [self.embedding, self.private], 1))

    # ---------------------------------------------------------------------------------------------- a batch

    def forward(
        self, contents: Mapping[str, Tensor], samples: Mapping[str, Tensor], needs: Iterable[str],
        keep: Mapping[str, Tensor],
    ) -> Outputs:  # fmt: skip
        """Return the outputs of a batch that the objectives need.

        Args:
            contents: By modality, (N, ...). A modality that no sample of the batch has is left out.
            samples: By modality, (N,) sample numbers. Equal numbers are paired; UNPAIRED marks an unpaired sample.
            needs: Names of OUTPUTS.
            keep: By modality, (N,) random numbers in [0, 1). Samples with a number of at least `PRIVATE_DROPOUT` keep
                their private part in the reconstruction. A fraction `decoded_share` of the samples is decoded, namely
                those whose numbers are nearest to `PRIVATE_DROPOUT`.
        """
        codes = {name: self._codes(name, content, samples[name] == UNPAIRED) for name, content in contents.items()}
        batch = self.batch_outputs(contents, samples, codes, keep)
        outputs: Outputs = {"embedding": {name: shared for name, (shared, _) in batch.parts.items()}}
        for need in needs:
            if need not in outputs:
                outputs[need] = getattr(batch, need)
        return outputs

    def batch_outputs(
        self, contents: Mapping[str, Tensor], samples: Mapping[str, Tensor], codes: Mapping[str, Tensor],
        keep: Mapping[str, Tensor],
    ) -> BatchOutputs:  # fmt: skip
        """Return what gives the outputs of a batch, from `codes` by modality, (N, code). See `forward`."""
        return BatchOutputs(self, contents, samples, codes, keep)

    def _codes(self, name: str, content: Tensor, unpaired: Tensor) -> Tensor:
        """Return codes (N, code). Those of `unpaired` samples, (N,) bool, have no gradient if the encoder is fitted."""
        encoder = self.encoders[name]
        if not encoder.fitted or not unpaired.any():
            codes: Tensor = encoder.encode(content)
            return codes
        paired = (~unpaired).nonzero()[:, 0]
        # Data-parallel training waits for a gradient of every weight, so at least one sample must have one.
        some = paired if len(paired) else unpaired.nonzero()[:1, 0]
        # Mixed precision caches cast weights. The pass with a gradient comes first, so that the cached weights have it.
        with_gradient = encoder.encode(content[some]).float()
        with torch.no_grad():
            codes = encoder.encode(content[unpaired]).float()
        codes = codes.new_zeros(len(content), encoder.code).index_put((unpaired.nonzero()[:, 0],), codes)
        return codes.index_put((some,), with_gradient) if len(paired) else codes + 0 * with_gradient.sum()


class BatchOutputs:
    """The outputs of a batch, computed from its codes when they are first read.

    Every property is an entry of OUTPUTS. Pairs of modalities (a, b) are ordered: from a to b.
    """

    def __init__(
        self, model: JointModel, contents: Mapping[str, Tensor], samples: Mapping[str, Tensor],
        codes: Mapping[str, Tensor], keep: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        self.model, self.contents, self.samples, self.codes, self.keep = model, contents, samples, codes, keep
        self.parts = {name: model.split(name, code) for name, code in codes.items()}  # embedding and private part
        self.pairs = list(permutations(model.modalities, 2))

    @cached_property
    def scale(self) -> Tensor:
        """The inverse temperature () of the contrastive losses.

        The parameter itself is clamped. If only the result were, it would have no gradient beyond the limit.
        """
        with torch.no_grad():
            self.model.log_scale.clamp_(max=SCALE_LIMIT)
        return self.model.log_scale.exp()

    @cached_property
    def bias(self) -> Tensor:
        """The bias () of the sigmoid loss."""
        return self.model.bias + 0  # data-parallel training would not notice an output that is the parameter itself

    @cached_property
    def reconstruction(self) -> dict[str, Tensor]:
        """By modality, (D,) errors of content decoded from its own embedding and private part."""
        errors = {}
        for name, (shared, private) in self.parts.items():
            places = self._places_to_decode(name, torch.arange(len(shared), device=shared.device))
            kept = private[places] * (self.keep[name][places] >= PRIVATE_DROPOUT)[:, None]
            code = self.model.code(name, shared[places], kept)
            errors[name] = self.model.encoders[name].errors(code, self.contents[name][places])
        return errors

    @cached_property
    def translation(self) -> Pairs:
        """By (a, b), (D,) errors of b decoded from the embedding of a, for paired samples."""
        errors = {}
        for a, b in self.pairs:
            if a in self.contents and b in self.contents:
                in_a, in_b = paired_places(self.samples[a], self.samples[b])
                some = self._places_to_decode(a, in_a)
                in_a, in_b = in_a[some], in_b[some]
                code = self.model.code(b, self.parts[a][0][in_a])
                errors[a, b] = self.model.encoders[b].errors(code, self.contents[b][in_b])
        return errors

    @cached_property
    def data_cycle(self) -> Pairs:
        """By (a, b), (N,) errors of a's content after the cycle: embedding → b's content → embedding → a's content.

        The private part of a bypasses b.
        """
        errors = {}
        for a, b in self.pairs:
            if a in self.contents:
                shared, private = self.parts[a]
                translated = self.model.encoders[b].soft_decode(self.model.code(b, shared))
                code = self.model.code(a, self.model.embed(b, translated), private)
                errors[a, b] = self.model.encoders[a].errors(code, self.contents[a])
        return errors

    # ---------------------------------------------------------------------------------------------- helpers

    def _places_to_decode(self, name: str, places: Tensor) -> Tensor:
        """Choose by `keep` which of the places (M,) of a batch are decoded, and return their indices.

        On average, half of the chosen samples keep their private part.
        """
        distance = (self.keep[name][places] - PRIVATE_DROPOUT).abs()
        return (distance <= self.model.decoded_share / 2).nonzero()[:, 0]


class Reconstructing(nn.Module):
    """The image part of an image–text model, with the interface of an autoencoder."""

    def __init__(self, joint: Any) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the reconstruction (N, C, H, W) of images (N, C, H, W) from their latent."""
        code = self.joint.code_of_latent("image", self.joint.latent("image", image))
        return {"reconstruction": self.joint.encoders["image"].decode(code)}


def paired_places(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the pairs, (P,) each, in two lists of sample numbers (N,) and (M,).

    Equal numbers form a pair, except UNPAIRED.
    """
    same = (a[:, None] == b[None, :]) & (a != UNPAIRED)[:, None]
    in_a, in_b = same.nonzero(as_tuple=True)
    return in_a, in_b


def make_joint(modalities: Iterable[Modality], facts: Mapping[str, Any], embedding: int, private: int) -> JointModel:
    """Return an image–text model before its initialisation. Raises UsageError when an encoder cannot be made."""
    encoders = {one.name: one.file.Encoder(one.config, facts[one.name]) for one in modalities}
    return JointModel(encoders, embedding, private)
