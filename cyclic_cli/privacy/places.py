"""Finds e-mail, web and street addresses, and postcodes beside a town.

All geographic parts smaller than a state are identifiers by the HIPAA Safe Harbor method (45 CFR 164.514(b)(2)(i)(B)).
"""

import re
from collections.abc import Iterator

from cyclic_cli.privacy.words import END, FIRST, Span, fold, is_measurement, ordinary_words

# -------------------------------------------------------------------------------------------------- e-mail and the web

_EMAIL = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
_AT = r"(?:\s?[\[({<]\s?(?:at|ät|arroba|chiocciola|arobase)\s?[\])}>]\s?| (?:at|ät) )"
_DOT = r"(?:\.|\s?[\[({<]\s?(?:dot|punkt|punto|point|ponto)\s?[\])}>]\s?| (?:dot|punkt) )"
_SPELT_EMAIL = re.compile(rf"[\w.+%-]{{1,64}}{_AT}[\w-]+(?:{_DOT}[\w-]+)+", re.IGNORECASE)
_SPELT_SIGNS = (
    "(at",
    "[at",
    "{at",
    "<at",
    "( at",
    "[ at",
    "(ät",
    "arroba",
    "chiocciola",
    "arobase",
    " dot ",
    " punkt ",
)
_URL = re.compile(r"(?:[a-z][a-z+.-]{1,9}://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]]", re.IGNORECASE)
_TOP = "com|org|net|edu|gov|info|de|at|ch|fr|es|it|nl|be|pt|br|uk|pl|ru|se|no|dk|fi|cz|eu|us|ca|au|in|jp|cn"
_PATH = re.compile(rf"\.(?:{_TOP})/[\w/?=&%#.~-]*\w")
_HOST_BEFORE = re.compile(r"(?:[^\W_][\w-]*\.)*[^\W_][\w-]*\Z")


def web_addresses(text: str) -> Iterator[Span]:
    """E-mail addresses, also with `(at)` and `dot`, and web addresses."""
    lowered = text.lower()
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))
    if any(sign in lowered for sign in _SPELT_SIGNS):
        yield from (match.span() for match in _SPELT_EMAIL.finditer(text) if _is_spelt_email(match[0]))
    if "://" in text or "www." in lowered:
        yield from (match.span() for match in _URL.finditer(text))
    for match in _PATH.finditer(text):
        if host := _HOST_BEFORE.search(text, max(0, match.start() - 64), match.start()):
            yield host.start(), match.end()


def _is_spelt_email(address: str) -> bool:
    """Whether the at sign has brackets, or the address ends as one: `a (at) b.org`, `a at b dot org`."""
    return bool(re.search(rf"[\[({{<]|arroba|chiocciola|arobase|[ .](?:{_TOP})\Z", address, re.IGNORECASE))


# -------------------------------------------------------------------------------------------------------------- streets

_AFTER_NUMBER = frozenset("street road avenue boulevard lane terrace crescent".split())
_AFTER_NUMBER_AND_NAME = frozenset("drive way place close square court ave blvd rd ln str parkway highway".split())
"""Words that end an English address: `12 Elm Street`. The latter have other meanings, so a name stands before them."""
_BEFORE_NAME = frozenset(
    "rue avenue boulevard bd allee impasse quai chemin place via viale piazza corso vicolo calle avenida avda plaza "
    "paseo rua travessa praca alameda ul ulica al улица ул проспект пр".split()
)
"""Words that begin an address in French, Italian, Spanish, Portuguese, Polish and Russian: `rue de Lille 5`."""
_ENDINGS = ("strasse", "straße", "str", "gasse", "allee", "straat", "laan", "plein", "gracht", "gatan", "vagen")
"""Endings of German, Dutch and Swedish streets: `Hauptstr. 5`."""
LONGEST_ABBREVIATION = 4  # letters: avda.
SHORTEST_STREET = 7  # letters of a street in one word

_NUMBER = r"\d{1,4}[a-zA-Z]?(?![^\W_]|[.,]\d)"
_CAPITALISED = r"[^\W\d_a-zß-ÿ][^\W\d_]*(?:['’.-][^\W\d_]+)*"
_PARTICLE = r"(?:d[eiou]|de[lir]|des|de la|da|dos|las?|los|della?|dell|san|santa)['’ ]|[dl]['’]"
_NAME = rf"(?:{_PARTICLE}|{_CAPITALISED}\.? ){{0,6}}{_CAPITALISED}"
_HOUSE_BEFORE = re.compile(FIRST + rf"\d{{0,4}}[a-zA-Z]?(?: ?(?:bis|ter))?,? (?P<name>(?:{_CAPITALISED} ){{1,3}})?\Z")
_NAME_AND_HOUSE = re.compile(
    rf"[^\W\d_]+\.? (?P<name>{_NAME})(?:,? ?(?:n[.º°]{{0,2}} ?|nr\.? |д\. ?)?(?P<house>{_NUMBER}))?"
)
_HOUSE = re.compile(rf"[^\W\d_]+\.? ?{_NUMBER}")
_FIRST_WORD_BEFORE = re.compile(rf"{_CAPITALISED}[ -]\Z")
_TOWN_AFTER = re.compile(rf",? ?(?:(?:[A-Z]{{1,2}}-)?\d{{4,5}} {_CAPITALISED}(?:[ -]{_CAPITALISED})?)")
_TOWN = re.compile(
    FIRST + rf"(?P<code>\d{{3}}(?:\d|\d?-\d{{3}}| [A-Z]{{2}})?|\d-\d{{3}}) (?P<town>{_CAPITALISED})"
    rf"(?:(?:[ -]| am | an der ){_CAPITALISED})?"
)
_COUNTRY_BEFORE = re.compile(r"(?<![^\W_])(?:A|B|CH|D|DK|F|FL|I|L|NL)-\Z")
_BEFORE_CODE = re.compile(r"(?:^|[\n,(]|___|\b(?:aus|in|nach|a|à|en|di|te|w))[ \t]*\Z")
_ZIP = re.compile(r"\d(?<=, [A-Z][A-Z] .)\d{4}(?:-\d{4})?(?![^\W_])")
_TOWN_BEFORE = re.compile(rf"{_CAPITALISED}(?: {_CAPITALISED})?, \Z")
_BRITISH = re.compile(rf"\d(?<=[A-Z\d] .)(?!ND|RD|TH|ST|HR|YR)[ABD-HJLNP-UW-Z]{{2}}{END}")
_BRITISH_AREA = re.compile(r"(?<![^\W_])[A-Z]{2}\d[A-Z\d]? \Z")


def may_be_in_address(token: str) -> bool:
    """Whether a folded word may be part of a street address."""
    if token in _AFTER_NUMBER or token in _AFTER_NUMBER_AND_NAME or token in _BEFORE_NAME or token == "strasse":
        return True
    return len(token) >= SHORTEST_STREET and token.endswith(_ENDINGS)


def streets_at(text: str, position: int, word: str) -> Iterator[Span]:
    """The street address with the word that begins at a position."""
    token = fold(word)
    end = position + len(word)
    if token in _AFTER_NUMBER or token in _AFTER_NUMBER_AND_NAME:
        yield from _english_street(text, position, end, token)
    if token in _BEFORE_NAME:
        yield from _romance_street(text, position, end)
    elif word[0].isupper() and token.endswith(_ENDINGS) and token not in ordinary_words():
        house = _HOUSE.match(text, position)
        if house and not is_measurement(text, house.end()):
            before = _FIRST_WORD_BEFORE.search(text, max(0, position - 24), position) if len(token) < 9 else None
            yield before.start() if before else position, _with_town(text, house.end())


def _english_street(text: str, position: int, end: int, token: str) -> Iterator[Span]:
    before = _HOUSE_BEFORE.search(text, max(0, position - 64), position)
    if not before or not before["name"]:
        return
    named = any(fold(name) not in ordinary_words() for name in before["name"].split())
    if named or (token in _AFTER_NUMBER and not before["name"].isupper()):
        yield before.start(), _with_town(text, end)


def _romance_street(text: str, position: int, end: int) -> Iterator[Span]:
    match = _NAME_AND_HOUSE.match(text, position)
    if not match or (text[end] == "." and end - position > LONGEST_ABBREVIATION):
        return
    before = _HOUSE_BEFORE.search(text, max(0, position - 12), position)
    house = match["house"] and not is_measurement(text, match.end())
    names = [name for name in re.findall(r"[^\W\d_]{3,}", match["name"]) if name[0].isupper()]
    named = any(fold(name) not in ordinary_words() for name in names)
    if named and (house or (before and not before["name"])):
        end = match.end() if house else match.end("name")
        yield before.start() if before and not before["name"] else position, _with_town(text, end)


def _with_town(text: str, end: int) -> int:
    town = _TOWN_AFTER.match(text, end)
    return town.end() if town else end


def postcodes(text: str) -> Iterator[Span]:
    """Postcodes beside a town."""
    for match in _TOWN.finditer(text):
        start = match.start()
        country = _COUNTRY_BEFORE.search(text, max(0, start - 4), start)
        if _is_beside_town(text, match, bool(country)):
            yield country.start() if country else start, match.end()
    for match in _ZIP.finditer(text):
        state = match.start() - len("IL ")
        town = _TOWN_BEFORE.search(text, max(0, state - 32), state)
        yield town.start() if town else state, match.end()


def british_postcodes(text: str) -> Iterator[Span]:
    """British postcodes of areas with two letters (SW1A 1AA); those with one may be a vertebra."""
    for match in _BRITISH.finditer(text):
        if area := _BRITISH_AREA.search(text, max(0, match.start() - 6), match.start()):
            yield area.start(), match.end()


def _is_beside_town(text: str, match: re.Match[str], has_country: bool) -> bool:
    """Whether a number before a capitalised word is a postcode, and not a count of something (15000 Leukozyten)."""
    code = text[match.start() : match.end("code")]
    town = match["town"]
    if not town[0].isupper() or fold(town) in ordinary_words() or is_measurement(text, match.start() + 4):
        return False
    if has_country or not code.isdigit():
        return True
    before = text[max(0, match.start() - 8) : match.start()]
    return len(code) == 5 and not code.endswith("00") and bool(_BEFORE_CODE.search(before))
