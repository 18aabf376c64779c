"""Fixed codes of texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cyclic_cli.codes.coded import CodedEncoder, Features
from cyclic_cli.codes.terms import Terms, tfidf
from cyclic_cli.codes.text_reader import TERMS, TextReader
from cyclic_cli.errors import CyclicError


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
    """Encodes texts into fixed codes. It writes no text."""

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
