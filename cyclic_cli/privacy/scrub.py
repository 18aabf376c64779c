"""Removes identities from reports.

A header is read in another process, and often in another call, than its report. The identities in a header are
therefore passed on as *fingerprints*: keyed hashes of their words, from which nobody can recover the words without the
secret. Fingerprints are stored with the dataset. There are five kinds:

    word   a number, or a word of a name or remark that is not an ordinary word: cut wherever it occurs
    part   an ordinary word of a name (Long, Rib): cut only beside another part of the name or after a title
    pair   two ordinary words of one name, which are cut when they are neighbours in the text
    day    day and month of a date, cut where the text has them without a year
    start  the first letters of a name in a script without spaces, which tell where to look for the name

Ordinary words are those in `assets/ordinary_words.txt`. Patterns that may identify a person by their form alone, such
as dates (see `patterns.py`), are cut from every text.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise, permutations

from cyclic_cli.privacy import unspaced_names
from cyclic_cli.privacy.dates import days, days_of
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.patterns import may_start_pattern, pattern_spans, without_ages
from cyclic_cli.privacy.words import Span, fold, is_measurement, ordinary_words, plain_view, positions

CUT = "___"
SHORTEST = 3  # letters of the shortest word, and digits of the shortest number, that is cut on its own
SHORTEST_CHAIN = 5  # digits of the shortest number whose punctuation may differ: 12/5 must not match 125
LONGEST_NUMBER = 32  # characters at the beginning of a value that are also taken as one number
LONGEST_NAME = 8  # words of a name; in a longer one only neighbouring words make pairs
REMEMBERED = 2**18  # words in the cache of hashes; the cache of header values holds a tenth of that
WORD, PART, PAIR, DAY, START = "wp&ds"  # the last character of a fingerprint

TITLES = frozenset(
    "dr drs mr mrs ms miss prof professor doctor herr herrn frau monsieur madame mme senor senora sra dra".split()
)
PARTICLES = frozenset("al da de del della der di du el la le mac mc o san st ten ter van vande von zu".split())
"""Words in names that are written with or without a following space: Van Dyke, Vandyke."""


@dataclass(frozen=True)
class Identifying:
    """The contents of a header or a row of a table that may identify a person; never written or shown."""

    names: tuple[str, ...] = ()  # persons, institutions, addresses, numbers and dates, as the source writes them
    remarks: tuple[str, ...] = ()  # free text, which may contain a name

    def __repr__(self) -> str:
        return "Identifying(hidden)"


def fingerprints(identifying: Identifying, keyer: Keyer) -> list[str]:
    """Keyed hashes of everything that `scrub` should cut: distinct strings of 16 characters, sorted."""
    hashes = _hash_cache(keyer)
    found: set[str] = set()
    for value in identifying.names:
        found |= hashes.of_value(_of_name, value)
    for value in identifying.remarks:
        found |= hashes.of_value(_of_remark, value)
    # Tables often have first and last names in separate cells, so single words are paired with each other.
    single_words = {words[0] for value in identifying.names if len(words := _letters(value)) == 1}
    found |= _pairs(sorted(single_words), hashes)
    return sorted(found)


def scrub(text: str, fingerprints: Collection[str], keyer: Keyer) -> str:
    """The text with `___` in place of identities, and `90+` in place of ages over 89.

    Applying `scrub` again with the same fingerprints changes nothing, and with more fingerprints cuts more. Accented
    letters are composed (Unicode NFC), and invisible characters in words are removed.

    Args:
        text: A report.
        fingerprints: Fingerprints of the persons that the report may name.
        keyer: The keyer that the fingerprints were made with.
    """
    hashes = _hash_cache(keyer)
    known = {fingerprint[:-1]: fingerprint[-1] for fingerprint in fingerprints}
    has_days = DAY in known.values()
    text = _composed(text)
    while True:  # a cut may change the neighbours of a word so that it is recognised only in the next round
        text = without_ages(text)
        words = set(_TOKEN.findall(text))
        spans = [*pattern_spans(text, [word for word in words if hashes[word][1]])]
        if has_days:
            spans += [
                span
                for span, readings in days(plain_view(text))
                if any(hashes.of("day", day) in known for day in readings)
            ]
        if known:
            spans += _names(text, words, known, hashes)
        if not spans:
            return text
        text = _without(text, spans)


def _without(text: str, spans: list[Span]) -> str:
    """The text with `___` in place of each span; spans that touch become one."""
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
_INVISIBLE = dict.fromkeys(
    [*map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)
_UMLAUTS: dict[int, str] = {ord("ä"): "ae", ord("ö"): "oe", ord("ü"): "ue"}
_PUNCTUATION = re.compile(r"[\W_]")
_DIGIT = re.compile(r"\d")
_IN_NUMBER = re.compile(
    r"(?:(?<=\d)[^\W\d_]{4,}|[^\W\d_]{4,}(?=\d))"
)  # letters of a number that contains a name: OKONKWO01
_CLINICAL = re.compile(r"[a-z]{1,2}[1-9]\d?|\d{1,2}[a-z]{1,2}")  # T1, L45, 3D


class _HashCache(dict[str, tuple[str, bool]]):
    """A cache: word → its hash, and whether it may start a pattern."""

    def __init__(self, keyer: Keyer) -> None:
        super().__init__()
        self._keyer = keyer
        self._values: dict[tuple[str, str], frozenset[str]] = {}
        self._starts: dict[str, str] = {}

    def __missing__(self, token: str) -> tuple[str, bool]:
        if len(self) >= REMEMBERED:
            self.clear()
        plain = _PUNCTUATION.sub("", fold(token))
        hashed = self.of("number", plain.lstrip("0")) if _DIGIT.search(plain) else self.of("word", plain)
        self[token] = entry = (hashed, may_start_pattern(plain))
        return entry

    def of(self, kind: str, text: str) -> str:
        """A keyed hash of 15 hexadecimal digits. Equal texts of different kinds have different hashes."""
        return f"{self._keyer.number(f'{kind} {text}') % 2**60:015x}"

    def pair(self, first: str, second: str) -> str:
        return self.of("pair", " ".join(sorted((first, second))))

    def start(self, letters: str) -> str:
        """The hash of the first letters of a name, cached because texts repeat them."""
        if len(self._starts) >= REMEMBERED:
            self._starts.clear()
        if letters not in self._starts:
            self._starts[letters] = self.of("start", letters)
        return self._starts[letters]

    def of_value(self, read: Callable[[str, "_HashCache"], Iterator[str]], value: str) -> frozenset[str]:
        """The fingerprints of a value, cached because the headers of a study repeat the same values."""
        if len(self._values) >= REMEMBERED // 10:
            self._values.clear()
        key = (read.__name__, value)
        if key not in self._values:
            self._values[key] = frozenset(read(value, self))
        return self._values[key]


@lru_cache(maxsize=4)
def _hash_cache(keyer: Keyer) -> _HashCache:
    return _HashCache(keyer)


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text).translate(_INVISIBLE)


# ----------------------------------------------------------------------------- fingerprints of names and of remarks


def _of_name(value: str, hashes: _HashCache) -> Iterator[str]:
    words = _letters(value)
    spellings = {spelling for word in words for spelling in _spellings(word)} | _joined(value)
    spellings |= {fold(word) for word in _IN_NUMBER.findall(value)}
    yield from (hashes.of("word", word) + WORD for word in spellings if _is_identifying(word))
    yield from _pairs(words, hashes)
    yield from (hashes.of("number", number) + WORD for number in _numbers(value))
    yield from (hashes.of("day", day) + DAY for day in days_of(value))
    for spelling in unspaced_names.spellings(_composed(value)):
        yield hashes.of("unspaced", spelling) + WORD
        yield hashes.start(spelling[: unspaced_names.START]) + START


def _of_remark(value: str, hashes: _HashCache) -> Iterator[str]:
    yield from (hashes.of("word", word) + WORD for word in _letters(value) if _is_identifying(word))
    for number in _numbers(value):
        is_long = len(_DIGIT.findall(number)) >= SHORTEST_CHAIN
        if is_long or any(map(_is_identifying, re.findall(r"[^\W\d_]+", number))):
            yield hashes.of("number", number) + WORD


def _pairs(words: list[str], hashes: _HashCache) -> set[str]:
    """Fingerprints of the ordinary words of one name: alone, in pairs, and with the initials of its other words."""
    parts = [word for word in words if not _is_identifying(word)]
    pairs = combinations(parts, 2) if len(parts) <= LONGEST_NAME else pairwise(parts)
    found = {hashes.pair(first, second) + PAIR for first, second in pairs if first != second}
    if len(words) <= LONGEST_NAME:
        found |= {hashes.pair(part, word[0]) + PAIR for part in parts for word in words if word != part}
    return found | {hashes.of("word", part) + PART for part in parts}


def _is_identifying(word: str) -> bool:
    """Whether a folded word identifies a person on its own: it is not short and not an ordinary word."""
    if not word.isascii():
        word = unicodedata.normalize("NFC", word)  # a Korean syllable is one letter
    return len(word) >= SHORTEST and word not in ordinary_words()


def _letters(value: str) -> list[str]:
    """The words of a value that have letters only, folded, in their order."""
    return [fold(token) for token in _TOKEN.findall(_composed(value)) if len(token) > 1 and token.isalpha()]


def _spellings(word: str) -> set[str]:
    """The spellings of a folded word: as it is, and with ae, oe, ue as a, o, u (Mueller may be Müller)."""
    plain = re.sub(r"(?<=[aou])e", "", word)
    return {word, plain} if len(plain) > SHORTEST else {word}


def _joined(value: str) -> set[str]:
    """Further spellings of a name: joined words (smithjones, obrien, vandyke, johndoe, doejohn), and ä as ae."""
    tokens = [fold(token) for token in _TOKEN.findall(_composed(value))]
    found = {_PUNCTUATION.sub("", fold(chain)) for chain in _WORDS.findall(_composed(value))}
    found |= {first + second for first, second in pairwise(tokens) if first in PARTICLES}
    found |= {first + second for first, second in permutations(_letters(value)[:2], 2)}
    if not value.isascii():
        spelt = _composed(value).lower().translate(_UMLAUTS)
        found |= set(_letters(spelt))
    return {word for word in found if len(word) > SHORTEST}


def _numbers(value: str) -> set[str]:
    """The numbers in a value and their parts, without punctuation, case and leading zeros."""
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
    """Whether a number has a digit and is not a clinical term such as T1 or 3D."""
    return not number.isalpha() and not _CLINICAL.fullmatch(number)


# ---------------------------------------------------------------------------------------------- identities in a text

_GAP = re.compile(r"[ \t]*(?:\r?\n)?[ \t]*|\s?[,^=/\\&_'’‐‑-]{1,3}\s?")  # between two words of one name
_GAP_AFTER_DOT = re.compile(r"\.?[ \t]*-?|[,^]\s?|['’]")  # after an initial or a title
_ENDS_NAME = re.compile(r"\.|\s*(?:[,;:)^\n]|$)")
_BEFORE_SHORT = re.compile(r"\d(?:[.,/:-]| ?[x×] ?)\Z", re.IGNORECASE)
_AFTER_SHORT = re.compile(r"[.,/:-]\d")
_NEXT_WORD = re.compile(r"[^\W_]+[ \t]+[^\W_]+")
_INITIAL, _TITLE = "initial", "title"


def _names(text: str, words: set[str], known: dict[str, str], hashes: _HashCache) -> list[Span]:
    """The positions of words and numbers that belong to identities."""
    spans = [match.span() for match in _chains(text) if hashes[match[0]][0] in known]
    if not text.isascii() and START in known.values():
        spans += unspaced_names.spans(
            text,
            is_start=lambda letters: hashes.start(letters) in known,
            is_name=lambda letters: hashes.of("unspaced", letters) in known,
        )
    for particle in [word for word in words if len(word) <= 5 and word.lower() in PARTICLES]:
        following = [_NEXT_WORD.match(text, position) for position in positions(text, particle)]
        spans += [match.span() for match in following if match and hashes["".join(match[0].split())][0] in known]
    kinds = {word: known[hashes[word][0]] for word in words if hashes[word][0] in known}
    if kinds:
        spans += _NameSearch(text, kinds, known, hashes).spans()
    return spans


def _chains(text: str) -> Iterator[re.Match[str]]:
    """Words or numbers joined by punctuation without a space, which may be one word or number."""
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


class _NameSearch:
    """Finds names in a text that contains words of identities.

    Args:
        text: The report.
        kinds: Words of the text with a fingerprint → its kind, WORD or PART.
        known: Hash → kind of the fingerprint.
        hashes: The cache of hashes.
    """

    def __init__(self, text: str, kinds: dict[str, str], known: dict[str, str], hashes: _HashCache) -> None:
        self.text, self.known, self.hashes = text, known, hashes
        self.tokens = list(_TOKEN.finditer(text))
        self.kinds = [kinds.get(token[0]) or _kind(token[0]) for token in self.tokens]

    def spans(self) -> Iterator[Span]:
        """The spans to cut; neighbouring words of a name are one span."""
        named = {index for index, kind in enumerate(self.kinds) if kind in (WORD, PART) and self._is_named(index)}
        cut = sorted(named | {initial for index in named for initial in self._initials(index)})
        first = 0
        for number, index in enumerate(cut):
            if number + 1 == len(cut) or cut[number + 1] != index + 1 or not self._touch(index):
                yield self.tokens[cut[first]].start(), self.tokens[index].end()
                first = number + 1

    def _is_named(self, index: int) -> bool:
        """Whether a word or number of an identity is cut at this position."""
        token = self.tokens[index]
        if self.kinds[index] == PART:
            return self._has_more(index, -1) or self._has_more(index, 1)
        return token[0].isalpha() or self._is_whole_number(*token.span())

    def _has_more(self, index: int, step: int) -> bool:
        """Whether the name continues on one side of an ordinary word, across initials, or a title stands before it.

        Args:
            index: The word.
            step: The side: -1 before the word, 1 after it.
        """
        at = index + step
        while 0 <= at < len(self.tokens) and self._touch(min(at, at - step)):
            kind = self.kinds[at]
            pair = self.hashes.pair(fold(self.tokens[index][0]), fold(self.tokens[at][0]))
            if kind == PART or (kind == _INITIAL and self._is_dotted(at) and pair in self.known):
                return pair in self.known
            if kind != _INITIAL:
                return (kind == WORD and self.tokens[at][0].isalpha()) or (kind == _TITLE and step < 0)
            at += step
        return False

    def _is_dotted(self, index: int) -> bool:
        """Whether a letter is written as an initial: `A. Long`, but not `a long`."""
        start, end = self.tokens[index].span()
        return self.text[start].isupper() and self.text[end : end + 1] == "."

    def _is_whole_number(self, start: int, end: int) -> bool:
        """Whether a number is not part of a decimal number and, if it is short, not part of a measurement."""
        before, after = self.text[max(0, start - 4) : start], self.text[end : end + 2]
        if end - start < SHORTEST_CHAIN:
            in_measurement = _BEFORE_SHORT.search(before) or _AFTER_SHORT.match(after) or is_measurement(self.text, end)
            return not in_measurement
        return not (re.search(r"\d[.,]\Z", before) or re.match(r"[.,]\d", after))

    def _initials(self, index: int) -> Iterator[int]:
        """The indices of initials that belong to the name at `index`: `J. R. Okonkwo`, `Okonkwo, J.`"""
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
        """Whether the text between a token and the next one can stand between words of one name."""
        gap = self.text[self.tokens[index].end() : self.tokens[index + 1].start()]
        pattern = _GAP_AFTER_DOT if self.kinds[index] in (_INITIAL, _TITLE) else _GAP
        return len(gap) < 6 and bool(pattern.fullmatch(gap))


def _kind(token: str) -> str:
    if len(token) == 1:
        return _INITIAL if token.isalpha() else ""
    return _TITLE if len(token) < 10 and fold(token) in TITLES else ""
