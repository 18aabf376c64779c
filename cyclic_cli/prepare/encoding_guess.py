"""Guesses the encoding of lines that are not UTF-8: the one whose letters fit the alphabet of a language best.

General detectors need some hundred characters of running text. A table often has one stray line, so this module knows
what it looks for: words of reports, in which letters stand beside letters of the same script and case.
"""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from functools import cache

_LANGUAGES = (
    "äöüß", "éèàçêœâîôûùïë", "óíáéñúü", "ãçáéíóâêõàú", "àèéìòù", "åäöé", "æøåé", "éëïöüè", "łęąśóżćńź",
    "áíéěčřšžýůúťňď", "áíéýčšžľťúôňäďĺŕ", "áéóöőíüúű", "ăâîșțşţ", "čšžćđ", "ışğüçö", "ąčęėįšųūž", "āčēģīķļņšūž",
    "õäöü", "áéíóöúæýþð",
    "оеаинтсрвлкмдпуягыбзчйхжьшюцщэфёъ", "оаниіветрслкмдупязьбгчйїхцюжєшщфґ", "оаиетнрсвлдкпмзъгбучяжйщцхшюф",
    "аиоенрстјувдкмплзбгчћшжцњхљђџф",
    "αοιετσνηυρπκμλςόίγάέύθδήχφβωξζψώ",
    "יוהלאתרמשבנםדעקחפכגסטןצזךץף",
    "اليمنترةوبسدعقحفهكشصجطخزضغأءذثظئإىآؤ\u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652پچژگکی",
    "านรกอเงมยลวดทสต\u0e48\u0e49\u0e31\u0e34\u0e35\u0e37\u0e38\u0e39ะำปบคหแจพชขใไผซศณธถภโ\u0e4c\u0e47ฉญษฟฐฝๆ",
)  # fmt: skip
"""Letters of a language beyond A to Z, the frequent ones first."""
_COMMON = {
    "gb18030": ("gb2312", 0xB0, 0xD7), "big5hkscs": ("big5", 0xA4, 0xC6), "cp932": ("euc_jp", 0xB0, 0xCF),
    "euc_jp": ("euc_jp", 0xB0, 0xCF), "cp949": ("euc_kr", 0xB0, 0xC8),
}  # fmt: skip
"""Encoding with two bytes a character → a character set, and the first and last of its rows of common characters."""
_CANDIDATES = (
    "cp1252", "cp1254", "mac_roman", "cp850", "cp1250", "cp1251", *_COMMON, "cp437", "iso8859_2", "cp852", "koi8_r",
    "cp1253", "cp1255", "cp1256", "cp874", "cp1257", "mac_latin2", "cp857", "iso8859_15", "cp866", "koi8_u",
    "iso8859_5", "mac_cyrillic", "iso8859_7", "iso8859_8", "iso8859_6", "cp737", "cp862",
)  # fmt: skip
"""All encodings that are tried, the usual ones first."""
_MAY_HOLD_UTF8 = frozenset("cp1252 cp1254 cp850 cp1250 cp437 iso8859_2 cp1257 iso8859_15".split())
"""Encodings in which no word looks like UTF-8, so that sequences of UTF-8 in their lines are read as such."""
_SIGNS = frozenset(
    "–—‘’‚“”„…•·°±²³µ×§«»€©®™¿¡ªº½¼¾\xa0\xad¨´№　、。，．・：；？！（）「」『』【】《》〈〉～－％＋〜℃①②③"
)
_RUN = r"[^\x00-\x7f]+"
_NO_POINTS = dict.fromkeys(_SIGNS, 0.0)
_LETTER, _COMMON_LETTER = 1.5, 2.4  # points of the most frequent letter, and of a common character of two bytes
_RANK = 0.06  # points that an encoding loses to the one before it in _CANDIDATES
_WORST = -1.0  # an encoding with fewer points does not fit
_FOREIGN = -0.7  # points of a letter of another language in the same script: reports name people of all countries
_ODD, _IMPOSSIBLE = -1.5, -3.0  # points of what is seldom there, and of what no report has


def guess(sample: bytes) -> str:
    """The encoding that fits a sample of lines best; empty where none fits."""
    points = {}
    for rank, name in enumerate(_CANDIDATES):
        text = decode(sample, name)
        letters = Counter(letter for run in re.findall(_RUN, text) for letter in run)
        alphabets = [_common_letters(name, letters.keys())] if name in _COMMON else _alphabets()
        in_languages = (
            sum(count * alphabet.get(letter, _IMPOSSIBLE) for letter, count in letters.items())
            for alphabet in alphabets
        )
        points[name] = max(in_languages) + _context(text) - rank * _RANK
    best = max(points, key=lambda name: points[name])
    return best if points[best] > _WORST else ""


def decode(line: bytes, name: str) -> str:
    """A line in an encoding of `guess`; bytes that it does not have become U+FFFD."""
    if name in _MAY_HOLD_UTF8:
        return line.decode("utf-8", _handler(name))
    return line.decode(name, "replace")


@cache
def _handler(name: str) -> str:
    """The name of an error handler that reads in a one-byte encoding what is not UTF-8."""

    def read(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        return error.object[error.start : error.end].decode(name, "replace"), error.end

    handler = f"cyclic_{name}"
    codecs.register_error(handler, read)
    return handler


@cache
def _alphabets() -> tuple[dict[str, float], ...]:
    """For each language its letters and their points: the more frequent, the more."""
    scripts: dict[str, set[str]] = {}
    for letters in _LANGUAGES:
        scripts.setdefault(_script(letters), set()).update(letters)
    return tuple(
        _NO_POINTS | dict.fromkeys(scripts[_script(letters)], _FOREIGN) | dict(_letter_points(letters))
        for letters in _LANGUAGES
    )


def _script(letters: str) -> str:
    return unicodedata.name(letters[0]).split()[0]


def _letter_points(letters: str) -> Iterator[tuple[str, float]]:
    fall = 0.5 if letters[0] < "\u0250" else _LETTER  # how often accented letters occur says little
    for rank, letter in enumerate(letters):
        points = _LETTER - fall * rank / len(letters)
        yield letter, points
        if letter.upper() != letter:
            yield letter.upper(), points / 2


def _common_letters(name: str, letters: AbstractSet[str]) -> dict[str, float]:
    """Points of characters in an encoding of East Asia. A text has those that are common in its own language."""
    charset, first, last = _COMMON[name]
    points = dict(_NO_POINTS)
    for letter in letters - points.keys():
        encoded = letter.encode(charset, "ignore")
        is_kana, is_hangul = "\u3041" <= letter <= "\u30ff", "\uac00" <= letter <= "\ud7a3"
        if is_kana and charset == "euc_jp":
            points[letter] = _COMMON_LETTER
        elif len(encoded) == 2 and first <= encoded[0] <= last:
            points[letter] = _COMMON_LETTER - 0.4 * (not is_hangul)  # a Korean text is also a possible Chinese one
        elif is_hangul == (charset == "euc_kr") and "\u2e80" <= letter < "\ue000":
            points[letter] = _ODD
    return points


def _context(text: str) -> float:
    """Points of places: against signs within words, capitals after small letters, and words of two scripts."""
    points = 0.0
    for run in re.finditer(_RUN, text):
        around = f"{text[max(0, run.start() - 1) : run.start()] or ' '}{run[0]}{text[run.end() : run.end() + 1] or ' '}"
        for before, letter, after in zip(around, around[1:], around[2:], strict=False):
            if letter in _SIGNS:
                points += _ODD if before.isalpha() and after.isalpha() and letter not in "’\xad" else 0.0
            elif letter.isupper() and before.isalpha() and (before.islower() or after.islower()):
                points += _ODD
            if _are_of_two_scripts(before, letter) or _are_of_two_scripts(letter, after):
                points += _ODD
    return points


def _are_of_two_scripts(first: str, second: str) -> bool:
    """Whether two letters stand together although only one of them is Latin; after capitals (`CT`) this is usual."""
    is_word = first.isalpha() and second.isalpha() and not (first.isascii() and first.isupper())
    return is_word and _is_latin(first) != _is_latin(second)


def _is_latin(letter: str) -> bool:
    return letter < "\u0250" or "\u1e00" <= letter < "\u1f00"
