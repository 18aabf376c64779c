"""Texts as the input of fixed codes: for each source, windows of token numbers. Needs no torch.

The sources of a code are pretrained encoders, each with its tokenizer, and the terms of `terms.py`. The result is one
array (N, P, W, L): P sources, W windows, L tokens, each token number plus 1, with 0 as padding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from cyclic_cli.codes.terms import Terms
from cyclic_cli.errors import CyclicError
from cyclic_cli.pretrained.tokens import Tokens
from cyclic_cli.text_encoders._known_words import unknown

TERMS = "terms"  # the name of the source of terms
WINDOW = 128  # terms of a window, where no encoder states its own


class TextReader:
    """Makes the input of fixed codes from texts."""

    def __init__(self, sources: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            sources: In order, either {"terms": JSON of `Terms`}, or `tokenizer` and `window` of a pretrained encoder.

        Raises:
            CyclicError: A source is damaged.
        """
        try:
            self._sources = [
                Terms.from_json(one[TERMS]) if TERMS in one else Tokens(one["tokenizer"], int(one["window"]))
                for one in sources
            ]
        except (KeyError, TypeError):
            raise CyclicError("The tokenizers in the checkpoint are damaged.", "Copy it again.") from None
        self._tokenizers = [str(one["tokenizer"]) for one in sources if TERMS not in one]
        self._window = min((int(one["window"]) for one in sources if TERMS not in one), default=WINDOW)

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """Return the tokens (N, P, W, L) int64 of texts (N,)."""
        several = [self._terms(one, texts) if isinstance(one, Terms) else one.encode(texts) for one in self._sources]
        windows, length = (max(one.shape[axis] for one in several) for axis in (1, 2))
        tokens = np.zeros((len(texts), len(several), windows, length), np.int64)
        for place, one in enumerate(several):
            tokens[:, place, : one.shape[1], : one.shape[2]] = one
        return tokens

    def unknown_words(self, text: str, words: Collection[str]) -> list[str]:
        """Return the different words of a text that are not known, see `_known_words.unknown`.

        Without `words` and without an encoder, whose tokenizer knows words, nothing can be said.
        """
        if not words and not self._tokenizers:
            return []
        return unknown(text, words, self._tokenizers)

    def long_texts(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than a window of an encoder, so that several are averaged."""
        windows = [one.windows(texts) for one in self._sources if isinstance(one, Tokens)]
        return int((np.max(windows, axis=0) > 1).sum()) if windows else 0

    def _terms(self, terms: Terms, texts: Sequence[str]) -> np.ndarray:
        """Return the terms (N, W, L) of texts; their places do not matter."""
        encoded = terms.encode(texts)
        longest = max(1, *map(len, encoded))
        length = min(longest, self._window)
        tokens = np.zeros((len(texts), -(-longest // length), length), np.int64)
        for row, one in zip(tokens, encoded, strict=True):
            row.reshape(-1)[: len(one)] = one
        return tokens
