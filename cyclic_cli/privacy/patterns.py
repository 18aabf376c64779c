"""Finds what may identify a person by its form or by the words beside it: dates, numbers, addresses and people.

These are the identifiers of the HIPAA Safe Harbor method (45 CFR 164.514(b)(2)) that can be recognised without knowing
the person. For speed, every pattern either begins with a digit or is tried only at words that may start it.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

from cyclic_cli.privacy import dates, numbers, people, places
from cyclic_cli.privacy.words import Span, fold, number_view, plain_view, positions


def may_start_pattern(token: str) -> bool:
    """Whether a folded word is a month, the label of a number (MRN), a street, or may stand beside a name."""
    return (
        dates.is_month(token)
        or dates.is_roman(token)
        or numbers.is_label(token)
        or people.may_name_person(token)
        or places.may_be_in_address(token)
    )


def pattern_spans(text: str, starts: list[str]) -> Iterator[Span]:
    """The positions of patterns that may identify a person; spans may overlap.

    Args:
        text: A report.
        starts: The words of the report for which `may_start_pattern` is true.
    """
    plain = plain_view(text)
    view = number_view(plain)
    yield from places.web_addresses(plain)
    yield from places.british_postcodes(view)
    yield from dates.announced_days(view)
    yield from dates.ranges_of_days(view)
    if numbers.has_long_cluster(view):
        yield from numbers.numbers(view)
        yield from dates.numeric_dates(view)
        yield from places.postcodes(view)
    if not text.isascii():
        yield from dates.dates_of_other_scripts(plain)
        yield from numbers.numbers_after_unspaced_labels(plain)
    folded = [fold(word) for word in starts]
    if any(map(dates.is_month, folded)):
        yield from dates.dates_with_day_before_month(plain)
    if any(dates.is_roman(token) for token, word in zip(folded, starts, strict=True) if word != "x"):  # 3 x 4 cm
        yield from dates.dates_with_roman_month(plain)
    for word in starts:
        for search in _searches(word):
            for position in positions(text, word):
                yield from search(plain, position, word)


@lru_cache(maxsize=2**14)
def _searches(word: str) -> tuple[Callable[[str, int, str], Iterator[Span]], ...]:
    """The functions that look for a pattern at a word, given the plain view, the word's position and the word."""
    token = fold(word)
    tests = {
        dates.dates_at: dates.is_month,
        numbers.numbers_at: numbers.is_label,
        people.people_at: people.may_name_person,
        places.streets_at: places.may_be_in_address,
    }
    return tuple(search for search, is_start in tests.items() if is_start(token))


def without_ages(text: str) -> str:
    """The text with `90+` in place of ages over 89, as the Safe Harbor method requires."""
    plain = plain_view(text)
    for start, end in sorted(numbers.ages_over_89(text, plain, number_view(plain)), reverse=True):
        text = text[:start] + "90+" + text[end:]
    return text
