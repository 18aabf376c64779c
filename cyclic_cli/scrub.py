"""Identities cut out of reports.

Who reads a header is long gone when its report turns up, in another process. So what a header names travels as
*fingerprints*: keyed hashes of its words, which stay with the data set and tell nobody anything.

    word    a word of a name, or of a remark, that is no ordinary word: cut wherever it stands
    part    an ordinary word of a name (Long, Rib): cut only where the text has more of the name around it
    pair    two such words of one name: neighbours in the text, they are that name
    number  a patient's number, an accession, a telephone: without punctuation and leading zeros
    day     day and month of a date

What is ordinary says `assets/ordinary_words.txt`. Dates, telephones, long numbers, UIDs, addresses of e-mail and the
web, and ages over 89 look like what they are, so they are cut from every text (compare the list of the HIPAA Safe
Harbor method, 45 CFR 164.514(b)(2)).
"""

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import combinations, pairwise
from typing import NamedTuple

from cyclic_cli.identity import Keyer

CUT = "___"
SHORTEST = 3  # letters of a word, and digits of a number, that is cut where it stands alone
LONGEST_NUMBER = 32  # characters
LONG_NAME = 8  # words; of a longer one only neighbours make pairs
REMEMBERED = 2**18  # tokens whose hash is kept

WORD, PART, PAIR, DAY = "wp&d"
"""Last character of a fingerprint; numbers count as words."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Identifying:
    """What a header or a table's row says that may name somebody. Held in memory only; never written or shown."""

    names: tuple[str, ...] = ()  # persons, institutions, addresses, numbers, dates, as they are written there
    remarks: tuple[str, ...] = ()  # free text, in which a name may stand

    def __repr__(self) -> str:
        return "Identifying(hidden)"


def fingerprints(identifying: Identifying, keyer: Keyer) -> list[str]:
    """Keyed hashes of all that `scrub` should cut: sorted strings of 16 characters, each once."""
    hashes = _hashes(keyer)
    found: set[str] = set()
    alone: list[str] = []  # a table gives first and last name in cells of their own
    for value in identifying.names:
        words = _letters(value)
        found.update(_of_words(words, hashes))
        found.update(hashes.of("word ", joined) + WORD for joined in _joined(value, words))
        found.update(hashes.of("number ", number) + WORD for number in _numbers(value))
        found.update(hashes.of("day ", day) + DAY for day in _days(value))
        alone += words if len(words) == 1 else []
    found.update(_of_words(sorted(set(alone)), hashes))
    for value in identifying.remarks:
        found.update(hashes.of("word ", word) + WORD for word in _letters(value) if _is_telling(word))
        found.update(hashes.of("number ", number) + WORD for number in _numbers(value) if _is_telling_number(number))
    return sorted(found)


def scrub(text: str, fingerprints: Collection[str], keyer: Keyer) -> str:
    """The text with `___` for whatever names somebody.

    Scrubbing again changes nothing; with more fingerprints it cuts more. Letters with accents come out composed
    (Unicode NFC), soft hyphens go.

    Args:
        text: A report.
        fingerprints: Of whom it may name.
        keyer: The one they were made with.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
    hashes = _hashes(keyer)
    known = {fingerprint[:-1]: fingerprint[-1] for fingerprint in fingerprints}
    text = _OLD.sub("90+", text)
    while True:  # what is cut may leave a neighbour that is then seen for what it is
        words = set(_TOKEN.findall(text))
        spans = [*_telling_shapes(text, words, hashes), *_dates(text, words, known, hashes)]
        if known:
            spans += _names(text, words, known, hashes)
        if not spans:
            return text
        text = _without(text, spans)


def _without(text: str, spans: list[Span]) -> str:
    """The text with one `___` for each span, or for several that touch."""
    kept: list[str] = []
    end = 0
    for start, stop in sorted(spans):
        if start > end or not kept:
            kept += [text[end:start], CUT]
        end = max(end, stop)
    return "".join([*kept, text[end:]])


# ------------------------------------------------------------------------------------------------------------ words

_TOKEN = re.compile(r"[^\W_]+")
_CHAIN = re.compile(r"[^\W_]+(?:(?:['’ʼ´`./:^_‐‑-]|[-‐]\s*\n\s*)[^\W_]+)+")  # O'Brien, 12-345/6, Okon-⏎kwo
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_LETTERS: dict[int, str | int | None] = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "ħ": "h"})
_UMLAUTS = re.compile(r"([aou])e")
PARTICLES = frozenset("al da de del della der di du el la le mac mc o san st ten ter van vande von zu".split())


def _fold(token: str) -> str:
    """Without case, accents and ligatures."""
    if token.isascii():
        return token.lower()
    parts = unicodedata.normalize("NFKD", token.casefold())
    return "".join(letter for letter in parts if not unicodedata.combining(letter)).translate(_LETTERS)


@cache
def ordinary_words() -> frozenset[str]:
    """Words that stand in reports for what they mean, folded."""
    lines = (files("cyclic_cli") / "assets" / "ordinary_words.txt").read_text(encoding="ascii").split("\n")
    return frozenset(line for line in lines if line[:1] != "#")


def _is_telling(word: str) -> bool:
    return len(word) >= SHORTEST and word not in ordinary_words()


def _letters(value: str) -> list[str]:
    """The words of a value, folded, in their order."""
    return [_fold(token) for token in _TOKEN.findall(_composed(value)) if len(token) > 1 and token.isalpha()]


def _composed(value: str) -> str:
    return value if value.isascii() else unicodedata.normalize("NFC", value).translate(_INVISIBLE)


def _of_words(words: list[str], hashes: "_Hashes") -> Iterator[str]:
    """Fingerprints of the words of one name."""
    parts = [word for word in words if not _is_telling(word)]
    for word in words:
        if _is_telling(word):
            yield from (hashes.of("word ", spelling) + WORD for spelling in _spellings(word))
    yield from (hashes.of("word ", part) + PART for part in parts)
    pairs = combinations(parts, 2) if len(words) <= LONG_NAME else pairwise(parts)
    yield from (hashes.pair(first, second) + PAIR for first, second in pairs if first != second)


def _spellings(word: str) -> set[str]:
    """A folded word, and how it is spelt where its umlauts are not written as such: Mueller is Müller."""
    plain = _UMLAUTS.sub(r"\1", word)
    return {word, plain} if len(plain) > SHORTEST and _is_telling(plain) else {word}


def _joined(value: str, words: list[str]) -> set[str]:
    """Names of several words as one: smithjones, obrien, vandyke, mueller for Müller."""
    chains = {re.sub(r"[\W_]", "", chain) for chain in _CHAIN.findall(_composed(value))}
    whole = {_fold(chain) for chain in chains if chain.isalpha()}
    whole |= {first + second for first, second in pairwise(words) if first in PARTICLES}
    if not value.isascii():
        whole |= set(_letters(_composed(value).lower().translate(str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"}))))
    return {word for word in whole if len(word) > SHORTEST and _is_telling(word)}


class _Token(NamedTuple):
    hash: str
    kind: str  # month, number (a word that announces one), title, or nothing


class _Hashes(dict[str, _Token]):
    """What is to be known of the tokens of texts, found out once for each."""

    def __init__(self, keyer: Keyer) -> None:
        super().__init__()
        self.keyer = keyer

    def __missing__(self, token: str) -> _Token:
        if len(self) >= REMEMBERED:
            self.clear()
        word = _fold(token)
        if any(map(str.isdigit, token)):
            known = _Token(self.of("number ", _number(token)), "")
        else:
            known = _Token(self.of("word ", re.sub(r"[\W_]", "", word)), _KINDS.get(word, ""))
        self[token] = known
        return known

    def of(self, kind: str, text: str) -> str:
        return f"{self.keyer.number(kind + text) % 2**60:015x}"

    def pair(self, first: str, second: str) -> str:
        return self.of("pair ", " ".join(sorted((first, second))))


@lru_cache(maxsize=4)
def _hashes(keyer: Keyer) -> _Hashes:
    return _Hashes(keyer)


# ------------------------------------------------------------------------------------------------------------ names

TITLES = "dr drs mr mrs ms miss prof professor doctor herr herrn frau monsieur madame mme senor senora sra dra"
_GAP = re.compile(r"[ \t]*(?:\r?\n)?[ \t]*|\s?[,^=/\\&_'’‐‑-]{1,3}\s?")  # between two words of one name
_AFTER_INITIAL = re.compile(r"\.?[ \t]*-?|[,^]\s?")
_ENDS_NAME = re.compile(r"\.|\s*(?:[,;:)^\n]|$)")


class _Piece(NamedTuple):
    start: int
    end: int
    word: str
    kind: str  # WORD, PART, `initial`, `title`, or nothing


def _names(text: str, words: set[str], known: dict[str, str], hashes: _Hashes) -> list[Span]:
    """Where words and numbers of identities stand."""
    chains = [chain for chain in _CHAIN.finditer(text) if hashes[chain[0]].hash in known and _is_one(chain[0])]
    chains += _split_names(text, words, known, hashes)
    hits = {word for word in words if hashes[word].hash in known}
    if not hits and not chains:
        return []
    numbers = {word for word in hits if not word.isalpha()}
    pieces = [_piece(match, hits - numbers, known, hashes) for match in _TOKEN.finditer(text)]
    taken = [index for index in range(len(pieces)) if _is_named(pieces, index, text, known, hashes)]
    cut = sorted({*taken, *_initials(pieces, set(taken), text)})
    spans = [match.span() for match in (_TOKEN.finditer(text) if numbers else ()) if match[0] in numbers]
    spans = [span for span in spans if _is_whole_number(text, *span)]
    return [*spans, *(chain.span() for chain in chains), *_runs(pieces, cut, text)]


def _is_one(chain: str) -> bool:
    """Whether words or numbers that are joined may be taken for one: 12.5 is not the number 125."""
    return not any(map(str.isdigit, chain)) or (len(_number(chain)) >= 5 and not re.fullmatch(r"\d+\.\d+", chain))


def _piece(match: re.Match[str], hits: set[str], known: dict[str, str], hashes: _Hashes) -> _Piece:
    token = match[0]
    if token in hits:
        kind = known[hashes[token].hash]
    elif len(token) == 1 and token.isalpha():
        kind = "initial"
    else:
        kind = "title" if hashes[token].kind == "title" else ""
    return _Piece(match.start(), match.end(), token, kind)


def _split_names(text: str, words: set[str], known: dict[str, str], hashes: _Hashes) -> list[re.Match[str]]:
    """`Van Dyke` where a header has VANDYKE."""
    if PARTICLES.isdisjoint(word.lower() for word in words):
        return []
    found = _PARTICLE.finditer(text)
    return [match for match in found if hashes["".join(match[0].split())].hash in known]


_PARTICLE = re.compile(rf"(?<![^\W_])(?:{'|'.join(sorted(PARTICLES))})[ \t]+[^\W_]+", re.IGNORECASE)


def _is_named(pieces: list[_Piece], index: int, text: str, known: dict[str, str], hashes: _Hashes) -> bool:
    """Whether a word names somebody: a part of a name needs another beside it, perhaps past an initial, or a title."""
    here = pieces[index]
    if here.kind != PART:
        return here.kind == WORD
    for step in (-1, 1):
        at = index + step
        while 0 <= at < len(pieces) and _touch(pieces, min(at, at - step), text):
            other = pieces[at]
            if other.kind == "title" and step < 0:
                return True
            if other.kind in (WORD, PART):
                pair = hashes.pair(_fold(here.word), _fold(other.word))
                if other.kind == WORD or pair in known:
                    return True
            if other.kind != "initial":
                break
            at += step
    return False


def _touch(pieces: list[_Piece], first: int, text: str) -> bool:
    """Whether nothing but what joins the words of a name lies between a piece and the next."""
    here, following = pieces[first], pieces[first + 1]
    gap = text[here.end : following.start]
    pattern = _AFTER_INITIAL if here.kind in ("initial", "title") else _GAP
    return len(gap) < 6 and bool(pattern.fullmatch(gap))


def _initials(pieces: list[_Piece], taken: set[int], text: str) -> Iterator[int]:
    """Initials that belong to a name that is cut: `J. R. Okonkwo`, `Okonkwo, J.`"""
    for index in taken:
        before = index - 1
        while before >= 0 and pieces[before].kind == "initial" and _touch(pieces, before, text):
            if not (pieces[before].word.isupper() or text[pieces[before].end] == "."):
                break
            yield before
            before -= 1
        after = index + 1
        while after < len(pieces) and pieces[after].kind == "initial" and pieces[after].word.isupper():
            if not _touch(pieces, after - 1, text) or not _ENDS_NAME.match(text, pieces[after].end):
                break
            yield after
            after += 1


def _runs(pieces: list[_Piece], cut: list[int], text: str) -> Iterator[Span]:
    """Spans of neighbouring words that are cut, with what lies between."""
    start = 0
    for place, index in enumerate(cut):
        last = place + 1 == len(cut) or cut[place + 1] != index + 1 or not _touch(pieces, index, text)
        if last:
            yield pieces[cut[start]].start, pieces[index].end
            start = place + 1


# ---------------------------------------------------------------------------------------------------------- numbers

_UNIT = (
    r"\s?(?:[mcdk]?m[²³23]?|[mdcµu]?[lLgG]|kg|mcg|cc|%|°|HU|k[vV]p?|m?A|mAs|[mcµ]?(?:Sv|Gy)|[MkG]?(?:Bq|Hz)|m?Ci|m?T|msec|"
    r"m?s|sec\w*|mins?|minutes?|hours?|hrs?|h|days?|weeks?|wks?|months?|mos?|years?|yrs?|tage?|wochen|jahren?|jours?|ans|"
    r"mmHg|bpm|IU|units?|mmol|slices?|x|×|fold|degrees?|french|fr|gauge|percent)(?![^\W_])"
)
_FOLLOWED_BY_UNIT = re.compile(_UNIT)
_CLINICAL = re.compile(r"[a-z]{1,2}[1-9]\d?|\d{1,2}[a-z]{1,2}")  # T1, L45, 3D


def _number(token: str) -> str:
    """A number without punctuation, case and leading zeros."""
    return re.sub(r"[\W_]", "", _fold(token)).lstrip("0")


def _numbers(value: str) -> set[str]:
    """Every way a number of an identity may stand in a text, normal."""
    if not any(map(str.isdigit, value)):
        return set()
    tails = re.findall(r"\d[\d/._-]*\d", value)
    whole = {_number(token) for token in (value[:LONGEST_NUMBER], *value.split())}
    parts = {_number(token) for token in (*_TOKEN.findall(value), *_CHAIN.findall(value), *tails)}
    found = whole | {part for part in parts if len(part) > SHORTEST}
    return {number for number in found if len(number) >= SHORTEST and _is_number(number)}


def _is_number(number: str) -> bool:
    return not number.isalpha() and not _CLINICAL.fullmatch(number)


def _is_telling_number(number: str) -> bool:
    """Whether a number of a remark is more than a technical one: five digits, or a word that is not ordinary."""
    long = sum(map(str.isdigit, number)) >= 5
    return long or any(_is_telling(word) for word in re.findall(r"[^\W\d_]+", number))


def _is_whole_number(text: str, start: int, end: int) -> bool:
    """Whether a number of an identity stands for itself: it is no part of a decimal, and a short one has no unit."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    decimal = re.fullmatch(r"\d[.,]", before) or re.fullmatch(r"[.,]\d", after)
    measure = end - start < 5 and _FOLLOWED_BY_UNIT.match(text, end)
    return not decimal and not measure


# ------------------------------------------------------------------------------- what looks like what it is

_B, _E = r"(?<![^\W_])", r"(?![^\W_])"  # not within a word or number; an underscore is no letter
_OLD = re.compile(
    rf"{_B}(?<!\d[.,/-])(?:9\d|1[0-3]\d)(?=(?:\s|-){{0,2}}(?:years?|yrs?|y/?o|y\.o\.|jahren?|j[aä]hrige?\w?|ans|años){_E})"
    rf"|(?:(?<=\bage )|(?<=\baged ))(?:9\d|1[0-3]\d){_E}(?![+.,]\d|\+)",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(r"(?:[a-zA-Z][a-zA-Z+.-]{1,9}://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]]", re.IGNORECASE)
_LONG = re.compile(r"\d{6,}")
_UID = re.compile(rf"\d(?<![^\W_].)(?<!\d[.,].)\d*(?:\.\d+){{3,}}{_E}")
_TELEPHONES = [
    re.compile(r"\+\d[\d ()./-]{6,}\d"),
    re.compile(r"\(\d{2,5}\) ?\d{2,5}(?:[ ./-]?\d{2,5}){1,3}" + _E),
    re.compile(
        r"\d(?<![^\W_].)(?<!\d[./-].)(?:\d\d[ .-]\d{3}[ .-]\d{4}|-\d{3}-\d{3}-\d{4}|\d\d-\d\d-\d{4}|\d\d-\d{4})" + _E
    ),
    re.compile(r"0(?<![^\W_].)(?<!\d[.,/-].)\d{1,4}(?:[ /-]\d{2,}){2,}" + _E),
    re.compile(r"0(?<![^\W_].)(?<!\d[.,/-].)\d{1,4}[ /-]\d{5,}" + _E),
]
ANNOUNCE = (
    "accession acc mrn pid ssn nhs dob tel telephone telefon phone fax pager beeper ext extension mobile patientid "
    "fallnummer aktenzeichen"
)
_ANNOUNCED = re.compile(
    rf"{_B}(?:{'|'.join(ANNOUNCE.split())})[ .:#]*(?:(?:no|nr|number|num|id)[ .:#]*)?((?:[a-z]{{0,4}}[-/]?)?\d[\d/_-]{{2,}}\w*)",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"(?:images?|series|slices?|from|between|ribs?|rippen?|segments?|levels?|teeth|tooth|zones?|rays?|digits?|toes?|fingers?|"
    r"côtes?|costillas?|frames?|grades?|scores?)[ :#(]*$",
    re.IGNORECASE,
)


def _telling_shapes(text: str, words: set[str], hashes: _Hashes) -> Iterator[Span]:
    """Long numbers, telephones, UIDs, addresses of e-mail and the web."""
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))
    if "://" in text or "www." in text.lower():
        yield from (match.span() for match in _URL.finditer(text))
    for match in _LONG.finditer(text):
        start, end = _chain_around(text, *match.span())
        if not re.fullmatch(r"\d{1,3}[.,]\d+", text[start:end]):  # a measure, exact beyond reason
            yield start, end
    yield from (match.span() for match in _UID.finditer(text))
    for pattern in _TELEPHONES:
        for match in pattern.finditer(text):
            if not _FOLLOWED_BY_UNIT.match(text, match.end()) and not _is_counted(text, match.start()):
                yield match.span()
    if any(hashes[word].kind == "number" for word in words):
        yield from (match.span(1) for match in _ANNOUNCED.finditer(text))


def _chain_around(text: str, start: int, end: int) -> Span:
    """The numbers and words that are joined to a number without a space."""
    before = re.search(r"(?:[^\W_]+(?:[-/#:^]|_+|(?<=\d)\.))*[^\W_]*$", text[max(0, start - 64) : start])
    after = re.match(r"[^\W_]*(?:(?:[-/#:^]|_+|\.(?=\d))[^\W_]+)*", text[end : end + 64])
    return start - len(before[0] if before else ""), end + len(after[0] if after else "")


def _is_counted(text: str, start: int) -> bool:
    """Whether what stands before numbers says that they count things."""
    return bool(_COUNTED.search(text[max(0, start - 12) : start]))


# ------------------------------------------------------------------------------------------------------------ dates

MONTHS = (
    "january february march april may june july august september october november december jan feb mar apr jun jul aug sep "
    "sept oct nov dec januar februar märz maerz mai juni juli oktober dezember jän mär mrz okt dez januari februari maart "
    "mei augustus janvier février mars avril juin juillet août septembre octobre novembre décembre janv févr fév juil déc "
    "enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre noviembre diciembre gennaio febbraio "
    "aprile maggio giugno luglio settembre ottobre dicembre janeiro fevereiro março maio junho julho setembro outubro "
    "novembro dezembro"
).split()
_KINDS = (
    {_fold(month): "month" for month in MONTHS}
    | dict.fromkeys(ANNOUNCE.split(), "number")
    | dict.fromkeys(TITLES.split(), "title")
)
_MONTH = rf"(?:{'|'.join(sorted(MONTHS, key=len, reverse=True))})"
_YEAR = r"(?:1[89]|2[01])\d\d"
_ISO = re.compile(rf"{_B}{_YEAR}([-./])(\d\d?)\1(\d\d?)(?:T\d\d[\d:.,Z+-]*)?{_E}")
_NUMERIC = re.compile(rf"\d(?<![^\W_].)(?<!\d[.,/-].)\d?( ?)([-./])( ?)\d\d? ?\2 ?({_YEAR}|\d\d){_E}(?![./-]\d)")
_MONTH_AND_YEAR = re.compile(
    rf"{_B}(?<!\d[.,/-])(?:(?:0?[1-9]|1[0-2]) ?[/-] ?{_YEAR}|(?:0[1-9]|1[0-2])\.{_YEAR}|{_YEAR}[/-](?:0[1-9]|1[0-2])){_E}"
    r"(?![./-]\d)"
)
_TH = r"(?:st|nd|rd|th|er|º|ª|\.)?"
_OF = r"(?:[ \t]*(?:\n[ \t]*)?(?:of|de|del|d['’])?[ \t]*|[-/.])"
_WRITTEN = re.compile(
    rf"{_B}(?P<day>\d\d?){_TH}{_OF}(?P<month>{_MONTH}){_E}\.?(?:(?:[ \t,]*(?:of|de|del)?\s?|[-/.])(?P<year>{_YEAR}|'?\d\d){_E})?"
    rf"|{_B}(?P<month2>{_MONTH}){_E}\.?{_OF}(?:the )?(?P<day2>\d\d?)(?:st|nd|rd|th)?{_E}(?:(?:[ \t,]+|[-/.])(?P<year2>{_YEAR}|'\d\d){_E})?"
    rf"|{_B}(?P<month3>{_MONTH}){_E}[.,]?(?:[ \t]*(?:\n[ \t]*)?(?:of|de|del)?[ \t]*|[-/.])(?P<year3>'?{_YEAR}|'\d\d){_E}",
    re.IGNORECASE,
)
_COMPACT = re.compile(rf"\d(?<![^\W_].)\d?{_MONTH}(?:{_YEAR}|\d\d){_E}", re.IGNORECASE)
_DAY = re.compile(rf"\d(?<![^\W_].)(?<!\d[.,/-].)\d?([-./])\d\d?{_E}(?![./-]\d)")
_ANNOUNCES_DAY = re.compile(
    r"(?:on|from|dated?|of|since|exam|study|until|till|between|and|to|with|by|am|vom|zum|bis|seit|le|du|el|del|al|prior|film|"
    r"radiograph|ct|mri|aufnahme|voraufnahme)(?: the)?[ :(]+$",
    re.IGNORECASE,
)
_VERBS = {"may", "mar", "mars", "march", "oct"}  # and other things that months are


def _dates(text: str, words: set[str], known: dict[str, str], hashes: _Hashes) -> Iterator[Span]:
    """Dates with a year, days of a month written out, and days of the header's dates."""
    for match in _ISO.finditer(text):
        if _is_day(int(match[2]), int(match[3])):
            yield match.span()
    yield from (match.span() for match in _NUMERIC.finditer(text) if _is_numeric_date(text, match))
    for match in _MONTH_AND_YEAR.finditer(text):
        if not _FOLLOWED_BY_UNIT.match(text, match.end()):
            yield match.span()
    yield from (match.span() for match in _COMPACT.finditer(text))
    if any(hashes[word].kind == "month" for word in words):
        yield from (match.span() for match in _WRITTEN.finditer(text) if _is_written_date(text, match))
    if DAY in known.values():
        for match in _DAY.finditer(text):
            if _is_known_day(text, match, known, hashes):
                yield match.span()


def _is_day(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31


def _is_numeric_date(text: str, match: re.Match[str]) -> bool:
    """12/03/2024, and 12/03/24 where it is no list of ribs and no measure."""
    first, second, year = (int(part) for part in re.split(r"[-./]", match[0].replace(" ", "")))
    if not (_is_day(first, second) or _is_day(second, first)):
        return False
    if year > 99:
        return True
    spaced = match[1] or match[3]
    return not spaced and not _is_counted(text, match.start()) and not _FOLLOWED_BY_UNIT.match(text, match.end())


def _is_written_date(text: str, match: re.Match[str]) -> bool:
    """12 March 2024, March 12 and March 2024; `2 MAY REPRESENT` and `OCT 3` are none."""
    day = match["day"] or match["day2"]
    month = match["month"] or match["month2"] or match["month3"]
    year = match["year"] or match["year2"] or match["year3"]
    if day and not 1 <= int(day) <= 31:
        return False
    if year:
        return True
    measured = re.match(r"[.,]\d", text[match.end() :]) or _FOLLOWED_BY_UNIT.match(text, match.end())
    return not measured and (month.lower() not in _VERBS or month.istitle())


def _is_known_day(text: str, match: re.Match[str], known: dict[str, str], hashes: _Hashes) -> bool:
    """12/03, 12.3. or 12-03 of a date in the header, where it cannot be a fraction, a level or a range."""
    first, second = match[0].split(match[1])
    days = [f"{int(month):02}{int(day):02}" for day, month in ((first, second), (second, first))]
    if not any(hashes.of("day ", day) in known for day in days) or _FOLLOWED_BY_UNIT.match(text, match.end()):
        return False
    if re.match(r" of\b", text[match.end() :]) or _is_counted(text, match.start()):
        return False
    padded = match[1] == "/" and len(first) == len(second) == 2 and "0" in (first[0], second[0])
    return padded or bool(_ANNOUNCES_DAY.search(text[max(0, match.start() - 20) : match.start()]))


def _days(value: str) -> set[str]:
    """MMDD of every date in a value; both readings of one that has two."""
    found = [(month, day) for month, day in re.findall(rf"{_B}{_YEAR}[-./]?(\d\d)[-./]?(\d\d)(?:\d{{6}}|{_E})", value)]
    for first, second in re.findall(rf"{_B}(\d\d?)[-./](\d\d?)[-./](?:{_YEAR}|\d\d){_E}", value):
        found += [(first, second), (second, first)]
    return {f"{int(month):02}{int(day):02}" for month, day in found if _is_day(int(month), int(day))}
