"""Finds patterns that may identify a person: dates, telephone numbers, long numbers, UIDs, e-mail and web addresses.

These are the identifiers of the HIPAA Safe Harbor method (45 CFR 164.514(b)(2)) that can be recognised by their form.
Other numbers of reports must stay: vertebral levels (L4/5), lists of ribs (7/8/9), scores, ranges and measurements.

For speed, every pattern either begins with a digit or is tried only at words that may start it.
"""

import re
import unicodedata
from collections.abc import Iterator

Span = tuple[int, int]

MONTHS = (
    "january february march april may june july august september october november december jan feb mar apr jun jul "
    "aug sep sept oct nov dec januar februar märz maerz mai juni juli oktober dezember jän mär mrz okt dez januari "
    "februari maart mei augustus janvier février mars avril juin juillet août septembre octobre novembre décembre "
    "janv févr fév juil déc enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre noviembre "
    "diciembre gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre janeiro fevereiro março maio "
    "junho julho setembro outubro novembro dezembro"
).split()
FEWEST_DIGITS = 4  # digits of the shortest pattern that has only digits: 1/2/24
AMBIGUOUS_MONTHS = {"may", "mar", "mars", "march", "oct"}  # words with other meanings, as a verb or a modality
NUMBER_LABELS = set(
    "accession acc mrn pid ssn nhs dob patientid tel telephone telefon phone fax mobile pager beeper ext "
    "extension".split()
)
"""Words after which even a short number identifies a person."""


def fold(token: str) -> str:
    """A word in lower case, without accents and ligatures."""
    if token.isascii():
        return token.lower()
    parts = unicodedata.normalize("NFKD", token.casefold())
    return "".join(letter for letter in parts if not unicodedata.combining(letter)).translate(_LIGATURES)


_LIGATURES = str.maketrans(dict(zip("æœøłđðþıħ", ("ae", "oe", "o", "l", "d", "d", "th", "i", "h"), strict=True)))
_MONTHS = frozenset(map(fold, MONTHS))


def may_start_pattern(token: str) -> bool:
    """Whether a folded word is a month, the label of a number (MRN), or a date written as one word (12MAR2024)."""
    if token in _MONTHS or token in NUMBER_LABELS:
        return True
    found = _COMPACT.fullmatch(token)
    return bool(found and found[1] in _MONTHS)


# --------------------------------------------------------------------------------------------------------- patterns

# A first digit and an end that are not inside a word or number; underscores do not count as letters.
_FIRST = r"\d(?<![^\W_].)(?<!\d[.,/-].)"
_END = r"(?![^\W_])"
_LAST = _END + r"(?![./-]\d)"
_YEAR = r"(?:1[89]|2[01])\d\d"
_OF = r"(?:[ \t]*(?:\n[ \t]*)?(?:of|de|del|d['’])?[ \t]*|[-/.])"

_ISO = re.compile(_FIRST + r"\d{3}([-./])(\d\d?)(?:\1(\d\d?)(?:T\d\d[\d:.,Z+-]*)?)?" + _LAST)
_NUMERIC = re.compile(_FIRST + rf"\d?( ?)([-./])( ?)\d\d? ?\2 ?({_YEAR}|\d\d)" + _LAST)
_MONTH_AND_YEAR = re.compile(_FIRST + rf"\d? ?([-/.]) ?{_YEAR}" + _LAST)
_COMPACT = re.compile(rf"\d\d?([^\W\d_]{{3,9}})(?:{_YEAR}|\d\d)")
_DAY_FIRST = re.compile(
    rf"({_FIRST}\d?)(?:st|nd|rd|th|er|º|ª|\.)?{_OF}([^\W\d_]{{3,10}}){_END}\.?"
    rf"(?:(?:[ \t,]*(?:of|de|del)?\s?|[-/.])({_YEAR}|'?\d\d){_END})?"
)
_MONTH_FIRST = re.compile(
    rf"[^\W\d_]+\.?{_OF}(?:the )?(\d\d?)(?:st|nd|rd|th)?{_END}(?:(?:[ \t,]+|[-/.])({_YEAR}|'\d\d){_END})?"
)
_MONTH_WITH_YEAR = re.compile(rf"[^\W\d_]+[.,]?{_OF}('?{_YEAR}|'\d\d){_END}")
_DAY = re.compile(_FIRST + r"\d?([-./])\d\d?" + _LAST)

_LONG = re.compile(r"\d{6,}")
_CHAIN_BEFORE = re.compile(r"(?:[^\W_]+(?:[-/#:^]|_+|(?<=\d)\.))*[^\W_]*$")
_CHAIN_AFTER = re.compile(r"[^\W_]*(?:(?:[-/#:^]|_+|\.(?=\d))[^\W_]+)*")
_UID = re.compile(_FIRST + r"\d*(?:\.\d+){3,}" + _END)
_TELEPHONES = [
    re.compile(r"\+\d[\d ()./-]{6,}\d"),
    re.compile(r"\(\d{2,5}\) ?\d{2,5}(?:[ ./-]?\d{2,5}){1,3}" + _END),
    re.compile(_FIRST + r"(?:\d\d[ .-]\d{3}[ .-]\d{4}|-\d{3}-\d{3}-\d{4}|\d\d-\d\d-\d{4}|\d\d-\d{4})" + _LAST),
    re.compile(_FIRST + r"(?<=0)\d{1,4}(?:(?:[ /-]\d{2,}){2,}|[ /-]\d{5,})" + _END),
]
_LABELLED = re.compile(
    r"[^\W_]+[ .:#]*(?:(?:no|nr|number|num|id)[ .:#]*)?((?:[a-z]{0,4}[-/]?)?\d[\d/_-]{2,}\w*)", re.IGNORECASE
)
_EMAIL = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(r"(?:[a-z][a-z+.-]{1,9}://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]]", re.IGNORECASE)

_YEARS_OLD = r"(?:\s|-){0,2}(?:years?|yrs?|y/?o|y\.o\.|jahren?|j[aä]hrige?\w?|ans|años)" + _END
_OLD = re.compile(
    rf"[19](?<![^\W_].)(?<!\d[.,/-].)(?:(?<=9)\d|(?<=1)[0-3]\d)"
    rf"(?:(?={_YEARS_OLD})|(?:(?<=\bage ..)|(?<=\baged ..)|(?<=\bage ...)|(?<=\baged ...)){_END}(?!\+|[.,]\d))",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r"\s?(?:[mcdk]?m[²³23]?|[mdcµu]?[lLgG]|kg|mcg|cc|%|°|HU|k[vV]p?|m?A|mAs|[mcµ]?(?:Sv|Gy)|[MkG]?(?:Bq|Hz)|m?Ci|m?T|"
    r"m?s|msec|sec\w*|mins?|minutes?|hours?|hrs?|h|days?|weeks?|wks?|months?|mos?|years?|yrs?|tage?|wochen|jahren?|"
    r"jours?|ans|mmHg|bpm|IU|units?|mmol|slices?|x|×|fold|degrees?|french|fr|gauge|percent)" + _END,
    re.IGNORECASE,
)
_CLUSTER = re.compile(r"\d[\d ()./-]{2,}\d")
_BEFORE_COUNT = frozenset(
    "image images series slice slices from between rib ribs rippe rippen segment segments level levels teeth tooth "
    "zone zones ray rays digit digits toe toes finger fingers cote cotes costilla costillas frame frames grade "
    "score".split()
)
_BEFORE_DAY = frozenset(
    "on from date dated of since exam study until till between and to with by am vom zum bis seit le du el del al "
    "prior film radiograph ct mri aufnahme voraufnahme".split()
)


# ----------------------------------------------------------------------------------------------------------- search


def pattern_spans(text: str, starts: list[str]) -> Iterator[Span]:
    """The positions of patterns that may identify a person; spans may overlap.

    Args:
        text: A report.
        starts: The words of the report for which `may_start_pattern` is true.
    """
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))
    if "://" in text or "www." in text.lower():
        yield from (match.span() for match in _URL.finditer(text))
    if any(sum(map(str.isdigit, cluster)) >= FEWEST_DIGITS for cluster in _CLUSTER.findall(text)):
        yield from _numbers(text)
        yield from _dates(text)
    if starts:
        yield from _day_month_dates(text)
    for word in starts:
        for position in positions(text, word):
            yield from _starting_at(text, position, word)


def without_ages(text: str) -> str:
    """The text with `90+` in place of ages over 89, as the Safe Harbor method requires."""
    return _OLD.sub("90+", text)


def is_measurement(text: str, end: int) -> bool:
    """Whether a unit follows the number that ends at position `end`."""
    return bool(_UNIT.match(text, end))


def days(text: str) -> Iterator[tuple[Span, set[str]]]:
    """The positions of possible dates without a year (12/03, `on 12.3.`), each with its readings as MMDD.

    Numbers that may also be a fraction, a vertebral level or a range count as dates only after a word such as `on`.
    """
    for match in _DAY.finditer(text):
        first, second = match[0].split(match[1])
        padded = match[1] == "/" and len(first) == len(second) == 2 and "0" in (first[0], second[0])
        if not padded and _word_before(text, match.start()) not in _BEFORE_DAY:
            continue
        if not is_measurement(text, match.end()) and text[match.end() : match.end() + 4].lower() != " of ":
            yield match.span(), _readings(first, second)


def days_of(value: str) -> set[str]:
    """The days of all dates in a header's value or a table's cell, as MMDD; an ambiguous date gives both readings."""
    found: set[str] = set()
    for month, day in re.findall(rf"(?<!\d){_YEAR}[-./]?(\d\d)[-./]?(\d\d)(?:\d{{6}}|{_END})", value):
        found |= {month + day} if _is_day(int(month), int(day)) else set()
    for first, second in re.findall(rf"(?<!\d)(\d\d?)[-./](\d\d?)[-./](?:{_YEAR}|\d\d){_END}", value):
        found |= _readings(first, second)
    return found


def _readings(first: str, second: str) -> set[str]:
    pairs = [(int(first), int(second)), (int(second), int(first))]
    return {f"{month:02}{day:02}" for month, day in pairs if _is_day(month, day)}


def _is_day(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31


def _is_counted(text: str, start: int) -> bool:
    """Whether the word before a number, such as `rib` or `image`, shows that it is a count or an index."""
    return _word_before(text, start) in _BEFORE_COUNT


def _word_before(text: str, position: int) -> str:
    return fold("".join(text[max(0, position - 16) : position].rstrip(" \t\n:#(").split()[-1:]))


def positions(text: str, word: str) -> Iterator[int]:
    """The positions at which a word begins."""
    position = text.find(word)
    while position >= 0:
        if not (position and text[position - 1].isalnum()):
            yield position
        position = text.find(word, position + 1)


def _numbers(text: str) -> Iterator[Span]:
    """Long numbers with the letters and punctuation joined to them, UIDs and telephone numbers."""
    for match in _LONG.finditer(text):
        start, end = match.span()
        start -= len(_CHAIN_BEFORE.search(text[max(0, start - 64) : start])[0])  # type: ignore[index]
        end += len(_CHAIN_AFTER.match(text[end : end + 64])[0])  # type: ignore[index]
        if not re.fullmatch(r"\d{1,3}[.,]\d+", text[start:end]):  # a measurement with many decimals
            yield start, end
    yield from (match.span() for match in _UID.finditer(text))
    for pattern in _TELEPHONES:
        for match in pattern.finditer(text):
            if not is_measurement(text, match.end()) and not _is_counted(text, match.start()):
                yield match.span()


def _dates(text: str) -> Iterator[Span]:
    """Dates that begin with a digit."""
    for match in _ISO.finditer(text):
        if 1800 <= int(match[0][:4]) < 2200 and _is_day(int(match[2]), int(match[3] or 1)):
            yield match.span()
    yield from (match.span() for match in _NUMERIC.finditer(text) if _is_numeric_date(text, match))
    for match in _MONTH_AND_YEAR.finditer(text):
        month = match[0].split(match[1])[0].strip()
        if 1 <= int(month) <= 12 and (match[1] != "." or len(month) == 2) and not is_measurement(text, match.end()):
            yield match.span()


def _is_numeric_date(text: str, match: re.Match[str]) -> bool:
    """Whether a match is a date: 12/03/2024 always, 12/03/24 unless it may be a list of ribs or a measurement."""
    first, second, year = re.split(r"[-./]", match[0].replace(" ", ""))
    if not _readings(first, second):
        return False
    spaced = match[1] or match[3]
    return len(year) == 4 or not (spaced or _is_counted(text, match.start()) or is_measurement(text, match.end()))


def _day_month_dates(text: str) -> Iterator[Span]:
    """Dates with the day before the name of the month: `12 March` and `12th of March, 2024`."""
    for match in _DAY_FIRST.finditer(text):
        if fold(match[2]) in _MONTHS and _is_day_of_month(text, match, match[1], match[2], match[3]):
            yield match.span()


def _starting_at(text: str, position: int, word: str) -> Iterator[Span]:
    """The pattern at a word: `March 12, 2024`, `March 12`, `March 2024`, `12MAR2024`, or the number after a label."""
    if word[0].isdigit():
        yield position, position + len(word)
        return
    if fold(word) not in _MONTHS:
        if match := _LABELLED.match(text, position):
            yield match.span(1)
        return
    match = _MONTH_FIRST.match(text, position)
    if not match or not _is_day_of_month(text, match, match[1], word, match[2]):
        match = _MONTH_WITH_YEAR.match(text, position)
    if match:
        yield match.span()


def _is_day_of_month(text: str, match: re.Match[str], day: str, month: str, year: str | None) -> bool:
    """Whether a match is a date: `12 March` is one, `NODULES 1 AND 2 MAY REPRESENT` and `OCT 3 mm` are not."""
    if not 1 <= int(day) <= 31:
        return False
    if year:
        return True
    measurement = is_measurement(text, match.end()) or re.match(r"[.,]\d", text[match.end() : match.end() + 2])
    return not measurement and (fold(month) not in AMBIGUOUS_MONTHS or month.istitle())
