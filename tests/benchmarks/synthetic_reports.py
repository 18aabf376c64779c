"""Writes short synthetic reports in eight languages, with the positions of identities and of what must stay.

The phrases are in `synthetic_reports.toml`. All people are invented. Names, numbers and dates are drawn at random;
national numbers have valid check digits. A report has a few sentences with identities, and some with what looks similar
and must stay, such as scores and levels of the spine. Its header names the patient and the patient's number.
"""

import random
import re
import string
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PHRASES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
"""Language → its names, months, and sentences by kind."""
LANGUAGES = tuple(PHRASES)
IDENTITIES, KEPT = (tuple(PHRASES["en"][group]) for group in ("identities", "kept"))
"""The kinds of identities, and the kinds of what must stay."""
CONTEXT = "context"
"""The kind of the words around identities, such as `Tel.`; they must stay, too."""
IDENTITIES_PER_REPORT, KEPT_PER_REPORT = 3, 5  # sentences

Fields = dict[str, str]


@dataclass(frozen=True)
class Slot:
    """A part of a report: an identity, what must stay, or the words around an identity."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Report:
    """A synthetic report, and what its header says about the patient."""

    language: str
    text: str
    slots: tuple[Slot, ...]
    header: tuple[str, ...]


def reports(count: int, seed: int) -> Iterator[Report]:
    """Write `count` reports, in all languages by turns; equal seeds give equal reports."""
    generator = random.Random(seed)
    for number in range(count):
        yield _report(LANGUAGES[number % len(LANGUAGES)], generator)


def _report(language: str, generator: random.Random) -> Report:
    phrases = PHRASES[language]
    patient = {
        "patient_forename": generator.choice(phrases["forenames"]),
        "patient_surname": generator.choice(phrases["surnames"]),
        "patient_number": _digits(generator.choice(("*######", "*#####", "KH*####", "*##-##-#")), generator),
    }
    identities = generator.sample(IDENTITIES, IDENTITIES_PER_REPORT)
    kept = generator.sample(KEPT, KEPT_PER_REPORT)
    sentences = [generator.choice(phrases["identities"][kind]) for kind in identities]
    sentences += [generator.choice(phrases["kept"][kind]) for kind in kept]
    text, slots = "", []
    order = [*zip(sentences, [*identities, *kept], strict=True)]
    generator.shuffle(order)
    was_line = False
    for sentence, kind in order:
        is_line = not sentence.endswith(".")
        text += ("\n" if is_line or was_line else " ") if text else ""
        for piece in re.split(r"(\[[^\]]*\])", sentence):
            fields = _fields(phrases, patient, generator)  # two dates of a sentence differ
            filled = _digits(piece.strip("[]"), generator).format_map(fields)
            if piece.startswith("["):
                slots.append(Slot(len(text), len(text) + len(filled), kind))
            elif kind in IDENTITIES and re.search(r"\w\w", filled):
                slots.append(Slot(len(text), len(text) + len(filled), CONTEXT))
            text += filled
        was_line = is_line
    header = (f"{patient['patient_surname']}^{patient['patient_forename']}", patient["patient_number"])
    return Report(language, text, tuple(slots), header)


# ----------------------------------------------------------------------------------------------------------- fields


def _fields(phrases: dict, patient: Fields, generator: random.Random) -> Fields:
    """Values of all fields, drawn anew. Other people have other names than the patient."""
    forename = generator.choice([name for name in phrases["forenames"] if name != patient["patient_forename"]])
    surname = generator.choice([name for name in phrases["surnames"] if name != patient["patient_surname"]])
    town = generator.choice(phrases["towns"])
    return {
        **patient, "forename": forename, "surname": surname, "town": town,
        "plain_surname": re.split("[ '-]", surname)[-1],
        "mail": f"{_ascii(forename)}.{_ascii(surname)}", "host": _ascii(town), "n": str(generator.randint(1, 180)),
        "letter": generator.choice("BCDFGHJKLMNPRSTVWX"),
        **_times(phrases["months"], generator), **_national_numbers(generator), **_findings(generator),
    }  # fmt: skip


def _ascii(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.lower().replace("ł", "l").replace("ß", "ss"))
    return re.sub("[^a-z]", "", plain)


def _times(months: list[str], generator: random.Random) -> Fields:
    day, month, year = generator.randint(1, 28), generator.randint(1, 12), generator.randint(2005, 2025)
    return {
        "d": str(day), "d0": f"{day:02}", "m": str(month), "m0": f"{month:02}", "year": str(year), "yy": str(year)[2:],
        "month": months[month - 1], "mon": months[month - 1][:3], "ordinal": _ordinal(day),
        "roman_month": "I II III IV V VI VII VIII IX X XI XII".split()[month - 1],
        "hour": f"{generator.randint(7, 22):02}", "minute": f"{generator.randint(0, 59):02}",
        "over": str(generator.randint(90, 104)), "age": str(generator.randint(18, 89)),
    }  # fmt: skip


def _ordinal(number: int) -> str:
    return f"{number}{'th' if 10 < number < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _findings(generator: random.Random) -> Fields:
    vertebra, rib, score = generator.randint(1, 4), generator.randint(3, 9), generator.randint(0, 5)
    image, t, n = generator.randint(1, 180), generator.randint(1, 4), generator.randint(0, 2)
    levels = (f"L{vertebra}/{vertebra + 1}", f"C{vertebra + 2}/{vertebra + 3}", "L5/S1", f"L{vertebra}-L{vertebra + 1}")
    return {
        "level": generator.choice(levels), "thoracic": str(generator.randint(4, 12)), "lumbar": str(vertebra),
        "ribs": generator.choice((f"{rib}/{rib + 1}/{rib + 2}", f"{rib}-{rib + 2}", f"{rib}, {rib + 1}")),
        "rib": str(rib), "ordinal_rib": _ordinal(rib), "score": f"{score}/{generator.choice((5, 5, 10))}",
        "digit": str(generator.randint(0, 5)), "two": str(generator.randint(38, 62)),
        "ratio": generator.choice(("1000", "10000")), "mm": str(generator.randint(3, 48)),
        "hu": str(generator.randint(12, 480)), "ml": str(generator.randint(4, 15) * 10),
        "mg": generator.choice(("25", "50", "100", "47.5")), "percent": str(generator.randint(20, 75)),
        "series": str(generator.randint(2, 12)), "image": str(image), "images": str(image + generator.randint(0, 200)),
        "birads": generator.choice(("1", "2", "3", "4a", "4C", "5")), "grade": str(generator.randint(1, 4)),
        "roman": generator.choice(("I", "II", "III", "IV")),
        "tnm": generator.choice((f"pT{t} N{n} M0", f"T{t}N{n}M0", f"cT{t}b N{n} M1a", f"pT{t} pN{n} (1/14)")),
    }  # fmt: skip


def _digits(pattern: str, generator: random.Random) -> str:
    """The pattern with a digit for each `#`, and one other than 0 for each `*`."""
    return re.sub("[#*]", lambda sign: generator.choice(string.digits[sign[0] == "*" :]), pattern)


# ------------------------------------------------------------------------------------------------- national numbers


def _national_numbers(generator: random.Random) -> Fields:
    """National numbers with valid check digits."""

    def drawn(pattern: str, check: Callable[[str], str | None]) -> str:
        while True:  # some numbers have no check digit
            number = _digits(pattern, generator)
            if (digit := check(number)) is not None:
                return number + digit

    year, month, day = generator.randint(30, 99), generator.randint(1, 12), generator.randint(1, 28)
    birth = f"{year}{month:02}{day:02}"
    letters = "".join(generator.choices(string.ascii_uppercase, k=6))
    nir = drawn(f"{generator.randint(1, 2)}{birth[:4]}{generator.randint(10, 95)}######", _nir)
    nhs, cpf = drawn("4########", _nhs), drawn(drawn("*########", _weighted_11), _weighted_11)
    sus = drawn("7#############", _sus)
    pension = drawn(f"65{day:02}{month:02}{year}{letters[0]}##", _pension)
    fiscal = f"{letters}{year}{'ABCDEHLMPRST'[month - 1]}{day:02}H###"
    return {
        "nhs": f"{nhs[:3]} {nhs[3:6]} {nhs[6:]}", "kvnr": drawn(letters[0] + "########", _kvnr),
        "pension": f"{pension[:2]} {pension[2:8]} {pension[8]} {pension[9:]}",
        "nir": re.sub(r"(.)(..)(..)(..)(...)(...)(..)", r"\1 \2 \3 \4 \5 \6 \7", nir), "nir_plain": nir,
        "dni": drawn("*#######", _dni), "nie": drawn("#######", _dni), "seguridad": drawn("*#######", _seguridad),
        "fiscal": drawn(fiscal, _fiscal), "bsn": drawn("*#######", _bsn),
        "cpf": f"{cpf[:3]}.{cpf[3:6]}.{cpf[6:9]}-{cpf[9:]}", "nif": drawn("2#######", _weighted_11),
        "sus": f"{sus[:3]} {sus[3:7]} {sus[7:11]} {sus[11:]}", "pesel": drawn(birth + "####", _pesel),
    }  # fmt: skip


def _weighted(number: str, weights: list[int]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(number, weights, strict=True))


def _nhs(number: str) -> str | None:
    """The check digit of a British NHS number, modulo 11."""
    digit = (11 - _weighted(number, [*range(10, 1, -1)]) % 11) % 11
    return str(digit) if digit < 10 else None


def _weighted_11(number: str) -> str:
    """A check digit of a Brazilian CPF, and that of a Portuguese NIF."""
    rest = _weighted(number, [*range(len(number) + 1, 1, -1)]) % 11
    return "0" if rest < 2 else str(11 - rest)


def _kvnr(number: str) -> str:
    """The check digit of a German health insurance number."""
    return _digit_sums(number, [1, 2] * 5)


def _pension(number: str) -> str:
    """The check digit of a German pension insurance number."""
    return _digit_sums(number, [2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1])


def _digit_sums(number: str, weights: list[int]) -> str:
    """The last digit of the digit sums of all weighted digits; a letter counts as the two digits of its place."""
    digits = "".join(sign if sign.isdigit() else f"{ord(sign) - 64:02}" for sign in number)
    products = (int(digit) * weight for digit, weight in zip(digits, weights, strict=True))
    return str(sum(product // 10 + product % 10 for product in products) % 10)


def _dni(number: str) -> str:
    """The check letter of a Spanish DNI, and that of a NIE that begins with X."""
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


def _seguridad(number: str) -> str:
    """The check digits of a Spanish social security number of the province 28."""
    return f"/{int('28' + number) % 97:02}"


def _sus(number: str) -> str | None:
    """The check digit of a Brazilian health card."""
    digit = -_weighted(number, [*range(15, 1, -1)]) % 11
    return str(digit) if digit < 10 else None


def _nir(number: str) -> str:
    """The two check digits of a French social security number."""
    return f"{97 - int(number) % 97:02}"


def _bsn(number: str) -> str | None:
    """The check digit of a Dutch citizen service number, which the eleven-test requires."""
    digit = _weighted(number, [*range(9, 1, -1)]) % 11
    return str(digit) if digit < 10 else None


def _pesel(number: str) -> str:
    """The check digit of a Polish PESEL."""
    return str(-_weighted(number, [1, 3, 7, 9, 1, 3, 7, 9, 1, 3]) % 10)


def _fiscal(number: str) -> str:
    """The check letter of an Italian codice fiscale."""
    values = {sign: place for place, sign in enumerate(string.digits)} | {
        sign: place for place, sign in enumerate(string.ascii_uppercase)
    }
    odd = [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23]
    total = sum(values[sign] if place % 2 else odd[values[sign]] for place, sign in enumerate(number))
    return string.ascii_uppercase[total % 26]
