"""The modality of texts (reports), as tokens, encoded by one of `text_encoders/`, or into fixed codes (`codes/`).

The random numbers and the order of a text come from a hash of its words, not of the sample that it belongs to. Equal
texts are therefore the same content, and permuting the texts among unpaired samples does not change training.

Training hides a random part of the tokens from the encoder (token dropout). Hidden tokens have negative numbers. The
error of the decoder includes them, so the decoder learns to write complete texts.

The code is that of the text encoder, standardised: the mean over the training texts is subtracted, and all dimensions
are divided by one common standard deviation.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclic_cli import registry
from cyclic_cli.codes.text_codes import CodedTexts
from cyclic_cli.config import build
from cyclic_cli.data.samples import sample_noise
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.modalities._fixed_texts import FixedTextSamples, fixed_facts
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.text_encoders import _known_words
from cyclic_cli.text_encoders._vocabulary import END, PADDING, PATIENTS, Vocabulary, padded

COLUMNS = ("text", "has_text")


@dataclass(frozen=True, kw_only=True)
class Config:
    arch: str = "bag"  # one of `text_encoders/`
    model: dict[str, Any] = field(default_factory=dict)  # settings of the text encoder
    vocabulary: int = 2048  # maximum number of different tokens
    length: int = 128  # maximum number of tokens in a text; longer texts are truncated
    dropout: float = 0.1  # fraction of the tokens that training hides from the encoder
    coded: bool = False  # encode into fixed codes, in place of a text encoder; set by the `start` of the run
    encoder: str | tuple[str, ...] = ()  # paths of pretrained encoders
    frozen: bool = True  # whether the weights of pretrained encoders stay fixed

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UsageError(f"modalities.text.dropout cannot be {self.dropout}.", "Give a number from 0 to below 1.")
        if self.length < 1:
            raise UsageError(f"modalities.text.length cannot be {self.length}.", "Give a whole number from 1.")


def present(index: Mapping[str, np.ndarray]) -> np.ndarray:
    return index["has_text"]


def fit(dataset: StoredDataset, index: Mapping[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Learn the vocabulary of the training texts and the statistics of its tokens.

    Tokens that occur in the reports of fewer than `PATIENTS` patients, such as most single bytes, share one frequency.

    Returns:
        tokenizer: The vocabulary, see `Vocabulary.to_json`.
        frequencies: By token, its relative frequency in a text, averaged over the texts. It is above 0, because one
            extra text is counted in which all tokens are equally frequent.
        documents: By token, the fraction of the texts that contain it, above 0.
        nats: Cross-entropy in nats per token when the frequencies are predicted for every text, averaged over the
            texts. This is the error of the mean predictor.
        length: Mean number of tokens in a text.
        limit: Maximum number of tokens in a text.
        words: The words that a message about a query counts as known, see `_known_words.of_many_patients`.
        further: Facts that the `fit` of the text encoder returned.

        For fixed codes, see `_fixed_texts.fixed_facts` instead.
    """
    if config.coded:
        return fixed_facts(index["text"].tolist(), index["patient"].tolist())
    file, settings = _encoder_file(config)
    order = np.argsort(index["text"], kind="stable")  # a fixed order of summation gives the same bits for any order
    texts, patients = index["text"][order].tolist(), index["patient"][order].tolist()
    vocabulary, further = file.fit(settings) if hasattr(file, "fit") else (None, {})
    vocabulary = vocabulary or Vocabulary.train(texts, patients, config.vocabulary)
    return {
        "tokenizer": vocabulary.to_json(),
        **_statistics(vocabulary.encode(texts, config.length), patients, vocabulary.size),
        "limit": config.length,
        "words": _known_words.of_many_patients(texts, patients),
        "further": further,
    }


def _statistics(encoded: list[np.ndarray], patients: list[str], size: int) -> dict[str, Any]:
    """Return the statistics of the tokens (see `fit`) of encoded texts, with the patient of each text."""
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


def Samples(
    dataset: StoredDataset, index: Mapping[str, np.ndarray], config: Config, facts: dict[str, Any]
) -> TokenSamples | FixedTextSamples:
    """Return the texts as the encoder takes them."""
    if not config.coded:
        return TokenSamples(index["text"], config, facts)
    return FixedTextSamples(index["text"], _keys(index["text"]), facts)


class TokenSamples:
    """Texts as tokens (N, L), int64, with PADDING after their end. Equal texts are stored once."""

    def __init__(self, texts: np.ndarray, config: Config, facts: dict[str, Any]) -> None:
        self.texts, self.config = texts, config  # (N,) str
        unique, self._numbers = np.unique(self.texts, return_inverse=True)
        vocabulary = Vocabulary.from_json(facts["tokenizer"])
        encoded = vocabulary.encode(unique.tolist(), config.length)
        self._offsets = np.cumsum([0, *map(len, encoded)])
        self._tokens = np.concatenate([np.empty(0, np.uint32), *encoded])
        if vocabulary.size <= 2**16:
            self._tokens = self._tokens.astype(np.uint16)
        self.keys = _keys(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def load(self, chosen: np.ndarray) -> Tensor:
        spans = [slice(self._offsets[number], self._offsets[number + 1]) for number in self._numbers[chosen]]
        return torch.from_numpy(padded([self._tokens[span] for span in spans], self.config.length))

    def augmented(self, tokens: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        """Return the tokens (M, L) with a random part hidden from the encoder: negated. END is never hidden."""
        if not self.config.dropout or not len(tokens):
            return tokens
        noise = sample_noise(keys, tokens.shape[1], seed, epoch, "dropout")
        hidden = (noise < NormalDist().inv_cdf(self.config.dropout)) & (tokens != END)
        return torch.where(hidden, -tokens, tokens)


def Encoder(config: Config, facts: dict[str, Any]) -> nn.Module:
    """Return the encoder that the settings name. Raises as its class does."""
    return CodedTexts(facts) if config.coded else TextEncoder(config, facts)


class TextEncoder(nn.Module):
    """Encodes and decodes texts with one of `text_encoders/`."""

    mean: Tensor  # (code,), mean code of the training texts
    spread: Tensor  # (), root mean square difference of their codes from the mean

    def __init__(self, config: Config, facts: dict[str, Any]) -> None:
        """Raises UsageError when the text encoder cannot be made, and CyclicError when the facts are damaged."""
        super().__init__()
        file, settings = _encoder_file(config)
        self.vocabulary = Vocabulary.from_json(facts.get("tokenizer", ""))
        _check_facts(facts, self.vocabulary.size)
        self.encoder = file.Encoder(settings, facts, self.vocabulary.size)
        self.generates, self.limit = bool(file.GENERATES), int(facts["limit"])
        self.code, self.fitted = int(self.encoder.code), bool(file.FITTED)
        self.register_buffer("mean", torch.zeros(self.code))
        self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def initialise(self, contents: Iterable[Tensor]) -> None:
        """Initialise the text encoder from batches of tokens (N, L).

        The mean and spread of the codes are measured on the first `SAMPLE` texts.
        """
        kept: list[Tensor] = []

        def measured() -> Iterator[Tensor]:
            for batch in contents:
                if sum(map(len, kept)) < SAMPLE:
                    kept.append(batch)
                yield batch

        stream = measured()
        self.encoder.initialise(stream)
        deque(stream, maxlen=0)  # the text encoder may not have read all batches
        codes = torch.cat([self.encoder.encode(batch) for batch in kept])
        self.mean.copy_(codes.mean(0))
        self.spread.copy_((codes - self.mean).square().mean().sqrt().clamp(min=1e-6))

    def read(self, texts: Sequence[str]) -> Tensor:
        """Return texts (N,) as `encode` takes them: tokens (N, L)."""
        return torch.from_numpy(padded(self.vocabulary.encode(texts, self.limit), self.limit))

    def unknown_words(self, text: str, words: Collection[str]) -> list[str]:
        """Return the different words of a text that are not known, see `_known_words.unknown_to`."""
        return _known_words.unknown_to(self.vocabulary, text, words)

    def encode(self, tokens: Tensor) -> Tensor:
        """Return the codes (N, code) of tokens (N, L), or of what `soft_decode` returned."""
        codes: Tensor = (self.encoder.encode(tokens) - self.mean) / self.spread
        return codes

    def decode(self, code: Tensor) -> Tensor:
        """Return the prediction for codes (N, code), in the form of the text encoder's `decode`."""
        prediction: Tensor = self.encoder.decode(self._unstandardised(code))
        return prediction

    def errors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Return (N,) cross-entropies per token, hidden tokens included, relative to predicting the frequencies."""
        errors: Tensor = self.encoder.errors(self._unstandardised(code), tokens)
        return errors

    def soft_decode(self, code: Tensor) -> Tensor:
        """Return predicted texts in a form that `encode` accepts and that passes gradients on."""
        decoded: Tensor = self.encoder.soft_decode(self._unstandardised(code))
        return decoded

    def write(self, code: Tensor, beams: int = 1, length: int | None = None) -> list[str]:
        """Return generated texts of codes (N, code), of at most `length` tokens. Needs an encoder that `generates`."""
        found = self.encoder.generate(self._unstandardised(code), beams, min(length or self.limit, self.limit))
        return [self.vocabulary.decode(tokens) for tokens in found]

    def _unstandardised(self, code: Tensor) -> Tensor:
        return code * self.spread + self.mean


def inputs_of(tokens: Tensor) -> dict[str, tuple[Tensor, dict[int, str]]]:
    """Return tokens (N, L) and their attention mask (N, L), the usual inputs of text models.

    Tokens (N, P, W, L) of fixed codes need no mask. They are padded to two windows of two tokens at least, because the
    exporter takes a dimension of 1 as fixed.
    """
    if tokens.dim() == 4:
        missing = [max(2 - side, 0) for side in tokens.shape[2:]]
        tokens = functional.pad(tokens, (0, missing[1], 0, missing[0]))
        return {"input_ids": (tokens, {0: "batch", 2: "windows", 3: "length"})}
    sides = {0: "batch", 1: "length"}
    return {"input_ids": (tokens, sides), "attention_mask": ((tokens != PADDING).long(), sides)}


def value_of(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return tokens, with PADDING where the mask is 0."""
    return input_ids if attention_mask is None else input_ids * attention_mask


def portable(config: Config) -> Config:
    """Return the settings as a checkpoint stores them, without those that name a place on this machine."""
    local = getattr(_file(config), "LOCAL", ())
    model = {name: value for name, value in config.model.items() if name not in local}
    return replace(config, model=model, encoder=())  # a checkpoint knows pretrained encoders by their fingerprints


def _file(config: Config) -> ModuleType:
    return registry.load("text_encoders", config.arch, "text encoder")


def _encoder_file(config: Config) -> tuple[ModuleType, Any]:
    """Return the file of the text encoder, and its settings.

    Raises UsageError when there is no such text encoder, or when it does not have such a setting.
    """
    file = _file(config)
    return file, build(file.Config, config.model, "modalities.text.model")


def _check_facts(facts: Mapping[str, Any], size: int) -> None:
    """Raise CyclicError when the facts of a checkpoint are not those of `fit` for a vocabulary of `size` tokens."""
    try:
        fractions = np.array([facts["frequencies"], facts["documents"]], float)
        positive = np.array([facts["nats"], facts["length"], facts["limit"]], float)
        types = isinstance(facts["further"], dict) and isinstance(facts["limit"], int)
        types = types and _known_words.are_words(facts.get("words", []))  # earlier versions stored none
        ranges = fractions.shape == (2, size) and fractions.min() > 0 and fractions.max() <= 1 and positive.min() > 0
        if not (types and ranges and np.isfinite(positive).all() and facts["limit"] <= LONGEST):
            raise ValueError("not the facts that `fit` returns")
    except (KeyError, TypeError, ValueError):
        raise CyclicError(
            "The statistics of the texts in the checkpoint are damaged.", "Copy the checkpoint again, or train again."
        ) from None


def _keys(texts: np.ndarray) -> np.ndarray:
    """A number (N,) uint64 for each text, equal for equal texts."""
    unique, numbers = np.unique(texts, return_inverse=True)
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in unique.tolist()]
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)[numbers]


SAMPLE = 1024  # texts on which the mean and spread of the codes are measured
LEAST_NATS = 1e-3  # lower bound of the error per token; it would be about 0 if all texts were equal
LONGEST = 2**20  # largest `limit` that a checkpoint may state, in tokens
