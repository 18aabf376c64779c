"""Identities cut out of reports.

Who reads a header is long gone when its report turns up, in another process. So what a header names travels as
*fingerprints*: keyed hashes of its words, which stay with the dataset and tell nobody anything.

    word  a word of a name or a remark that is no ordinary word, or a number: cut wherever it stands
    part  an ordinary word of a name (Long, Rib): cut only where the text has more of the name around it, or a title
    pair  two such words of one name: neighbours in the text, they are that name
    day   day and month of a date: cut where the text has them without a year

What is ordinary says `assets/ordinary_words.txt`. What may name somebody by its shape alone (`shapes.py`) is cut from
every text.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import combinations, pairwise

from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.patterns import (
    Span,
    days,
    days_of,
    fold,
    is_measure,
    is_opening,
    places,
    telling_spans,
    without_ages,
)

CUT = "___"
SHORTEST = 3  # letters of a word, and digits of a number, that is cut where it stands alone
SHORTEST_CHAIN = 5  # digits of a number whose punctuation may differ: 12/5 is not the number 125
LONGEST_NUMBER = 32  # characters of a value that is a number as a whole
LONGEST_NAME = 8  # words; of a longer one only neighbours make pairs
REMEMBERED = 2**18  # tokens whose hash is kept; and a tenth as many values of headers
WORD, PART, PAIR, DAY = "wp&d"  # the last character of a fingerprint

TITLES = frozenset(
    "dr drs mr mrs ms miss prof professor doctor herr herrn frau monsieur madame mme senor senora sra dra".split()
)
PARTICLES = frozenset("al da de del della der di du el la le mac mc o san st ten ter van vande von zu".split())
"""Words that names are written with or without a space after: Van Dyke, Vandyke."""


@dataclass(frozen=True)
class Identifying:
    """What a header or a table's row says that may name somebody. Held in memory only; never written or shown."""

    names: tuple[str, ...] = ()  # persons, institutions, addresses, numbers, dates, as they are written there
    remarks: tuple[str, ...] = ()  # free text, in which a name may stand

    def __repr__(self) -> str:
        return "Identifying(hidden)"


def fingerprints(identifying: Identifying, keyer: Keyer) -> list[str]:
    """Keyed hashes of all that `scrub` should cut: strings of 16 characters, sorted, each once."""
    memory = _memory(keyer)
    found: set[str] = set()
    for value in identifying.names:
        found |= memory.of_value(_of_name, value)
    for value in identifying.remarks:
        found |= memory.of_value(_of_remark, value)
    # A table gives first and last name in cells of their own.
    alone = {words[0] for value in identifying.names if len(words := _letters(value)) == 1}
    found |= _pairs(sorted(alone), memory)
    return sorted(found)


def scrub(text: str, fingerprints: Collection[str], keyer: Keyer) -> str:
    """The text with `___` for whatever names somebody, and `90+` for ages over 89.

    Scrubbing again changes nothing; with more fingerprints it cuts more. Letters with accents come out composed
    (Unicode NFC), and invisible characters within words go.

    Args:
        text: A report.
        fingerprints: Of whom it may name.
        keyer: The one they were made with.
    """
    memory = _memory(keyer)
    known = {fingerprint[:-1]: fingerprint[-1] for fingerprint in fingerprints}
    dated = DAY in known.values()
    text = _composed(text)
    while True:  # what is cut may leave a neighbour that is only then seen for what it is
        text = without_ages(text)
        words = set(_TOKEN.findall(text))
        spans = [*telling_spans(text, [word for word in words if memory[word][1]])]
        if dated:
            spans += [span for span, readings in days(text) if any(memory.of("day", day) in known for day in readings)]
        if known:
            spans += _names(text, words, known, memory)
        if not spans:
            return text
        text = _without(text, spans)


def _without(text: str, spans: list[Span]) -> str:
    """The text with one `___` for each span, or for several that touch."""
    kept: list[str] = []
    end = -1
    for start, stop in sorted(spans):
        if start > end:
            kept += [text[max(end, 0) : start], CUT]
        end = max(end, stop)
    return "".join([*kept, text[end:]])


# ------------------------------------------------------------------------------------------------------------ words

_TOKEN = re.compile(r"[^\W_]+")
_JOINT = re.compile(r"['’ʼ´`./_‐‑-](?<=[^\W_].)(?:[^\W_]|\s*\n\s*[^\W_])")
_WORDS = re.compile(r"[^\W\d_]+(?:(?:['’ʼ´`‐‑-]|[-‐]\s*\n\s*)[^\W\d_]+)+(?![^\W_])")  # O'Brien, Okon-⏎kwo
_NUMBER = re.compile(r"[^\W_]+(?:[./_-][^\W_]+)+")  # 12-345/6
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_UMLAUTS: dict[int, str] = {ord("ä"): "ae", ord("ö"): "oe", ord("ü"): "ue"}
_PUNCTUATION = re.compile(r"[\W_]")
_DIGIT = re.compile(r"\d")
_IN_NUMBER = re.compile(r"(?:(?<=\d)[^\W\d_]{4,}|[^\W\d_]{4,}(?=\d))")  # of a number made of a name: OKONKWO01
_CLINICAL = re.compile(r"[a-z]{1,2}[1-9]\d?|\d{1,2}[a-z]{1,2}")  # T1, L45, 3D


@cache
def ordinary_words() -> frozenset[str]:
    """Words that stand in reports for what they mean, folded."""
    lines = (files("cyclic_cli") / "assets" / "ordinary_words.txt").read_text(encoding="ascii")
    return frozenset(lines[lines.rindex("#") :].split("\n")[1:-1])


class _Memory(dict[str, tuple[str, bool]]):
    """Hash of every token met, and whether it may open a shape; found out once for each."""

    def __init__(self, keyer: Keyer) -> None:
        super().__init__()
        self._keyer = keyer
        self._values: dict[tuple[str, str], frozenset[str]] = {}

    def __missing__(self, token: str) -> tuple[str, bool]:
        if len(self) >= REMEMBERED:
            self.clear()
        plain = _PUNCTUATION.sub("", fold(token))
        hashed = self.of("number", plain.lstrip("0")) if _DIGIT.search(plain) else self.of("word", plain)
        self[token] = known = (hashed, is_opening(plain))
        return known

    def of(self, kind: str, text: str) -> str:
        """A keyed hash of 15 digits; `kind` keeps a word from equalling a day."""
        return f"{self._keyer.number(f'{kind} {text}') % 2**60:015x}"

    def pair(self, first: str, second: str) -> str:
        return self.of("pair", " ".join(sorted((first, second))))

    def of_value(self, read: Callable[[str, "_Memory"], Iterator[str]], value: str) -> frozenset[str]:
        """The fingerprints of a value: the headers of a study repeat each other."""
        if len(self._values) >= REMEMBERED // 10:
            self._values.clear()
        key = (read.__name__, value)
        if key not in self._values:
            self._values[key] = frozenset(read(value, self))
        return self._values[key]


@lru_cache(maxsize=4)
def _memory(keyer: Keyer) -> _Memory:
    return _Memory(keyer)


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text).translate(_INVISIBLE)


# ----------------------------------------------------------------------------------------------- of names and remarks


def _of_name(value: str, memory: _Memory) -> Iterator[str]:
    words = _letters(value)
    whole = {spelling for word in words for spelling in _spellings(word)} | _joined(value)
    whole |= {fold(word) for word in _IN_NUMBER.findall(value)}
    yield from (memory.of("word", word) + WORD for word in whole if _is_telling(word))
    yield from _pairs(words, memory)
    yield from (memory.of("number", number) + WORD for number in _numbers(value))
    yield from (memory.of("day", day) + DAY for day in days_of(value))


def _of_remark(value: str, memory: _Memory) -> Iterator[str]:
    yield from (memory.of("word", word) + WORD for word in _letters(value) if _is_telling(word))
    for number in _numbers(value):
        if len(_DIGIT.findall(number)) >= SHORTEST_CHAIN or any(map(_is_telling, re.findall(r"[^\W\d_]+", number))):
            yield memory.of("number", number) + WORD


def _pairs(words: list[str], memory: _Memory) -> set[str]:
    """Fingerprints of the ordinary words of one name."""
    parts = [word for word in words if not _is_telling(word)]
    pairs = combinations(parts, 2) if len(parts) <= LONGEST_NAME else pairwise(parts)
    found = {memory.pair(first, second) + PAIR for first, second in pairs if first != second}
    return found | {memory.of("word", part) + PART for part in parts}


def _is_telling(word: str) -> bool:
    return len(word) >= SHORTEST and word not in ordinary_words()


def _letters(value: str) -> list[str]:
    """The words of a value, folded, in their order."""
    return [fold(token) for token in _TOKEN.findall(_composed(value)) if len(token) > 1 and token.isalpha()]


def _spellings(word: str) -> set[str]:
    """A folded word, and without the e of umlauts that are written as two letters: Mueller is Müller."""
    plain = re.sub(r"(?<=[aou])e", "", word)
    return {word, plain} if len(plain) > SHORTEST else {word}


def _joined(value: str) -> set[str]:
    """Words of a name written as one: smithjones, obrien, vandyke; and Müller with two letters for its umlaut."""
    tokens = [fold(token) for token in _TOKEN.findall(_composed(value))]
    found = {_PUNCTUATION.sub("", fold(chain)) for chain in _WORDS.findall(_composed(value))}
    found |= {first + second for first, second in pairwise(tokens) if first in PARTICLES}
    if not value.isascii():
        spelt = _composed(value).lower().translate(_UMLAUTS)
        found |= set(_letters(spelt))
    return {word for word in found if len(word) > SHORTEST}


def _numbers(value: str) -> set[str]:
    """Every way a number may stand in a text, without punctuation, case and leading zeros."""
    if not _DIGIT.search(value):
        return set()

    def plain(number: str) -> str:
        return _PUNCTUATION.sub("", fold(number)).lstrip("0")

    tails = re.findall(r"\d[\d/._-]*\d", value)
    whole = {plain(token) for token in (value[:LONGEST_NUMBER], *value.split())}
    parts = {plain(token) for token in (*_TOKEN.findall(value), *_NUMBER.findall(value), *tails)}
    found = whole | {part for part in parts if len(part) > SHORTEST}
    return {number for number in found if len(number) >= SHORTEST and _is_number(number)}


def _is_number(number: str) -> bool:
    return not number.isalpha() and not _CLINICAL.fullmatch(number)


# ---------------------------------------------------------------------------------------------------- names in a text

_GAP = re.compile(r"[ \t]*(?:\r?\n)?[ \t]*|\s?[,^=/\\&_'’‐‑-]{1,3}\s?")  # between two words of one name
_GAP_AFTER_DOT = re.compile(r"\.?[ \t]*-?|[,^]\s?|['’]")  # after an initial or a title
_ENDS_NAME = re.compile(r"\.|\s*(?:[,;:)^\n]|$)")
_BEFORE_SHORT = re.compile(r"\d(?:[.,/:-]| ?[x×] ?)$", re.IGNORECASE)
_AFTER_SHORT = re.compile(r"[.,/:-]\d")
_NEXT_WORD = re.compile(r"[^\W_]+[ \t]+[^\W_]+")
_INITIAL, _TITLE = "initial", "title"


def _names(text: str, words: set[str], known: dict[str, str], memory: _Memory) -> list[Span]:
    """Where words and numbers of identities stand."""
    spans = [match.span() for match in _chains(text) if memory[match[0]][0] in known]
    for particle in [word for word in words if len(word) <= 5 and word.lower() in PARTICLES]:
        following = [_NEXT_WORD.match(text, place) for place in places(text, particle)]
        spans += [match.span() for match in following if match and memory["".join(match[0].split())][0] in known]
    kinds = {word: known[memory[word][0]] for word in words if memory[word][0] in known}
    if kinds:
        spans += _Names(text, kinds, known, memory).spans()
    return spans


def _chains(text: str) -> Iterator[re.Match[str]]:
    """Words and numbers that are joined without a space and may be taken for one."""
    end = 0
    for joint in _JOINT.finditer(text):
        if joint.start() < end:
            continue
        start = joint.start()
        while start and text[start - 1].isalnum():
            start -= 1
        match = _WORDS.match(text, start) or _NUMBER.match(text, start)
        if match:
            end = match.end()
            digits = len(_DIGIT.findall(match[0]))
            if not digits or (digits >= SHORTEST_CHAIN and not re.fullmatch(r"\d+\.\d+", match[0])):
                yield match


class _Names:
    """A text that has words of identities.

    Args:
        text: The report.
        kinds: Its words of identities: WORD or PART.
        known: Kinds of fingerprints by their hash.
        memory: Hashes.
    """

    def __init__(self, text: str, kinds: dict[str, str], known: dict[str, str], memory: _Memory) -> None:
        self.text, self.known, self.memory = text, known, memory
        self.tokens = list(_TOKEN.finditer(text))
        self.kinds = [kinds.get(token[0]) or _kind(token[0]) for token in self.tokens]

    def spans(self) -> Iterator[Span]:
        """Spans of neighbouring words that are cut, with what lies between them."""
        named = {index for index, kind in enumerate(self.kinds) if kind in (WORD, PART) and self._is_named(index)}
        cut = sorted(named | {initial for index in named for initial in self._initials(index)})
        first = 0
        for place, index in enumerate(cut):
            if place + 1 == len(cut) or cut[place + 1] != index + 1 or not self._touch(index):
                yield self.tokens[cut[first]].start(), self.tokens[index].end()
                first = place + 1

    def _is_named(self, index: int) -> bool:
        token = self.tokens[index]
        if self.kinds[index] == PART:
            return self._has_more(index, -1) or self._has_more(index, 1)
        return token[0].isalpha() or self._is_whole_number(*token.span())

    def _has_more(self, index: int, step: int) -> bool:
        """Whether a part of a name has more of the name on one side, perhaps behind an initial, or a title before."""
        at = index + step
        while 0 <= at < len(self.tokens) and self._touch(min(at, at - step)):
            kind = self.kinds[at]
            if kind == PART:
                pair = self.memory.pair(fold(self.tokens[index][0]), fold(self.tokens[at][0]))
                return pair in self.known
            if kind != _INITIAL:
                return (kind == WORD and self.tokens[at][0].isalpha()) or (kind == _TITLE and step < 0)
            at += step
        return False

    def _is_whole_number(self, start: int, end: int) -> bool:
        """Whether a number of an identity stands for itself: it is no part of a decimal, and a short one no measure."""
        before, after = self.text[max(0, start - 4) : start], self.text[end : end + 2]
        if end - start < SHORTEST_CHAIN:
            in_measure = _BEFORE_SHORT.search(before) or _AFTER_SHORT.match(after) or is_measure(self.text, end)
            return not in_measure
        return not (re.search(r"\d[.,]$", before) or re.match(r"[.,]\d", after))

    def _initials(self, index: int) -> Iterator[int]:
        """Initials that belong to a name: `J. R. Okonkwo`, `Okonkwo, J.`"""
        if not self.tokens[index][0].isalpha():
            return
        before = index - 1
        while before >= 0 and self.kinds[before] == _INITIAL and self._touch(before):
            if not (self.tokens[before][0].isupper() or self.text[self.tokens[before].end()] == "."):
                break
            yield before
            before -= 1
        after = index + 1
        while after < len(self.tokens) and self.kinds[after] == _INITIAL and self._touch(after - 1):
            if not (self.tokens[after][0].isupper() and _ENDS_NAME.match(self.text, self.tokens[after].end())):
                break
            yield after
            after += 1

    def _touch(self, index: int) -> bool:
        """Whether nothing but what joins the words of a name lies between a token and the next."""
        gap = self.text[self.tokens[index].end() : self.tokens[index + 1].start()]
        pattern = _GAP_AFTER_DOT if self.kinds[index] in (_INITIAL, _TITLE) else _GAP
        return len(gap) < 6 and bool(pattern.fullmatch(gap))


def _kind(token: str) -> str:
    if len(token) == 1:
        return _INITIAL if token.isalpha() else ""
    return _TITLE if len(token) < 10 and fold(token) in TITLES else ""
