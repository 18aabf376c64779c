"""Text: reports of a dataset as tokens, encoded and decoded by one of `text_encoders`.

What is unusual: the random numbers of a text, and the order it is drawn in, come from a hash of what it says, not of
the sample it belongs to. Equal texts are one value, and permuting texts among samples changes nothing that training
sees. In training some tokens are hidden from the encoder, but not from the decoder's error: they are negative there,
and what is written is learned from whole texts. The code is the encoder's, in units of its spread over the training
texts.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.config import build
from cyclic_cli.data.samples import sample_noise
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.text_encoders._vocabulary import END, PADDING, PATIENTS, Vocabulary, padded

COLUMNS = ("text", "has_text")
INPUTS = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: str = "bag"
    model: dict[str, Any] = field(default_factory=dict)  # the encoder's own settings
    vocabulary: int = 2048  # tokens, at most
    length: int = 128  # tokens of a text, at most; the rest is cut off
    dropout: float = 0.1  # share of the tokens that training hides from the encoder

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout cannot be {self.dropout}.", "Give a share from 0, below 1.")
        if self.length < 1:
            raise UsageError(f"length cannot be {self.length}.", "Give a whole number from 1.")


def present(index: Mapping[str, np.ndarray]) -> np.ndarray:
    return index["has_text"]


def fit(dataset: StoredDataset, index: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Learn the vocabulary of training texts, and how often its tokens are used.

    Returns:
        tokenizer: see `Vocabulary.to_json`
        frequencies: by token, the mean over texts of its share of a text, and one more text that has all tokens alike
        documents: by token, the share of texts that have it, above 0
        nats: mean over texts of the nats a token that the frequencies take: the error of the best constant
        length: mean number of tokens of a text
        limit: the largest number
        further: what the encoder's own `fit` learned

    Tokens that the reports of less than `PATIENTS` patients have, such as single bytes, share one frequency.
    """
    file, settings = _encoder(config)
    order = np.argsort(index["text"], kind="stable")  # so that sums of theirs are the same to the last bit
    texts, patients = index["text"][order].tolist(), index["patient"][order].tolist()
    vocabulary, further = file.fit(settings) if hasattr(file, "fit") else (None, {})
    vocabulary = vocabulary or Vocabulary.train(texts, patients, config.vocabulary)
    return {
        "tokenizer": vocabulary.to_json(),
        **_statistics(vocabulary.encode(texts, config.length), patients, vocabulary.size),
        "limit": config.length,
        "further": further,
    }


def _statistics(encoded: list[np.ndarray], patients: list[str], size: int) -> dict[str, Any]:
    """The frequencies of tokens in texts, see `fit`."""
    texts, lengths = len(encoded), np.array([len(tokens) for tokens in encoded])
    tokens, text = np.concatenate(encoded).astype(np.int64), np.repeat(np.arange(texts), lengths)
    patient = np.unique(np.array(patients), return_inverse=True)[1][text]
    shares = np.bincount(tokens, 1 / lengths[text], minlength=size) / texts
    documents = np.bincount(np.unique(np.stack([tokens, text]), axis=1)[0], minlength=size) / texts
    users = np.bincount(np.unique(np.stack([tokens, patient]), axis=1)[0], minlength=size)
    rare = users < PATIENTS
    documents[rare] = min(PATIENTS / texts, 0.5)
    frequencies = shares.copy()
    frequencies[rare] = shares[rare].mean() if rare.any() else 0.0
    frequencies = (texts * frequencies + 1 / size) / (texts + 1)
    return {
        "frequencies": frequencies.tolist(),
        "documents": documents.tolist(),
        "nats": max(float(-(shares * np.log(frequencies)).sum()), LEAST_NATS),
        "length": float(lengths.mean()),
    }


class Samples:
    """Texts as tokens (N, L) int64, 0 behind their end; each text that several samples have is held once."""

    def __init__(
        self, dataset: StoredDataset, index: Mapping[str, np.ndarray], config: Config, facts: dict[str, Any]
    ) -> None:
        self.texts, self.config = index["text"], config  # (N,) str
        distinct, self._numbers = np.unique(self.texts, return_inverse=True)
        vocabulary = Vocabulary.from_json(facts["tokenizer"])
        encoded = vocabulary.encode(distinct.tolist(), config.length)
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._tokens = np.concatenate([np.empty(0, np.uint32), *encoded])
        if vocabulary.size <= 2**16:
            self._tokens = self._tokens.astype(np.uint16)
        self.keys = np.array([_key(text) for text in distinct.tolist()], np.uint64)[self._numbers]

    def __len__(self) -> int:
        return len(self.texts)

    def load(self, chosen: np.ndarray) -> Tensor:
        spans = [slice(self._ends[number], self._ends[number + 1]) for number in self._numbers[chosen]]
        return torch.from_numpy(padded([self._tokens[span] for span in spans], self.config.length))

    def varied(self, value: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        """The tokens, those that the encoder is not to see below 0; never END."""
        if not self.config.dropout or not len(value):
            return value
        noise = sample_noise(keys, value.shape[1], seed, epoch, "dropout")
        hidden = (noise < NormalDist().inv_cdf(self.config.dropout)) & (value != END)
        return torch.where(hidden, -value, value)


class Encoder(nn.Module):
    """One of `text_encoders` as an encoder."""

    mean: Tensor  # (code,) of the codes of the training texts
    spread: Tensor  # () root mean square of their differences from it

    def __init__(self, config: Config, facts: dict[str, Any]) -> None:
        """Raises UsageError when the encoder cannot be made, CyclicError when the facts of a checkpoint are damaged."""
        super().__init__()
        file, settings = _encoder(config)
        self.vocabulary = Vocabulary.from_json(facts.get("tokenizer", ""))
        _check(facts, self.vocabulary.size)
        self.encoder = file.Encoder(settings, facts, self.vocabulary.size)
        self.generates, self.limit = bool(file.GENERATES), int(facts["limit"])
        self.code, self.fitted = int(self.encoder.code), bool(file.FITTED)
        self.register_buffer("mean", torch.zeros(self.code))
        self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def initialise(self, values: Iterable[Tensor]) -> None:
        """Start the encoder from tokens (N, L), and take the measure of its codes."""
        kept: list[Tensor] = []

        def seen() -> Iterator[Tensor]:
            for batch in values:
                if sum(map(len, kept)) < SAMPLE:
                    kept.append(batch)
                yield batch

        stream = seen()
        self.encoder.initialise(stream)
        deque(stream, maxlen=0)  # what the encoder left
        codes = torch.cat([self.encoder.encode(batch) for batch in kept])
        self.mean.copy_(codes.mean(0))
        self.spread.copy_((codes - self.mean).square().mean().sqrt().clamp(min=1e-6))

    def encode(self, value: Tensor) -> Tensor:
        codes: Tensor = (self.encoder.encode(value) - self.mean) / self.spread
        return codes

    def decode(self, code: Tensor) -> Tensor:
        """What the encoder makes of codes, see there."""
        prediction: Tensor = self.encoder.decode(self._own(code))
        return prediction

    def errors(self, code: Tensor, value: Tensor) -> Tensor:
        """Nats a token as a share of those of the tokens' frequencies; hidden tokens count like all others."""
        errors: Tensor = self.encoder.errors(self._own(code), value)
        return errors

    def drawn(self, code: Tensor) -> Tensor:
        drawn: Tensor = self.encoder.drawn(self._own(code))
        return drawn

    def write(self, code: Tensor, beams: int = 1, length: int | None = None) -> list[str]:
        """The texts of codes (N, code), of at most `length` tokens, where the encoder `generates`."""
        found = self.encoder.generate(self._own(code), beams, min(length or self.limit, self.limit))
        return [self.vocabulary.decode(tokens) for tokens in found]

    def _own(self, code: Tensor) -> Tensor:
        return code * self.spread + self.mean


def inputs_of(value: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (N, L), and where there are some, as other programs give texts."""
    return value, (value != PADDING).long()


def value_of(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Tokens (N, L), PADDING where the mask is 0."""
    return input_ids * attention_mask


def portable(config: Config) -> Config:
    """The settings without those that name a place on this machine, as a checkpoint holds them."""
    local = getattr(_file(config), "LOCAL", ())
    return replace(config, model={name: value for name, value in config.model.items() if name not in local})


def _file(config: Config) -> ModuleType:
    return registry.load("text_encoders", config.encoder, "text encoder")


def _encoder(config: Config) -> tuple[ModuleType, Any]:
    """An encoder's file and settings. Raises UsageError when there is no such encoder, or it knows no such setting."""
    file = _file(config)
    return file, build(file.Config, config.model, "modalities.text.model")


def _check(facts: Mapping[str, Any], size: int) -> None:
    """Raise CyclicError when the facts of a checkpoint are not those of `fit` for a vocabulary of `size`."""
    try:
        shares = np.array([facts["frequencies"], facts["documents"]], float)
        rest = np.array([facts["nats"], facts["length"], facts["limit"]], float)
        whole = isinstance(facts["further"], dict) and isinstance(facts["limit"], int)
        good = shares.shape == (2, size) and shares.min() > 0 and shares.max() <= 1 and rest.min() > 0
        if not (whole and good and np.isfinite(rest).all() and facts["limit"] <= LONGEST):
            raise ValueError("not those of `fit`")
    except (KeyError, TypeError, ValueError):
        raise CyclicError("What the checkpoint knows of texts is damaged.", "Copy or make it again.") from None


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


SAMPLE = 1024  # texts that the spread of the codes is measured on
LEAST_NATS = 1e-3  # of a token, where all texts are one
LONGEST = 2**20  # tokens of a text that a checkpoint may name
