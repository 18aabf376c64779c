"""Finds dates, in the languages of the Unicode CLDR and in scripts with other digits.

Dates are identifiers by the HIPAA Safe Harbor method (45 CFR 164.514(b)(2)(i)(C)), except for the year alone. The names
of months are those of the CLDR (`assets/months.txt`). Numbers that look like a date but may be a fraction, a vertebral
level or a score (5/6) are dates only if what stands before them announces a date.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from cyclic_cli.privacy.words import (
    END,
    FIRST,
    LAST,
    Span,
    fold,
    is_counted,
    is_measurement,
    ordinary_words,
    word_before,
)

MONTHS = (
    "january february march april may june july august september october november december jan feb mar apr jun jul "
    "aug sep sept oct nov dec januar februar märz maerz mai juni juli oktober dezember jän mär mrz okt dez januari "
    "februari maart mei augustus janvier février mars avril juin juillet août septembre octobre novembre décembre "
    "janv févr fév juil déc enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre noviembre "
    "diciembre gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre janeiro fevereiro março maio "
    "junho julho setembro outubro novembro dezembro"
).split()
"""Months that need no year beside a day, though some are short or also ordinary words."""
AMBIGUOUS_MONTHS = {"may", "mar", "mars", "march", "oct"}  # words with other meanings, as a verb or a modality
SHORTEST_MONTH = 4  # letters of a month of `assets/months.txt` that needs no year
_ROMAN = frozenset("i ii iii iv v vi vii viii ix x xi xii".split())


# ------------------------------------------------------------------------------------------------------------ months


@cache
def _certain_months() -> frozenset[str]:
    """Folded months that make a date with a day alone."""
    common = _asset().partition("\n\n")[0].splitlines()
    certain = {fold(month) for month in common if _is_folded(month) and len(month) >= SHORTEST_MONTH}
    return frozenset(map(fold, MONTHS)) | (certain - ordinary_words())


@cache
def _months() -> frozenset[str]:
    """All folded months; most make a date only with a day and a year, because their language is not known."""
    return _certain_months() | {fold(month) for month in _asset().split("\n") if _is_folded(month)}


@cache
def _first_words() -> frozenset[str]:
    """The first words of months of several words (Deireadh Fómhair)."""
    return frozenset(re.split(_BETWEEN_WORDS, month)[0] for month in _months() if re.search(_BETWEEN_WORDS, month))


@cache
def _month_with_marks() -> re.Pattern[str]:
    """A pattern of the months with vowel signs or dots inside, which are not words for `re` (มี.ค., मार्च)."""
    months = sorted((month for month in _asset().split("\n") if month and not _is_folded(month)), key=len, reverse=True)
    return re.compile("(?:" + "|".join(map(re.escape, months)) + r")\.?", re.IGNORECASE)


def _asset() -> str:
    text = (files("cyclic_cli") / "assets" / "months.txt").read_text(encoding="utf-8")
    return text[text.rindex("#") :].partition("\n")[2]


def _is_folded(month: str) -> bool:
    return bool(month) and all(map(str.isalnum, re.split(_BETWEEN_WORDS, month)))


_BETWEEN_WORDS = r"[ '’-]"
_WORD = re.compile(r"[^\W\d_]+")
_PHRASE = re.compile(rf"[^\W\d_]+(?:{_BETWEEN_WORDS}[^\W\d_]+){{0,3}}")
_MARKED_LETTER = re.compile("[\u0700-\u1cff]")  # scripts with vowel signs


def _month_at(text: str, position: int) -> tuple[str, int] | None:
    """The folded month that begins at a position, and its end."""
    if _MARKED_LETTER.match(text, position):
        marked = _month_with_marks().match(text, position)
        return (marked[0], marked.end()) if marked else None
    word = _WORD.match(text, position)
    if not word:
        return None
    first = fold(word[0])
    if first in _first_words():
        phrase = _PHRASE.match(text, position)
        assert phrase  # it begins with the word
        ends = [match.end() for match in _WORD.finditer(phrase[0])]
        for end in reversed(ends[1:]):
            if fold(phrase[0][:end]) in _months():
                return fold(phrase[0][:end]), position + end
    for month in (first, first.removeprefix("ב")):  # Hebrew joins `in` to the month
        if month in _months():
            return month, word.end()
    return None


def is_month(token: str) -> bool:
    """Whether a folded word is a month, or a date written as one word (12MAR2024)."""
    if token in _months() or token.removeprefix("ב") in _months() or token in _first_words():
        return True
    found = _COMPACT.fullmatch(token)
    return bool(found and found[1] in _months())


def is_roman(token: str) -> bool:
    """Whether a folded word is the Roman numeral of a month."""
    return token in _ROMAN


# --------------------------------------------------------------------------------------------------------- patterns

_YEAR = r"(?:1[89]|2[01])\d\d"
_ANY_YEAR = r"(?:1[3489]|2[0145])\d\d"  # also of the Persian, Islamic and Buddhist calendars
_OF = r"(?:[ \t]*(?:\n[ \t]*)?(?:(?:of|del?|d[aio]|den|من)\b|d['’])?[ \t]*|[-/.])"
_ORDINAL = r"(?:st|nd|rd|th|er|ᵉʳ?|[eè]me|:?[ae]|[ºª°]|-?(?:го|е)|η|\.)?"
_OF_YEAR = r"[rгр]?"  # Polish, Russian and Ukrainian write 12.03.2024r.

_ISO = re.compile(FIRST + r"\d{3}([-./])(\d\d?)(?:\1(\d\d?)(?:T\d\d[\d:.,Z+-]*)?)?" + END + r"(?![.-]\d|/\d{3})")
_NUMERIC = re.compile(
    FIRST
    + rf"\d?( ?)([-./])( ?)\d\d? ?\2 ?(?:{_ANY_YEAR}{_OF_YEAR}{END}(?!\.\d+\.|[./]\d{{3}})|(?:{_ANY_YEAR}|\d\d){LAST})"
)
_BLANKS = re.compile(FIRST + rf"\d \d\d {_YEAR}" + LAST)
_MONTH_AND_YEAR = re.compile(FIRST + rf"\d? ?([-/.]) ?{_YEAR}{_OF_YEAR}" + LAST)
_COMPACT = re.compile(rf"\d\d?([^\W\d_]{{3,9}})(?:{_YEAR}|\d\d)")
_DAY_BEFORE_MONTH = re.compile(rf"({FIRST}\d?){_ORDINAL}{_OF}(?=[^\W\d_])")
_YEAR_AFTER_MONTH = re.compile(
    rf"[\u064b-\u0655]?\.?(?:(?:[ \t,]*(?:of|del?|do)?\s?|[-/.])({_ANY_YEAR}|'?\d\d){_OF_YEAR}{END}(?!-[^\W\d_]))?"
)
_YEAR_BEFORE_MONTH = re.compile(FIRST + r"(?<=[12])\d{3}\.?(?:e?ko)?(?: (?:m\.|gada))?[ .,/-]{1,2}(?=[^\W\d_])")
_DAY_AFTER_MONTH = re.compile(rf"\.?(?: ?[-/.] ?|\s)(\d\d?)(?:-?[^\W\d_]{{1,3}})?{END}")
_MONTH_FIRST = re.compile(
    rf"[^\W\d_]+\.?{_OF}(?:the )?(\d\d?)(?:st|nd|rd|th)?{END}(?:(?:[ \t,]+|[-/.])({_YEAR}|'\d\d){END})?"
)
_MONTH_WITH_YEAR = re.compile(rf"[^\W\d_]+[.,]?{_OF}('?{_YEAR}|'\d\d){END}")
_AROUND_ROMAN = re.compile(
    rf"{FIRST}\d?(?P<gap> ?[-./] ?| )(?P<month>[ivx]+)(?P=gap)(?:{_ANY_YEAR}|(?<! )\d\d){_OF_YEAR}{LAST}", re.IGNORECASE
)
_YEAR_AFTER_ROMAN = re.compile(rf"/(?<=[IVX]/){_YEAR}{LAST}")
_ROMAN_BEFORE = re.compile(r"(?<![^\W_])(?<![-./])[IVX]+\Z")
_NUMBER = r"(?:\d{1,4}|[〇零一二三四五六七八九十]{1,4}|元)"
_CHINESE = re.compile(
    rf"(?<!\d)(?:平成|令和|昭和|民國|民国)?(?P<year>{_NUMBER}\s?[年년]\s?)?{_NUMBER}\s?[月월](?P<day>\s?{_NUMBER}\s?[日号號일])?"
)
_VIETNAMESE = re.compile(
    r"(?:ngày\s)?\d\d?\s(?:tháng|thg)\s\d\d?,?\s(?:năm\s)?\d{4}|ngày\s\d\d?\stháng\s\d\d?|tháng\s\d\d?\snăm\s\d{4}",
    re.IGNORECASE,
)
_DAY = re.compile(FIRST + r"\d?([-./])\d\d?" + LAST)

_DAYS = re.compile(
    rf"((?P<first>{FIRST}\d?)(?P<separator>[-./])(?P<second>\d\d?))\.?"
    rf" (?:to|till|until|bis|au|al|hasta|até|a|tot|t/m|do|до|по) ((?P<third>\d\d?)(?P=separator)(?P<fourth>\d\d?))"
    + LAST
)
_BEFORE_DAY = frozenset(
    "on from date dated of since exam study until till between and to with by am vom zum bis seit le du el del al "
    "prior film radiograph ct mri aufnahme voraufnahme".split()
)
_ANNOUNCES_DAY = frozenset(
    "on from dated date since until till between exam study film radiograph ct mri cxr "
    "am vom zum bis seit ab dem den voraufnahme aufnahme "
    "le du au depuis el al del desde hasta fecha dia il dal sinds vanaf op tot dd "
    "em desde ate dia data dnia dn od с от den".split()
)
"""Words before a day and month in English, German, French, Spanish, Italian, Dutch, Portuguese, Polish and Russian."""
_MONTH_BEFORE_DAY = frozenset(
    "on from dated date since until till between exam study film radiograph ct mri cxr".split()
)
_DAY_AS_ORDINAL = frozenset("am vom zum seit ab".split())  # German: `am 1.2.` is a date
_ABOUT_SCORE = re.compile(
    r"(?:glasgow|gcs|eva|vas|nrs|apgar|scor|skala|scale|escala|pain|dolor|dor |douleur|schmerz|kraft|force|power|"
    r"strength)[^.\n]*\Z",
    re.IGNORECASE,
)
_OF_THOSE = re.compile(
    r" (?:of|der|des|dos|degli|delle|van de|images?|slices?|views?|nodes?|lymph\w*)\b", re.IGNORECASE
)
_TO_ANOTHER_DAY = re.compile(r"___[.,]? ?(?:-|to|till|until|bis|au|al|hasta|até|tot|do|до) ?\Z")
_AND_ANOTHER_DAY = re.compile(r"___[.,]? ?(?:,|and|und|et|y|e|en|i|и) ?\Z")


# ------------------------------------------------------------------------------------------------------------ search


def numeric_dates(text: str) -> Iterator[Span]:
    """Dates of numbers only."""
    for match in _ISO.finditer(text):
        year = int(match[0][:4])
        other_calendar = match[3] and (1300 <= year < 1500 or 2400 <= year < 2600)
        if (1800 <= year < 2200 or other_calendar) and _is_day(int(match[2]), int(match[3] or 1)):
            yield match.span()
    yield from (match.span() for match in _NUMERIC.finditer(text) if _is_numeric_date(text, match))
    for match in _BLANKS.finditer(text):
        if _readings(*match[0].split()[:2]) and not is_counted(text, match.start()):
            yield match.span()
    for match in _MONTH_AND_YEAR.finditer(text):
        month = match[0].split(match[1])[0].strip()
        if 1 <= int(month) <= 12 and (match[1] != "." or len(month) == 2) and not is_measurement(text, match.end()):
            yield match.span()


def dates_with_day_before_month(text: str) -> Iterator[Span]:
    """Dates with the name of a month after the day or after the year: `12th of March, 2024`, `2024. március 12.`"""
    for match in _DAY_BEFORE_MONTH.finditer(text):
        if found := _month_at(text, match.end()):
            month, end = found
            after = _YEAR_AFTER_MONTH.match(text, end)
            assert after  # it may be empty
            word = text[match.end() : end]
            if _is_day_of_month(text, after.end(), match[1], month, word, after[1]):
                yield match.start(), after.end()
    for match in _YEAR_BEFORE_MONTH.finditer(text):
        if found := _month_at(text, match.end()):
            month, end = found
            if (day := _DAY_AFTER_MONTH.match(text, end)) and 1 <= int(day[1]) <= 31:
                yield match.start(), day.end()
            elif month in _certain_months():
                yield match.start(), end


def dates_at(text: str, position: int, word: str) -> Iterator[Span]:
    """The date that begins with a month (`March 12, 2024`, `March 2024`) or that is one word (`12MAR2024`)."""
    if word[0].isdigit():
        yield position, position + len(word)
        return
    month = fold(word)
    if month not in _certain_months():
        return
    match = _MONTH_FIRST.match(text, position)
    if not match or not _is_day_of_month(text, match.end(), match[1], month, word, match[2]):
        match = _MONTH_WITH_YEAR.match(text, position)
    if match:
        yield match.span()


def dates_with_roman_month(text: str) -> Iterator[Span]:
    """Dates such as 12.III.2024 and III/2024; between blanks, the year has four digits."""
    for match in _YEAR_AFTER_ROMAN.finditer(text):
        month = _ROMAN_BEFORE.search(text, max(0, match.start() - 5), match.start())
        if month and month[0].lower() in _ROMAN:
            yield month.start(), match.end()
    for match in _AROUND_ROMAN.finditer(text):
        if match["month"].lower() in _ROMAN and 1 <= int(re.match(r"\d+", match[0])[0]) <= 31:  # type: ignore[index]
            yield match.span()


def dates_of_other_scripts(text: str) -> Iterator[Span]:
    """Chinese, Japanese, Korean and Vietnamese dates, and dates with a month whose letters have marks."""
    if "月" in text or "월" in text:
        yield from (match.span() for match in _CHINESE.finditer(text) if match["year"] or match["day"])
    if "tháng" in text.lower():
        yield from (match.span() for match in _VIETNAMESE.finditer(text))
    if _MARKED_LETTER.search(text):
        yield from dates_with_day_before_month(text)


def ranges_of_days(text: str) -> Iterator[Span]:
    """Both ends of a range of days, as in `24-07 tot 19-11`, where neither can be a level or a score."""
    for match in _DAYS.finditer(text):
        ends = (match.group("first", "second"), match.group("third", "fourth"))
        announced = match["separator"] != "." or word_before(text, match.start()) in _ANNOUNCES_DAY
        certain = all(_readings(*end) and (max(map(int, end)) > 12 or "0" in (end[0][0], end[1][0])) for end in ends)
        if announced and certain and not is_measurement(text, match.end()) and not _OF_THOSE.match(text, match.end()):
            yield match.span(1)
            yield match.span(5)


def announced_days(text: str) -> Iterator[Span]:
    """Days and months without a year that cannot be a level or a score: `from 02/27 to 3/15`, `vom 27.02. bis 3.3.`

    One number has a leading zero or is above 12, and a word such as `on` stands before it.
    """
    for match in _DAY.finditer(text):
        if match[1] != "-" and _is_announced(text, match):
            yield match.span()


def days(text: str) -> Iterator[tuple[Span, set[str]]]:
    """The positions of possible dates without a year (12/03, `on 12.3.`), each with its readings as MMDD.

    Numbers that may also be a fraction, a vertebral level or a range count as dates only after a word such as `on`.
    """
    for match in _DAY.finditer(text):
        first, second = match[0].split(match[1])
        padded = match[1] == "/" and len(first) == len(second) == 2 and "0" in (first[0], second[0])
        if not padded and word_before(text, match.start()) not in _BEFORE_DAY:
            continue
        if not is_measurement(text, match.end()) and text[match.end() : match.end() + 4].lower() != " of ":
            yield match.span(), _readings(first, second)


def days_of(value: str) -> set[str]:
    """The days of all dates in a header's value or a table's cell, as MMDD; an ambiguous date gives both readings."""
    found: set[str] = set()
    for month, day in re.findall(rf"(?<!\d){_YEAR}[-./]?(\d\d)[-./]?(\d\d)(?:\d{{6}}|{END})", value):
        found |= {month + day} if _is_day(int(month), int(day)) else set()
    for first, second in re.findall(rf"(?<!\d)(\d\d?)[-./](\d\d?)[-./](?:{_YEAR}|\d\d){END}", value):
        found |= _readings(first, second)
    return found


# ------------------------------------------------------------------------------------------------------------- rules


def _readings(first: str, second: str) -> set[str]:
    pairs = [(int(first), int(second)), (int(second), int(first))]
    return {f"{month:02}{day:02}" for month, day in pairs if _is_day(month, day)}


def _is_day(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31


def _is_numeric_date(text: str, match: re.Match[str]) -> bool:
    """Whether a match is a date: 12/03/2024 always, 12/03/24 unless it may be a list of ribs or a measurement."""
    first, second, year = re.split(r"[-./]", match[0].replace(" ", ""))
    if not _readings(first, second):
        return False
    spaced = match[1] or match[3]
    return len(year) >= 4 or not (spaced or is_counted(text, match.start()) or is_measurement(text, match.end()))


def _is_day_of_month(text: str, end: int, day: str, month: str, word: str, year: str | None) -> bool:
    """Whether a match is a date: `12 March` is one, `NODULES 1 AND 2 MAY REPRESENT` and `OCT 3 mm` are not.

    Args:
        text: The text.
        end: The end of the match.
        day: Its day.
        month: Its folded month.
        word: The month as it is written.
        year: The year, if the match has one.
    """
    if not 1 <= int(day) <= 31:
        return False
    if year and (len(year) == 4 or month in _certain_months()):
        return True
    if _MARKED_LETTER.match(word):
        return len(word) > SHORTEST_MONTH
    measurement = is_measurement(text, end) or re.match(r"[.,]\d", text[end : end + 2])
    return not measurement and month in _certain_months() and (month not in AMBIGUOUS_MONTHS or word.istitle())


def _is_announced(text: str, match: re.Match[str]) -> bool:
    """Whether a day and month without a year follow a word that announces a date, and can be nothing else."""
    first, second = match[0].split(match[1])
    start, end = match.span()
    dotted = match[1] == "."
    if not _readings(first, second) or (dotted and text[end : end + 1] != "."):
        return False
    before = text[max(0, start - 24) : start]
    if _TO_ANOTHER_DAY.search(before):
        announced = True
    elif dotted and (before.endswith("(") or not before.strip(" \t") or before.rstrip(" \t").endswith("\n")):
        announced = len(first) == len(second) == 2
    else:
        announced = _is_only_day(first, second, dotted, _announcement(text, start, before))
    if not announced or is_measurement(text, end):
        return False
    return not (_OF_THOSE.match(text, end) or _ABOUT_SCORE.search(before))


def _announcement(text: str, start: int, before: str) -> str:
    """The word that announces a day, also for the second of two days (`am ___. und 3.3.`)."""
    if another := _AND_ANOTHER_DAY.search(before):
        return "am" if "." in another[0] else "on"
    word = word_before(text, start).rstrip(".,")
    return word if word in _ANNOUNCES_DAY else ""


def _is_only_day(first: str, second: str, dotted: bool, announcement: str) -> bool:
    """Whether the numbers after an announcement are a day and a month: 27.02., 02/27 and 5/03 are, 4/5 is not."""
    if not announcement:
        return False
    if dotted and announcement in (_DAY_AS_ORDINAL | _MONTH_BEFORE_DAY):
        return announcement in _DAY_AS_ORDINAL or len(first) == len(second) == 2
    return int(first) > 12 or (int(second) > 12 and announcement in _MONTH_BEFORE_DAY) or "0" in (first[0], second[0])
