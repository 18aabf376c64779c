"""Words and numbers of a text: how they are compared, where they stand, and the view of a text that patterns search."""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.resources import files

Span = tuple[int, int]

# A first digit and an end that are not inside a word or number; underscores do not count as letters.
FIRST = r"\d(?<![^\W_].)(?<!\d[.,/-].)"
END = r"(?![^\W_])"
LAST = END + r"(?![./-]\d)"


def fold(token: str) -> str:
    """A word in lower case, without accents and ligatures."""
    if token.isascii():
        return token.lower()
    parts = unicodedata.normalize("NFKD", token.casefold())
    return "".join(letter for letter in parts if not unicodedata.combining(letter)).translate(_LIGATURES)


_LIGATURES = str.maketrans(dict(zip("æœøłđðþıħ", ("ae", "oe", "o", "l", "d", "d", "th", "i", "h"), strict=True)))


@cache
def ordinary_words() -> frozenset[str]:
    """Folded words that are part of the general and medical vocabulary, and not only names."""
    lines = (files("cyclic_cli") / "assets" / "ordinary_words.txt").read_text(encoding="ascii")
    return frozenset(lines[lines.rindex("#") :].split("\n")[1:-1])


def positions(text: str, word: str) -> Iterator[int]:
    """The positions at which a word begins."""
    position = text.find(word)
    while position >= 0:
        if not (position and text[position - 1].isalnum()):
            yield position
        position = text.find(word, position + 1)


def word_before(text: str, position: int) -> str:
    """The folded word that stands before a position, across blanks and opening punctuation."""
    return fold("".join(text[max(0, position - 16) : position].rstrip(" \t\n:#(").split()[-1:]))


# ------------------------------------------------------------------------------------------------------------- views


@lru_cache(maxsize=2)
def plain_view(text: str) -> str:
    """The text with ASCII digits, blanks, hyphens and dots in place of all others of Unicode; positions stay."""
    return text if text.isascii() else text.translate(_PLAIN)


@lru_cache(maxsize=2)
def number_view(plain: str) -> str:
    """A plain view in which letters of scripts without spaces are bars, so that they do not join a number."""
    return plain if plain.isascii() else _UNSPACED.sub("|", plain)


class _Plain(dict[int, int]):
    """A table for `str.translate`: code point → the code point that stands for it."""

    def __missing__(self, code: int) -> int:
        letter = chr(code)
        category = unicodedata.category(letter)
        if category == "Nd":
            plain = ord("0") + unicodedata.decimal(letter)
        elif 0xFF01 <= code <= 0xFF5E:  # full width
            plain = code - 0xFEE0
        elif letter in "·∙・․":
            plain = ord(".")
        else:
            plain = {"Pd": ord("-"), "Zs": ord(" ")}.get(category, code)
        self[code] = plain
        return plain


_PLAIN = _Plain()
_UNSPACED = re.compile("[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7a3]")

# ------------------------------------------------------------------------------------------------------------- units

_UNIT = re.compile(
    r"\s?(?:[mcdk]?m[²³23]?|[mcdµu]?[lLgG]|kg|mcg|cc|%|°|HU|k[vV]p?|m?A|mAs|[mcµ]?(?:Sv|Gy)|[MkG]?(?:Bq|Hz)|m?Ci|m?T|"
    r"m?s|msec|sec\w*|mins?|minutes?|hours?|hrs?|h|days?|weeks?|wks?|months?|mos?|years?|yrs?|tage?|wochen|jahren?|"
    r"jours?|ans|mmHg|bpm|IU|units?|mmol|slices?|x|×|fold|degrees?|french|fr|gauge|percent|"
    r"[мс]м|[мк]?г|мл|л|мин|сек\w*|дн\w*|毫米|厘米|公分)" + END,
    re.IGNORECASE,
)
_BEFORE_COUNT = frozenset(
    "image images series slice slices from between rib ribs rippe rippen segment segments level levels teeth tooth "
    "zone zones ray rays digit digits toe toes finger fingers cote cotes costilla costillas "
    "costa costas coste costola costole costela costelas arco arcos ribben zebro zebra zeber frame frames grade "
    "score".split()
)


def is_measurement(text: str, end: int) -> bool:
    """Whether a unit follows the number that ends at position `end`."""
    return bool(_UNIT.match(text, end))


def is_counted(text: str, start: int) -> bool:
    """Whether the word before a number, such as `rib` or `image`, shows that it is a count or an index."""
    return word_before(text, start) in _BEFORE_COUNT
