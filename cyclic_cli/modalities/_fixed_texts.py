"""Texts of a dataset as the input of fixed codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclic_cli.codes.contents import text_digests
from cyclic_cli.codes.terms import Terms
from cyclic_cli.codes.text_codes import reader_of
from cyclic_cli.codes.text_reader import TERMS, TextReader
from cyclic_cli.text_encoders import _known_words


class FixedTextSamples:
    """Texts as tokens (N, P, W, L), int64, see `codes.text_reader`."""

    def __init__(self, texts: np.ndarray, keys: np.ndarray, facts: Mapping[str, Any]) -> None:
        """
        Args:
            texts: (N,) str.
            keys: (N,) uint64, equal for equal texts.
            facts: See `fixed_facts`. Their parts are read when the first text is.
        """
        self.texts, self.keys, self._facts = texts, keys, facts

    def __len__(self) -> int:
        return len(self.texts)

    def digests(self) -> list[bytes]:
        """Return digests of the texts, see `codes.contents`."""
        return text_digests(self.texts.tolist())

    def load(self, chosen: np.ndarray) -> Tensor:
        return torch.from_numpy(self._reader.read(self.texts[chosen].tolist()))

    def augmented(self, tokens: Tensor, keys: np.ndarray, seed: int, epoch: int) -> Tensor:
        return tokens

    @cached_property
    def _reader(self) -> TextReader:
        return reader_of(self._facts)


def fixed_facts(texts: Sequence[str], patients: Sequence[str]) -> dict[str, Any]:
    """Learn what fixed codes of texts need before features are computed.

    Returns:
        words: The words that a message about a query counts as known, see `_known_words.of_many_patients`.
        terms: The vocabulary of words and word pairs, see `codes.terms`; missing where no term is frequent enough.
    """
    terms = Terms.fit(texts, patients)
    words: dict[str, Any] = {"words": _known_words.of_many_patients(texts, patients)}
    return words | ({TERMS: terms.to_json()} if terms else {})
