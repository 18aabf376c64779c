"""Texts become windows of tokens of a pretrained text encoder. Needs no torch.

The tokenizer is a `tokenizer.json` of the `tokenizers` library, which holds its own normalisation (such as lower case)
and the special tokens that frame a text. A text that is longer than the window of the encoder is read in several
windows, each with its frame. So nothing of a long report is lost.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer, normalizers, processors

from cyclic_cli.errors import CyclicError

# The threads of the library do not survive a fork, and it then prints warnings.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PROBES = ("a", "the", "1", ".", "A b")  # texts that show which special tokens frame them
NOTHING = [0]  # stands for an empty text where no special tokens frame it: a window without a token cannot be read


class Tokens:
    """Converts texts to windows of tokens."""

    def __init__(self, tokenizer: str, window: int, where: str = "The tokenizer") -> None:
        """
        Args:
            tokenizer: The content of `tokenizer.json`.
            window: Most tokens of a window, with its special tokens.
            where: What the tokenizer belongs to, for messages.

        Raises CyclicError when the tokenizer is damaged, or its special tokens alone fill a window.
        """
        self._tokenizer = _parsed(tokenizer, where)
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1  # numbers of tokens
        self.before, self.behind = _frame(self._tokenizer)
        self.room = window - len(self.before) - len(self.behind)  # tokens of a text in a window
        if self.room < 1:
            raise CyclicError(f"{where} has no room for texts in a window of {window} tokens.", "Copy it again.")

    def number_of(self, token: str) -> int | None:
        """Return the number of a token; None where the tokenizer does not have it."""
        return self._tokenizer.token_to_id(token)

    def windows(self, texts: Sequence[str]) -> list[int]:
        """Return the number of windows of each text."""
        return [len(self._cut(content)) for content in self._contents(texts)]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the tokens (N, W, L) int64 of texts, each token number plus 1, with 0 as padding.

        W is the largest number of windows of a text and L the largest number of tokens of a window. An empty text has
        one window with the special tokens alone.
        """
        several = [self._cut(content) for content in self._contents(texts)]
        width = max(map(len, several), default=1)
        length = max((len(window) for windows in several for window in windows), default=1)
        tokens = np.zeros((len(several), width, length), np.int64)
        for row, windows in zip(tokens, several, strict=True):
            for place, window in zip(row, windows, strict=False):
                place[: len(window)] = window
        return tokens

    def _contents(self, texts: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _cut(self, content: list[int]) -> list[list[int]]:
        """The windows of the tokens of a text, with their frames, each token plus 1."""
        bounds = [*range(0, len(content), self.room), len(content)] if content else [0, 0]
        windows = [[*self.before, *content[first:last], *self.behind] for first, last in pairwise(bounds)]
        return [[token + 1 for token in window or NOTHING] for window in windows]


def with_frame(tokenizer: str, first: str, last: str, where: str) -> str:
    """Return a `tokenizer.json` that frames texts with special tokens, for a model that cannot do without.

    A tokenizer that has a frame is returned as it is.

    Args:
        tokenizer: The content of `tokenizer.json`.
        first: The special token before a text; empty where the model needs none.
        last: The special token behind a text.
        where: What the tokenizer belongs to, for messages.

    Raises CyclicError when the tokenizer does not have these tokens, or is damaged.
    """
    parsed = _parsed(tokenizer, where)
    before, behind = _frame(parsed)
    if (before or not first) and (behind or not last):
        return tokenizer
    numbers = {name: parsed.token_to_id(name) for name in (first, last) if name}
    if None in numbers.values():
        raise CyclicError(f"{where} lacks the special tokens that its model needs.", "Copy both from the same source.")
    parsed.post_processor = processors.TemplateProcessing(
        single=[name for name in (first, "$A", last) if name], special_tokens=list(numbers.items())
    )
    return str(parsed.to_str())


def lower_cased(tokenizer: str, where: str) -> str:
    """Return a `tokenizer.json` that writes texts in lower case first."""
    parsed = _parsed(tokenizer, where)
    steps: list[Any] = [normalizers.Lowercase()]
    parsed.normalizer = normalizers.Sequence([*steps, *([parsed.normalizer] if parsed.normalizer else [])])
    return str(parsed.to_str())


def _parsed(text: str, where: str) -> Tokenizer:
    """Return a tokenizer that neither cuts nor pads."""
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except Exception as error:  # the library raises no narrower exception
        raise CyclicError(f"{where} is not a valid tokenizer.json.", "Copy it from its source again.") from error
    return tokenizer


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The numbers of the special tokens before and behind a text."""
    for probe in PROBES:
        encoded = tokenizer.encode(probe)
        special = encoded.special_tokens_mask
        if 0 in special:
            first, last = special.index(0), len(special) - special[::-1].index(0)
            return encoded.ids[:first], encoded.ids[last:]
    return [], []
