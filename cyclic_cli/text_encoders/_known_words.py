"""Which words a model knows, so that a text of a user can be refused or commented on when it does not know them.

Every text gets an embedding, also one of words that no training report contains: the encoder then sees single bytes or
meaningless pieces of words, and similarities look as usual.

A word is a run of letters in any script, in lower case and Unicode normal form NFKC. In scripts that are written
without spaces each letter is a word. Numbers and punctuation are no words, nor is the 's of a genitive. A word is known
if the training reports of at least `PATIENTS` patients contain it, so the list of known words holds no name of a single
patient; or if it is one whole token of a pretrained tokenizer.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from cyclic_cli.errors import CyclicError
from cyclic_cli.text_encoders._vocabulary import PATIENTS, Vocabulary

MOST = 50_000  # words that a checkpoint stores, at most; of more, those that the most patients use
SHOWN = 10  # words that a message lists, at most
WITHOUT_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"

_NORMALISER = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"(?<=\p{L})['’]s(?!\p{L})"), " ")]
)
_LETTERS = Regex(rf"(?={WITHOUT_SPACES})\p{{L}}\p{{M}}*|(?:(?!{WITHOUT_SPACES})\p{{L}}\p{{M}}*)+")
_WORDS = pre_tokenizers.Split(_LETTERS, "removed", invert=True)


def words_of(text: str) -> list[str]:
    """Return the different words of a text, in order."""
    return list(dict.fromkeys(word for word, _ in _WORDS.pre_tokenize_str(_NORMALISER.normalize_str(text))))


def of_many_patients(texts: Sequence[str], patients: Sequence[str]) -> list[str]:
    """Return the words that texts (N,) of at least `PATIENTS` patients (N,) contain, sorted."""
    by_patient: dict[str, list[str]] = defaultdict(list)
    for text, patient in zip(texts, patients, strict=True):
        by_patient[patient].append(text)
    users: Counter[str] = Counter()
    for own in by_patient.values():
        users.update({word for text in set(own) for word in words_of(text)})
    common = sorted((word for word, count in users.items() if count >= PATIENTS), key=lambda word: (-users[word], word))
    return sorted(common[:MOST])


def without_rare(text: str, words: Collection[str]) -> str:
    """Return a text without the words that are not among `words`, those of `of_many_patients`."""
    kept, end = [], 0
    for word, (first, last) in _WORDS.pre_tokenize_str(text):
        kept.append(text[end:first])
        if all(one in words for one in words_of(word)):
            kept.append(word)
        end = last
    return "".join([*kept, text[end:]])


def are_words(value: Any) -> bool:
    """Whether a value that was read from a file can be a list that `of_many_patients` returned."""
    return isinstance(value, list) and len(value) <= MOST and all(isinstance(word, str) for word in value)


def unknown(text: str, words: Collection[str], tokenizers: Sequence[str] = ()) -> list[str]:
    """Return the different words of a text that are not known, in order.

    Args:
        text: A text that a user gave.
        words: The words of `of_many_patients`.
        tokenizers: Contents of the files tokenizer.json of pretrained encoders. A word is also known if it is one whole
            token of any of them, in lower case, capitalised or in capitals.
    """
    return [
        word for word in words_of(text) if word not in words and not any(_is_token(word, each) for each in tokenizers)
    ]


def unknown_to(vocabulary: Vocabulary, text: str, words: Collection[str]) -> list[str]:
    """Return the different words of a text that a model with a vocabulary does not know, in order.

    A learned vocabulary reads `effusions` as `effusion` and `s`. Such a word is known if its first token is a known
    word and makes up more than half of it.

    Without `words` (checkpoints of earlier versions, and training reports that have no common words) a learned
    vocabulary alone decides: a word is then unknown if it is read as single bytes. A vocabulary that has no other
    tokens tells nothing about words, and none counts as unknown.
    """
    if vocabulary.pretrained_tokenizer:
        return unknown(text, words, [vocabulary.pretrained_tokenizer])
    if words:
        return [word for word in unknown(text, words) if not _is_longer_form(word, vocabulary, words)]
    return [word for word in words_of(text) if vocabulary.reads_as_bytes(word)]


def _is_longer_form(word: str, vocabulary: Vocabulary, words: Collection[str]) -> bool:
    first = vocabulary.first_piece(word)
    return first in words and 2 * len(first) > len(word)


def listed(words: Sequence[str]) -> str:
    """Return the words as a message shows them: the first `SHOWN`, and how many more there are."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


@lru_cache(maxsize=2**16)
def _is_token(word: str, tokenizer: str) -> bool:
    """Return whether a word is one whole token of a tokenizer, and not a token that only continues a word.

    The space before the word makes tokenizers that mark the beginning of words (Ġ or ▁) use such a token. Some of them
    add a mark for the beginning of the text besides, and so need the word without the space.
    """
    library, unknown_token = _parsed(tokenizer)
    for form in (word, word.capitalize(), word.upper()):
        for spaced in (f" {form}", form):
            found = library.encode(spaced, add_special_tokens=False)
            is_one = len(found.ids) == 1 and found.ids[0] != unknown_token
            if is_one and (spaced != form or found.tokens[0].startswith(("Ġ", "▁"))):
                return True
    return False


@lru_cache(maxsize=8)
def _parsed(text: str) -> tuple[Tokenizer, int | None]:
    """Return a tokenizer and the number of its token for what it cannot read. Raises CyclicError if it is damaged."""
    try:
        library = Tokenizer.from_str(text)
        library.no_truncation()
        library.no_padding()
        model = json.loads(text)["model"]
    except Exception as error:  # the library raises no narrower exception
        raise CyclicError(
            "The tokenizer of a pretrained encoder is damaged.", "Copy it from its source again."
        ) from error
    token = model.get("unk_token")
    return library, model.get("unk_id") if token is None else library.token_to_id(token)
