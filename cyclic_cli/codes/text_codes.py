"""Fixed codes of texts, and the decoder that writes texts from them.

The decoder is optional. `--objective captioning` trains it on codes that were computed once. It stores no sentence, and
learns only words that the reports of many patients contain.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cyclic_cli.codes.coded import CodedEncoder, Features
from cyclic_cli.codes.terms import Terms, tfidf
from cyclic_cli.codes.text_reader import TERMS, TextReader
from cyclic_cli.config import build
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.text_encoders._decoding import Decoder, check_sizes
from cyclic_cli.text_encoders._vocabulary import Vocabulary

DECODER = "decoder"  # the entry of the facts of texts, and the submodule, of the decoder
LONGEST = 2**20  # largest `limit` that a checkpoint may state, in tokens


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The settings of the text decoder on fixed codes."""

    width: int = 128  # dimensions of the vector of a token
    layers: int = 2  # transformer layers
    heads: int = 4  # attention heads
    prefix: int = 4  # prefix vectors that give the code to the decoder

    def __post_init__(self) -> None:
        check_sizes(self.width, layers=self.layers, heads=self.heads, prefix=self.prefix)


class TextDecoder(nn.Module):
    """Predicts and generates texts from fixed codes, which it standardises.

    The mean over the training codes is subtracted, and all dimensions are divided by one common standard deviation.
    """

    mean: Tensor  # (code,)
    spread: Tensor  # ()

    def __init__(self, code: int, facts: Mapping[str, Any]) -> None:
        """
        Args:
            code: Dimensions of the codes.
            facts: `settings` of `DecoderConfig`; `tokenizer`, `frequencies`, `nats` and `limit` as
                `modalities.text.fit` returns them.

        Raises:
            CyclicError: The facts are damaged.
        """
        super().__init__()
        try:
            settings = build(DecoderConfig, dict(facts["settings"]), "the text decoder")
            self.vocabulary = Vocabulary.from_json(facts["tokenizer"])
            _check_statistics(facts, self.vocabulary.size)
        except (KeyError, TypeError, ValueError, UsageError):
            raise CyclicError("The text decoder of the checkpoint is damaged.", "Copy it again.") from None
        self.limit = int(facts["limit"])
        self.decoder = Decoder(
            code, settings.width, settings.layers, settings.heads, settings.prefix, facts, self.vocabulary.size
        )
        self.register_buffer("mean", torch.zeros(code))
        self.register_buffer("spread", torch.ones(()))

    def errors(self, code: Tensor, tokens: Tensor) -> Tensor:
        """Return (N,) the cross-entropies per token of tokens (N, L), see `Decoder.errors`, given codes (N, code)."""
        return self.decoder.errors(self._standardised(code), tokens)

    def write(self, code: Tensor, beams: int, length: int | None) -> list[str]:
        """Return generated texts of codes (N, code), of at most `length` tokens."""
        found = self.decoder.generate(self._standardised(code), beams, min(length or self.limit, self.limit))
        return [self.vocabulary.decode(tokens) for tokens in found]

    def _standardised(self, code: Tensor) -> Tensor:
        return (code - self.mean) / self.spread


class TermFeatures(nn.Module):
    """The TF-IDF of the terms of a text."""

    idf: Tensor  # (V,)

    def __init__(self, terms: Terms) -> None:
        super().__init__()
        self.register_buffer("idf", torch.from_numpy(terms.idf).float(), persistent=False)  # the facts hold it

    def forward(self, tokens: Tensor) -> Features:
        """Return features (N, V) of terms (N, W, L)."""
        return {TERMS: tfidf(tokens.flatten(1), self.idf)}


class CodedTexts(CodedEncoder):
    """Encodes texts into fixed codes. It writes texts where the facts describe a decoder."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """Raises CyclicError when the facts of a checkpoint are damaged."""
        super().__init__(facts.get("parts", ()), {}, 4)
        self.order = list(dict.fromkeys(part.facts.source for part in self.parts))
        self.reader = reader_of(facts)
        windows = [int(one.get("window", 0)) for one in reader_sources(facts)]
        # Tokens are as long as the longest window of an encoder; another encoder may not have so many positions.
        self.lengths = [window if 0 < window < max(windows) else None for window in windows]
        if TERMS in self.order:
            self.terms = TermFeatures(Terms.from_json(facts[TERMS]))
            self._sources[TERMS] = self.terms
        self.generates = DECODER in facts
        if self.generates:
            self.decoder = TextDecoder(self.code, facts[DECODER])

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the decoder. Needs one, as `limit` and `write` do."""
        return self.decoder.vocabulary

    @property
    def limit(self) -> int:
        """The maximum number of tokens in a text that the decoder writes."""
        return self.decoder.limit

    def write(self, code: Tensor, beams: int = 1, length: int | None = None) -> list[str]:
        """Return generated texts of codes (N, code), of at most `length` tokens."""
        return self.decoder.write(code, beams, length)

    def features(self, content: Tensor) -> dict[str, Features]:
        """Return the features of tokens (N, P, W, L), by source and by output."""
        return {
            source: self._sources[source](content[:, place, :, : self.lengths[place]])
            for place, source in enumerate(self.order)
        }

    def unknown_words(self, text: str, words: Collection[str]) -> list[str]:
        """Return the different words of a text that neither training reports nor the tokenizers of encoders know."""
        return self.reader.unknown_words(text, words)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Return texts (N,) as `encode` takes them: tokens (N, P, W, L)."""
        return torch.from_numpy(self.reader.read(texts))


def reader_of(facts: Mapping[str, Any]) -> TextReader:
    """Return the reader of texts for a modality with these facts. Raises CyclicError when they are damaged."""
    return TextReader(reader_sources(facts))


def reader_sources(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what `TextReader` needs, in the order of the sources of the code.

    Raises CyclicError when the facts are damaged.
    """
    try:
        encoders = {one["fingerprint"]: one for one in facts.get("encoders", ())}
        order = dict.fromkeys(part["source"] for part in facts["parts"])
        return [
            {TERMS: facts[TERMS]}
            if source == TERMS
            else {name: encoders[source][name] for name in ("tokenizer", "window")}
            for source in order
        ]
    except (KeyError, TypeError):
        raise CyclicError("The facts of the texts in the checkpoint are damaged.", "Copy it again.") from None


def _check_statistics(facts: Mapping[str, Any], size: int) -> None:
    """Raise ValueError, KeyError or TypeError unless the statistics of tokens are those of `size` tokens."""
    frequencies, nats, limit = [float(one) for one in facts["frequencies"]], float(facts["nats"]), facts["limit"]
    in_range = all(0 < one <= 1 for one in frequencies) and 0 < nats < math.inf
    if len(frequencies) != size or not in_range or type(limit) is not int or not 0 < limit <= LONGEST:
        raise ValueError("not the statistics of this vocabulary")
