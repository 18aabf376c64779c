"""The tokens of texts: a byte-level byte-pair vocabulary, learned from training reports, and its place in a checkpoint.

What is unusual: a merged token stays only when the reports of at least ten patients contain it (`PATIENTS`), so that a
checkpoint spells no name and no number of one of them. The 256 single bytes always stay: every text can be written.
The result depends on which texts are one patient's, never on the order of texts, the names of patients or threads.

All that knows the library `tokenizers` is here. Tokens are PADDING, START and END, and from 3 on those of the library.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cyclic_cli.errors import CyclicError, UsageError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would not outlive a fork, and say so on stderr

PADDING, START, END = 0, 1, 2
SPECIAL = 3  # tokens that stand for no text
PATIENTS = 10  # whose reports must contain a merged token
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # a printable character for each byte
SPARE = 2  # times the merges asked for that are learned, since some belong to too few patients

Merges = list[tuple[str, str]]


class Vocabulary:
    """Texts to tokens and back."""

    def __init__(self, tokenizer: Tokenizer, description: dict[str, Any]) -> None:
        """`description` is what makes the tokenizer again: {"merges": pairs} or {"pretrained": text of its file}."""
        self._tokenizer, self._description = tokenizer, description
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1 + SPECIAL

    @classmethod
    def train(cls, texts: Sequence[str], patients: Sequence[str], size: int) -> Vocabulary:
        """Learn at most `size` tokens from texts (N,), each of one of `patients` (N,).

        Pairs are merged by the number of texts that they stand in (Sennrich et al., ACL 2016), within words: letters,
        digits or signs in a row, with the space before them. Raises UsageError when there is no room for the bytes.
        """
        if size < SPECIAL + len(BYTES):
            raise UsageError(f"A vocabulary of {size} tokens is too small.", f"Give it {SPECIAL + len(BYTES)} or more.")
        counts, users = _words(texts, patients)
        learner = Tokenizer(models.BPE())
        learner.train_from_iterator(
            ([word] * counts[word] for word in sorted(counts)),
            trainers.BpeTrainer(
                vocab_size=len(BYTES) + SPARE * (size - SPECIAL - len(BYTES)),
                min_frequency=PATIENTS,  # what is rarer cannot be of so many patients
                initial_alphabet=BYTES,
                show_progress=False,
            ),
        )
        learned = [(first, second) for first, second in json.loads(learner.to_str())["model"]["merges"]]
        return cls._of_merges(_first(_shared(learned, users), size - SPECIAL))

    @classmethod
    def _of_merges(cls, merges: Merges) -> Vocabulary:
        tokens = dict.fromkeys([*BYTES, *(first + second for first, second in merges)])
        model = models.BPE({token: number for number, token in enumerate(tokens)}, merges)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = _NORMALISER
        tokenizer.pre_tokenizer = _WORDS
        # The space before the first word, which makes it the same token as elsewhere, goes again.
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        return cls(tokenizer, {"merges": [list(pair) for pair in merges]})

    @classmethod
    def pretrained(cls, folder: Path) -> Vocabulary:
        """The tokenizer of a pretrained model in a local folder. Raises CyclicError when it has no fast one."""
        try:
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise CyclicError(
                f"{folder} has no tokenizer.json.", "Save its fast tokenizer there: tokenizer.save_pretrained(folder)."
            ) from None
        return cls._of_pretrained(text, str(folder / "tokenizer.json"))

    @classmethod
    def _of_pretrained(cls, text: str, where: str) -> Vocabulary:
        try:
            tokenizer = Tokenizer.from_str(text)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return cls(tokenizer, {"pretrained": text})
        except Exception as error:  # the library has no narrower one
            raise CyclicError(f"{where} is no tokenizer.", "Take it from its source again.") from error

    # ------------------------------------------------------------------------------------------ in a checkpoint

    def to_json(self) -> str:
        """All of it, for `from_json`; the same vocabulary gives the same text."""
        return json.dumps(self._description, ensure_ascii=False)

    def to_library(self) -> str:
        """The text of a `tokenizer.json`, for other programs: its tokens and `SPECIAL` are ours, without END."""
        return str(self._tokenizer.to_str())

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read what `to_json` gave. Raises CyclicError when it is anything else."""
        try:
            match json.loads(text):
                case {"merges": list(merges), **others} if not others:
                    return cls._of_merges(_checked(merges))
                case {"pretrained": str(tokenizer), **others} if not others:
                    return cls._of_pretrained(tokenizer, "The tokenizer of the checkpoint")
        except (ValueError, TypeError, RecursionError):
            pass
        raise CyclicError("The vocabulary of the checkpoint is damaged.", "Copy or make the checkpoint again.")

    # -------------------------------------------------------------------------------------------- texts, tokens

    def encode(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        """The tokens of each text, uint32, with END behind them, then cut to `length` of them."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*(one + SPECIAL for one in each.ids), END], np.uint32)[:length] for each in encoded]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, as normalised: lower-case, in Unicode's form NFKC. Broken characters become �."""
        return self._tokenizer.decode([int(token) - SPECIAL for token in tokens if token >= SPECIAL])

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens that a pretrained model wants before and behind a text."""
        encoded = self._tokenizer.encode("a")
        special = encoded.special_tokens_mask
        first, last = special.index(0), len(special) - special[::-1].index(0)
        tokens = [token + SPECIAL for token in encoded.ids]
        return tokens[:first], tokens[last:]


def padded(tokens: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Lists of at most `length` tokens as one array (N, length) int64, PADDING behind their end."""
    array = np.full((len(tokens), length), PADDING, np.int64)
    for row, each in zip(array, tokens, strict=True):
        row[: len(each)] = each
    return array


# ------------------------------------------------------------------------------------------------- learning

_NORMALISER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend(" ")])
_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _words(texts: Sequence[str], patients: Sequence[str]) -> tuple[Counter[str], dict[str, set[str]]]:
    """Of each word the number of texts that have it, and its patients, or `PATIENTS` of them where there are more."""
    counts: Counter[str] = Counter()
    users: dict[str, set[str]] = defaultdict(set)
    for text, patient in zip(texts, patients, strict=True):
        words = {word for word, _ in _WORDS.pre_tokenize_str(_NORMALISER.normalize_str(text))}
        counts.update(words)
        for word in words:
            if len(users[word]) < PATIENTS:
                users[word].add(patient)
    return counts, users


def _shared(merges: Merges, users: dict[str, set[str]]) -> Merges:
    """The merges whose token stands in words of at least `PATIENTS` patients.

    What it is made of stands in the same words, so that nothing that stays is made of what goes.
    """
    tokens = {first + second for first, second in merges}
    longest = max(map(len, tokens), default=0)
    of_token: dict[str, set[str]] = defaultdict(set)
    for word, patients in users.items():
        for token in tokens.intersection(_parts(word, longest)):
            if len(of_token[token]) < PATIENTS:
                of_token[token] |= patients
    return [pair for pair in merges if len(of_token["".join(pair)]) >= PATIENTS]


def _parts(word: str, longest: int) -> Iterator[str]:
    """The parts of a word of two characters or more."""
    for first in range(len(word)):
        for end in range(first + 2, min(first + longest, len(word)) + 1):
            yield word[first:end]


def _first(merges: Merges, size: int) -> Merges:
    """The first merges, as many as make `size` tokens with the bytes."""
    tokens, kept = set(BYTES), []
    for pair in merges:
        token = "".join(pair)
        if token not in tokens and len(tokens) >= size:
            break
        tokens.add(token)
        kept.append(pair)
    return kept


def _checked(merges: list[Any]) -> Merges:
    """Merges of a checkpoint. Raises ValueError when they are not pairs of what the bytes and earlier pairs make."""
    known, seen = set(BYTES), set()
    for pair in merges:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("not a pair")
        first, second = pair
        if not {first, second} <= known or (first, second) in seen:
            raise ValueError("not a merge")
        known.add(first + second)
        seen.add((first, second))
    return [(first, second) for first, second in merges]
