"""The vocabulary of texts: byte-level byte-pair encoding, learned from training reports and stored in the checkpoint.

A merged token is kept only when the reports of at least ten patients contain it (`PATIENTS`). A checkpoint therefore
contains no name or number of a single patient. The 256 single bytes are always kept, so every text can be represented.
The vocabulary depends on which texts belong to the same patient. It does not depend on the order of the texts, the
names of the patients, or the number of threads.

Only this file uses the `tokenizers` library. The tokens 0, 1 and 2 are PADDING, START and END. From 3 (`SPECIAL`) on
they are those of the library, shifted by 3.
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

# The threads of the library do not survive a fork, and it then prints warnings.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PADDING, START, END = 0, 1, 2
SPECIAL = 3  # number of special tokens, which represent no text
PATIENTS = 10  # minimum number of patients whose reports contain a merged token
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # a printable character for each byte
SPARE = 2  # factor of merges learned to merges needed, because some are dropped for too few patients

Merges = list[tuple[str, str]]


class Vocabulary:
    """Converts texts to tokens and back."""

    def __init__(self, tokenizer: Tokenizer, description: dict[str, Any]) -> None:
        """
        Args:
            tokenizer: Of the `tokenizers` library.
            description: What `to_json` stores, to rebuild the tokenizer: {"merges": pairs} of a learned vocabulary, or
                {"pretrained": text of the file tokenizer.json}.
        """
        self._tokenizer, self._description = tokenizer, description
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1 + SPECIAL

    @classmethod
    def train(cls, texts: Sequence[str], patients: Sequence[str], size: int) -> Vocabulary:
        """Learn a vocabulary of at most `size` tokens from texts (N,) and their patients (N,).

        The pairs that occur in the most texts are merged first (byte-pair encoding, Sennrich et al., ACL 2016). Merges
        stay within words. A word is a run of letters, digits or other signs, with the space before it. Raises
        UsageError when `size` is too small for the special tokens and the bytes.
        """
        if size < SPECIAL + len(BYTES):
            raise UsageError(
                f"A vocabulary of {size} tokens is too small.",
                f"Set modalities.text.vocabulary to {SPECIAL + len(BYTES)} or more.",
            )
        counts, users = _words(texts, patients)
        learner = Tokenizer(models.BPE())
        learner.train_from_iterator(
            ([word] * counts[word] for word in sorted(counts)),
            trainers.BpeTrainer(
                vocab_size=len(BYTES) + SPARE * (size - SPECIAL - len(BYTES)),
                min_frequency=PATIENTS,  # a rarer token cannot occur in the reports of so many patients
                initial_alphabet=BYTES,
                show_progress=False,
            ),
        )
        learned = [(first, second) for first, second in json.loads(learner.to_str())["model"]["merges"]]
        return cls._of_merges(_first_merges(_merges_of_many_patients(learned, users), size - SPECIAL))

    @classmethod
    def _of_merges(cls, merges: Merges) -> Vocabulary:
        tokens = dict.fromkeys([*BYTES, *(first + second for first, second in merges)])
        model = models.BPE({token: number for number, token in enumerate(tokens)}, merges)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = _NORMALISER
        tokenizer.pre_tokenizer = _WORDS
        # A space is added before the first word, so that it has the same token as elsewhere. Decoding removes it.
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        return cls(tokenizer, {"merges": [list(pair) for pair in merges]})

    @classmethod
    def pretrained(cls, folder: Path) -> Vocabulary:
        """Return the vocabulary of a pretrained model in a local folder.

        Raises CyclicError when the folder has no file tokenizer.json, or a damaged one.
        """
        try:
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise CyclicError(
                f"{folder} has no tokenizer.json.",
                "Save the fast tokenizer of the model there: tokenizer.save_pretrained(folder).",
            ) from None
        return cls._of_pretrained(text, str(folder / "tokenizer.json"))

    @classmethod
    def _of_pretrained(cls, text: str, where: str) -> Vocabulary:
        try:
            tokenizer = Tokenizer.from_str(text)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return cls(tokenizer, {"pretrained": text})
        except Exception as error:  # the library raises no narrower exception
            raise CyclicError(f"{where} is not a valid tokenizer.", "Copy it from its source again.") from error

    # ------------------------------------------------------------------------------------------ in a checkpoint

    def to_json(self) -> str:
        """Return the vocabulary as JSON for `from_json`. Equal vocabularies give equal JSON."""
        return json.dumps(self._description, ensure_ascii=False)

    def to_library(self) -> str:
        """Return the content of a `tokenizer.json` for other programs.

        Its token numbers are those of this class minus `SPECIAL`. It does not add END.
        """
        return str(self._tokenizer.to_str())

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Return the vocabulary that `to_json` stored. Raises CyclicError when the text is anything else."""
        try:
            match json.loads(text):
                case {"merges": list(merges), **others} if not others:
                    return cls._of_merges(_checked(merges))
                case {"pretrained": str(tokenizer), **others} if not others:
                    return cls._of_pretrained(tokenizer, "The tokenizer of the checkpoint")
        except (ValueError, TypeError, RecursionError):
            pass
        raise CyclicError("The vocabulary of the checkpoint is damaged.", "Copy the checkpoint again, or train again.")

    # -------------------------------------------------------------------------------------------- texts, tokens

    def encode(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        """Return the tokens of each text, uint32, followed by END, and truncated to `length` tokens in total."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*(one + SPECIAL for one in each.ids), END], np.uint32)[:length] for each in encoded]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, in lower case and Unicode normal form NFKC. Incomplete characters become �."""
        return self._tokenizer.decode([int(token) - SPECIAL for token in tokens if token >= SPECIAL])

    def first_piece(self, word: str) -> str:
        """The first token of a word, as text; empty if it is only the space before the word."""
        return self.decode(self.encode([word], 2)[0][:1].tolist())

    def reads_as_bytes(self, word: str) -> bool:
        """Whether a learned vocabulary splits a word into single bytes. False if it has no other tokens."""
        learned = self.size > SPECIAL + len(BYTES)
        return learned and max(self._tokenizer.encode(word, add_special_tokens=False).ids, default=0) < len(BYTES)

    @property
    def pretrained_tokenizer(self) -> str:
        """The text of the file tokenizer.json of a pretrained model; empty for a learned vocabulary."""
        return str(self._description.get("pretrained", ""))

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that a pretrained model expects before and after a text."""
        encoded = self._tokenizer.encode("a")
        special = encoded.special_tokens_mask
        first, last = special.index(0), len(special) - special[::-1].index(0)
        tokens = [token + SPECIAL for token in encoded.ids]
        return tokens[:first], tokens[last:]


def padded(tokens: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Return arrays of at most `length` tokens as one array (N, length), int64, with PADDING after their end."""
    array = np.full((len(tokens), length), PADDING, np.int64)
    for row, each in zip(array, tokens, strict=True):
        row[: len(each)] = each
    return array


# ------------------------------------------------------------------------------------------------- learning

_NORMALISER = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend(" ")])
_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _words(texts: Sequence[str], patients: Sequence[str]) -> tuple[Counter[str], dict[str, set[str]]]:
    """Return by word the number of texts that contain it, and the patients of these texts, `PATIENTS` at most."""
    counts: Counter[str] = Counter()
    users: dict[str, set[str]] = defaultdict(set)
    for text, patient in zip(texts, patients, strict=True):
        words = {word for word, _ in _WORDS.pre_tokenize_str(_NORMALISER.normalize_str(text))}
        counts.update(words)
        for word in words:
            if len(users[word]) < PATIENTS:
                users[word].add(patient)
    return counts, users


def _merges_of_many_patients(merges: Merges, users: dict[str, set[str]]) -> Merges:
    """Return the merges whose token occurs in words of at least `PATIENTS` patients, by word in `users`.

    The two parts of a token occur in the same words, so they are kept whenever the token is.
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
    """Yield the substrings of a word that have at least two and at most `longest` characters."""
    for first in range(len(word)):
        for end in range(first + 2, min(first + longest, len(word)) + 1):
            yield word[first:end]


def _first_merges(merges: Merges, size: int) -> Merges:
    """Return the first merges, as many as give `size` tokens together with the bytes."""
    tokens, kept = set(BYTES), []
    for pair in merges:
        token = "".join(pair)
        if token not in tokens and len(tokens) >= size:
            break
        tokens.add(token)
        kept.append(pair)
    return kept


def _checked(merges: list[Any]) -> Merges:
    """Return the merges of a checkpoint.

    Raises ValueError unless each merges two tokens that are bytes or results of earlier merges, and none occurs twice.
    """
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
