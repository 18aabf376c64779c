"""Recognises columns of a table that hold names, numbers or dates by their cells, whatever their heading.

The first rows of the table are judged. A column holds

    dates     where most cells are written as a date
    numbers   where most cells are a number of five digits or more, as a measurement is not
    names     where most cells are a few capitalised words that are neither ordinary words nor German nouns, and these
              words stand in the reports of their own rows only, or stand in no report but differ from row to row

Findings, views and modalities are ordinary words, or stand in the reports of many rows. Columns whose heading says that
they describe the image are never taken (`identity_headings.is_clinical`).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from cyclic_cli.prepare.identity_headings import is_clinical
from cyclic_cli.privacy.vocabulary import german_nouns
from cyclic_cli.privacy.words import fold, ordinary_words

SAMPLED = 200  # rows
MOST = 0.8  # share of the cells of a column that must look alike
FEWEST_UNSEEN = 10  # rows from which on names count that no report repeats
MOST_IN_OTHER_REPORTS = 0.1  # share of the other rows' reports that have a word of a name
MOST_WORDS = 6  # of a name
SHORTEST = 3  # letters of a word that counts

_DATE = re.compile(
    r"(?:(?:19|20)\d\d([-./])\d{1,2}\1\d{1,2}|\d{1,2}([-./])\d{1,2}\2(?:19|20)?\d\d|(?:19|20)\d\d(?:0\d|1[0-2])[0-3]\d|"
    r"(?:19|20)\d\d年\d{1,2}月\d{1,2}日)(?:[T ,].{0,20})?"
)
_NUMBER = re.compile(
    r"(?=(?:\D*\d){5})(?!\d+[,/]\d+$)[A-Za-z]{0,5}[-/. ]?\d[\d/ -]*[A-Za-z]?(?:\.0)?|(?=(?:\D*\d){3})[A-Z\d]{7,20}|"
    r"\d+(?:\.\d+){3,}"
)
"""Numbers of five digits that are no decimals and no ratios (120/80), mixtures of capitals and digits, and UIDs."""
_WORD = re.compile(r"[^\W\d_]+")
_NAME = re.compile(r"[^\W\d_](?:[^\W\d_]|[ .,'’´`^=·・/-]|[\u0300-\u036f\u0e31-\u0e4e\u093e-\u094d])*")


def identifying_contents(headings: Sequence[str], texts: Sequence[str], rows: Iterable[dict[str, Any]]) -> list[str]:
    """The columns whose cells identify a person.

    Args:
        headings: The columns that are judged.
        texts: The columns of the report.
        rows: The table's rows, of which the first `SAMPLED` are read.
    """
    judged = [heading for heading in headings if not is_clinical(heading)]
    if not judged:
        return []
    sample = list(islice(rows, SAMPLED))
    reports = _Reports([" ".join(str(row.get(text) or "") for text in texts) for row in sample])
    cells = {heading: [str(row.get(heading) or "").strip() for row in sample] for heading in judged}
    return [heading for heading in judged if _is_identifying(cells[heading], reports)]


class _Reports:
    """The reports of the sampled rows, and in which rows each of their words stands."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._rows: dict[str, set[int]] = defaultdict(set)
        for row, text in enumerate(texts):
            for word in set(_WORD.findall(text)):
                self._rows[fold(word)].add(row)

    def with_word(self, word: str) -> set[int]:
        """The rows whose report has a folded word; one in a script without spaces may be part of a longer word."""
        if not word.isascii() and not any(map(str.isupper, word.upper())):
            return {row for row, text in enumerate(self._texts) if word in text}
        return self._rows.get(word, set())


def _is_identifying(cells: list[str], reports: _Reports) -> bool:
    """Whether the cells of a column, one per row, are dates, numbers or names."""
    filled = {row: cell for row, cell in enumerate(cells) if cell}
    if not filled:
        return False
    values = set(filled.values())
    if _most(values, _DATE.fullmatch) or _most(values, _NUMBER.fullmatch):
        return len(values) > 1 or len(filled) == 1
    return _most(values, _may_be_name) and _are_of_their_rows(filled, reports)


def _most(values: set[str], test: Any) -> bool:
    return sum(bool(test(value)) for value in values) >= MOST * len(values)


def _may_be_name(cell: str) -> bool:
    """Whether a cell is a few words, each with a capital or in a script without capitals, not all of them ordinary."""
    words = _WORD.findall(cell)
    if not 0 < len(words) <= MOST_WORDS or not _NAME.fullmatch(cell):
        return False
    capitalised = sum(not word[0].islower() for word in words)
    return 2 * capitalised > len(words) and bool(_unusual(cell))


def _unusual(cell: str) -> list[str]:
    """The folded words of a cell that are neither short nor part of the vocabulary."""
    words = [fold(word) for word in _WORD.findall(cell) if len(word) >= SHORTEST or not word.isascii()]
    words = [word for word in words if word not in ordinary_words()]
    return [word for word in words if word not in german_nouns()] if words else []


def _are_of_their_rows(cells: dict[int, str], reports: _Reports) -> bool:
    """Whether the words of cells stand in the reports of their own rows only, or in none but differ between rows."""
    own = others = compared = 0
    for row, cell in cells.items():
        same = {other for other, value in cells.items() if value == cell}
        for word in _unusual(cell):
            rows = reports.with_word(word)
            own += row in rows
            others += len(rows - same)
            compared += len(cells) - len(same)
    if others > MOST_IN_OTHER_REPORTS * compared:
        return False
    distinct = len(set(cells.values()))
    return (own > 0 and 2 * distinct >= min(len(cells), FEWEST_UNSEEN)) or distinct >= max(
        FEWEST_UNSEEN, MOST * len(cells)
    )
