"""Finds names in scripts that are written without spaces: Chinese, Japanese, Korean, Thai, Lao, Burmese and Khmer.

A report in such a script joins a name with the words around it, so the name is not a word of the text. It may also have
another order than in the header, or a space where the header has none. Therefore every *spelling* of a name is looked
for at every letter of these scripts. The first two letters of the spellings have fingerprints of their own, so that
only few places of a text are compared with whole names.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator

from cyclic_cli.privacy.words import Span

LONGEST = 24  # letters of a spelling
MOST_WORDS = 6  # of a name
START = 2  # letters of the start of a spelling
_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af"
_HIRAGANA, _KATAKANA = "\u3041-\u309f", "\u30a1-\u30ff"
_HANGUL = "\uac00-\ud7a3"
_SOUTH_EAST = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer, with their vowel signs
_LETTER = f"[{_HAN}{_HIRAGANA}{_KATAKANA}{_HANGUL}{_SOUTH_EAST}](?<!・)"
_WORD = re.compile(f"(?:{_LETTER})+")
_RUN = re.compile(f"(?:{_LETTER})+(?:[·・^=,、]?[ \u3000]?(?:{_LETTER})+)*")
"""Words with nothing more between them than between the words of one name."""

_SHORTEST_ALONE = {f"[{_HAN}]+": 2, f"[{_HIRAGANA}]+|[{_KATAKANA}]+|[{_HANGUL}]+": 3, f"[{_SOUTH_EAST}]+": 4}
"""Script → letters of the shortest word of a name that is cut on its own. Shorter ones are parts of ordinary words."""
_SHORTEST_JOINED = {f"[{_HAN}]+": 2, ".+": 3}
"""The same for all words of a name, joined. Korean names of two letters are also ordinary words (정상, 이상)."""
_KANA = re.compile(f"[{_HIRAGANA}]+|[{_KATAKANA}]+")


def spellings(value: str) -> set[str]:
    """The ways in which a text without spaces may write a name: joined, in reverse order, and its longer words alone.

    Args:
        value: A name as a header or a table writes it, such as `Yamada^Tarou=山田^太郎`.
    """
    found: set[str] = set()
    for group in value.split("="):
        words = _WORD.findall(group)[:MOST_WORDS]
        joined = {"".join(words), "".join(reversed(words))}
        found |= {spelling for spelling in joined if _is_long_enough(spelling, _SHORTEST_JOINED)}
        found |= {word for word in words if _is_long_enough(word, _SHORTEST_ALONE)}
    return found


def _is_long_enough(spelling: str, shortest: dict[str, int]) -> bool:
    """Whether a spelling has at least the fewest letters of its script, 3 for mixed scripts, and at most `LONGEST`."""
    fewest = next((count for script, count in shortest.items() if re.fullmatch(script, spelling)), 3)
    return fewest <= len(spelling) <= LONGEST


def spans(text: str, is_start: Callable[[str], bool], is_name: Callable[[str], bool]) -> Iterator[Span]:
    """The positions of names in a text.

    Args:
        text: A report, with composed letters (Unicode NFC).
        is_start: Whether two letters are the start of a spelling.
        is_name: Whether letters are a spelling.
    """
    for run in _RUN.finditer(text):
        places = [place for word in _WORD.finditer(text, *run.span()) for place in range(*word.span())]
        letters = "".join(text[place] for place in places)
        at = 0
        while at < len(letters) - 1:
            length = _length(letters, at, is_name) if is_start(letters[at : at + START]) else 0
            if length:
                yield places[at], places[at + length - 1] + 1
            at += length or 1


def _length(letters: str, at: int, is_name: Callable[[str], bool]) -> int:
    """The length of the longest name at a position; 0 where there is none."""
    for length in range(min(LONGEST, len(letters) - at), START - 1, -1):
        if is_name(letters[at : at + length]) and _is_bounded(letters, at, at + length):
            return length
    return 0


def _is_bounded(letters: str, start: int, end: int) -> bool:
    """Whether a name may stand here: not within a word in kana (リン in リンパ), nor before the vowel of its letter."""
    before, name, after = letters[start - 1 : start], letters[start:end], letters[end : end + 1]
    if after and unicodedata.category(after)[0] == "M":
        return False
    return not any(_KANA.fullmatch(word) for word in (before + name, name + after) if len(word) > len(name))
