"""Finds numbers that may identify a person: telephone, national and other long numbers, UIDs, and ages over 89.

These are identifiers of the HIPAA Safe Harbor method (45 CFR 164.514(b)(2)(i)). A number is found by its form, by the
word before it (`MRN 4711`), by the check digits of national numbers, or by the numbering plans of all countries
(ITU-T E.164, with the tables of Google's libphonenumber). Other numbers of reports stay: vertebral levels (L4/5), lists
of ribs (7/8/9), scores, ranges and measurements.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from cyclic_cli.privacy.words import END, FIRST, LAST, Span, fold, is_counted, is_measurement, word_before

TELEPHONES = frozenset(
    "tel telephone telefon telefono telefone telefoon tlf tlfn phone fax telefax mobile mobil movil movel telemovel "
    "celular cellulare handy gsm pager beeper ext extension durchwahl extn whatsapp тел телефон τηλ τηλεφωνο".split()
)
"""Words after which all digits are a telephone number."""
CALLS = frozenset(
    "call ring contact llamar llame ligar ligue zadzwonic dzwonic anrufen ruckfragen kontakt contacto contatto contato "
    "appeler joindre chiamare bellen contacteer bel ringa".split()
)
"""Words after which at least seven digits are a telephone number."""
LABELS = TELEPHONES | frozenset(
    "accession acc mrn pid ssn nhs dob patientid nhc dni nie nif cpf cns cpr nir nss ipp bsn pesel kvnr aadhaar curp "
    "rut rg sin ahic rrn snils prontuario medicare personnummer personnr fodselsnummer henkilotunnus insz ahv amka "
    "aktenzeichen fallnummer patientennummer versichertennummer versicherungsnummer auftragsnummer patientnummer "
    "снилс полис".split()
)
"""Words after which even a short number identifies a person."""
NUMBERED = frozenset(
    "patient pat patienten pt paciente paziente case fall study exam examination order file chart record account "
    "untersuchung auftrag historia expediente dossier cartella insurance policy hospital health member license "
    "licence id".split()
)
"""Words after which a number identifies a person if `no.` or the like stands between."""
_CJK_LABELS = ("电话", "電話", "手机", "전화", "住院号", "门诊号", "病历号", "病歴番号", "患者番号", "患者ID", "检查号",
               "身份证", "등록번호", "환자번호", "カルテ番号")  # fmt: skip
FEWEST_DIGITS = 4  # digits of the shortest number without a label that is looked at
_SIZES = frozenset("000 064 096 128 192 256 288 320 384 448 512 640 768".split())  # of matrices
FEWEST_OF_TELEPHONE, MOST_OF_TELEPHONE = 7, 15  # digits; the latter by E.164


def is_label(token: str) -> bool:
    """Whether a folded word may stand before the number of a person, or is a national number with letters."""
    return token in LABELS or token in NUMBERED or token in CALLS or bool(_LETTERED.fullmatch(token))


# --------------------------------------------------------------------------------------------------------- patterns

_LONG = re.compile(r"\d{6,}")
_CHAIN_BEFORE = re.compile(r"(?:[^\W_]+(?:[-/#:^]|_+|(?<=\d)\.))*[^\W_]*\Z")
_CHAIN_AFTER = re.compile(r"[^\W_]*(?:(?:[-/#:^]|_+|\.(?=\d))[^\W_]+)*")
_UID = re.compile(FIRST + r"\d*(?:\.\d+){3,}" + END)
_TELEPHONES = [
    re.compile(r"\+\d[\d ()./-]{6,}\d"),
    re.compile(r"\(\d{2,5}\) ?\d{2,5}(?:[ ./-]?\d{2,5}){1,3}" + END),
    re.compile(
        FIRST
        + r"(?:\d\d[ .-]\d{3}[ .-]\d{4}|-\d{3}-\d{3}-\d{4}|\d\d-\d\d-\d{4}|\d\d-\d{4}|\d\d[ -]\d{3}-\d\d-\d\d)"
        + LAST
    ),
    re.compile(FIRST + r"(?<=0)\d{1,5}(?:(?: ?[/-] ?| )\d{2,}){2,}" + END),
    re.compile(FIRST + r"(?<=0)\d{1,5} ?[ /-] ?\d{5,}" + END),
    re.compile(FIRST + r"\d \d{4,5}-\d{4}" + END),  # Brazil
]
_NATIONAL = re.compile(
    FIRST
    + r"(?:\d\d\.\d{3}\.\d{3}-\d\d"  # CPF
    + r"|\d?\.\d{3}\.\d{3}-?[\dA-Z]"  # DNI, RG, RUT
    + r"|\d\.\d\d\.\d\d-\d{3}\.\d\d"  # Belgium
    + r"| \d\d \d\d \w\d \d{3} \d{3}(?: \d\d)?"  # NIR
    + r"|\d\d \d\d (?!19|20)\d{4}"  # SSN
    + r"|\d\d-\d{3}-\d{3} \d\d"  # SNILS
    + r"|\d{3} \d{5} \d)"  # Medicare of Australia
    + END
)
_AFTER_LETTERS = re.compile(
    r"\d(?:(?<=[A-Z]{4} .)\d{3} \d{4}|(?<=[A-Z]{2} .)\d \d\d \d\d [A-D])" + END
)  # RAMQ of Quebec, National Insurance of Britain
_LETTERED = re.compile(r"[a-z]{6}\d\d[a-ehlmprst]\d\d[a-z]\d{3}[a-z]|[a-z]{5}\d{4}[a-z]")  # codice fiscale, PAN
_GROUPED = re.compile(FIRST + r"\d*(?:(?: - | / |[ ./-])\d+)+" + END)
_MORE_GROUPS = re.compile(r" ?[-/] ?\d{2,}(?![\d.,])" + END)
_NUMBER_WORD = r"(?:no|nr|núm|num|number|nummer|numéro|número|numero|id|n[°º]|№|#)"
_LABELLED = re.compile(
    rf"[^\W_]+[ .:#-]*(?P<number>{_NUMBER_WORD}[ .:#]*)?"
    r"(?P<value>\d{1,4}(?:[ .]\d{3,4}){2,}(?:-?\w{1,2}\b)?|"
    r"(?:[a-z]{0,4}[-/]?)?\d[\d/_-]{2,}\w*(?:[.-]\d{2,}(?:[-.]?\w+)?)*)",
    re.IGNORECASE,
)
_AFTER_TELEPHONE = re.compile(
    r"[^\W_]+[ .:#]*(?:(?:no|nr|number)[ .:#]*)?((?!90\+)[+(]{0,2}\d[\d ()./+-]*)", re.IGNORECASE
)
_AFTER_CJK = re.compile(rf"(?:{'|'.join(_CJK_LABELS)})[ :]*([A-Za-z]{{0,4}}-?\d[\d -]+\d)")
_CLUSTER = re.compile(r"\d[\d ()./-]{2,}\d")


# ----------------------------------------------------------------------------------------------------------- search


def has_long_cluster(text: str) -> bool:
    """Whether some digits stand so close together that they may be a date or a number of a person."""
    return any(sum(map(str.isdigit, cluster)) >= FEWEST_DIGITS for cluster in _CLUSTER.findall(text))


def numbers(text: str) -> Iterator[Span]:
    """Long numbers with the letters and punctuation joined to them, UIDs, telephone and national numbers."""
    for match in _LONG.finditer(text):
        start, end = match.span()
        start -= len(_CHAIN_BEFORE.search(text[max(0, start - 64) : start])[0])  # type: ignore[index]
        end += len(_CHAIN_AFTER.match(text[end : end + 64])[0])  # type: ignore[index]
        if not re.fullmatch(r"\d{1,3}[.,]\d+", text[start:end]):  # a measurement with many decimals
            yield start, end
    yield from (match.span() for match in _UID.finditer(text))
    yield from (match.span() for match in _NATIONAL.finditer(text))
    yield from (match.span() for match in _AFTER_LETTERS.finditer(text))
    for pattern in _TELEPHONES:
        for match in pattern.finditer(text):
            if not is_measurement(text, match.end()) and not is_counted(text, match.start()):
                yield match.start(), _end_of_groups(text, match.end())
    for match in _GROUPED.finditer(text):
        countable = is_measurement(text, match.end()) or is_counted(text, match.start())
        if not countable and (_has_check_digit(match[0]) or _is_telephone(match[0])):
            yield match.span()


def numbers_at(text: str, position: int, word: str) -> Iterator[Span]:
    """The number after a label (`MRN 4711`), or the national number that is one word."""
    label = fold(word)
    if _LETTERED.fullmatch(label):
        yield position, position + len(word)
    elif label in TELEPHONES or label in CALLS:
        yield from _telephone_after(text, position, 2 if label in TELEPHONES else FEWEST_OF_TELEPHONE)
    elif (match := _LABELLED.match(text, position)) and (match["number"] or label in LABELS):
        yield match.span("value")


def numbers_after_unspaced_labels(text: str) -> Iterator[Span]:
    """Numbers after Chinese, Japanese and Korean labels."""
    yield from (match.span(1) for match in _AFTER_CJK.finditer(text))


def _telephone_after(text: str, position: int, fewest: int) -> Iterator[Span]:
    """The number after a word such as `Tel.`, with all its groups of digits."""
    match = _AFTER_TELEPHONE.match(text, position)
    if not match:
        return
    start, end = match.span(1)
    end = start + len(text[start:end].rstrip(" ()./+-"))
    while end > start and (is_measurement(text, end) or text[end : end + 1].isalpha()):
        end = start + len(text[start:end].rstrip("0123456789").rstrip(" ()./+-"))
    if fewest <= sum(map(str.isdigit, text[start:end])):
        yield start, end


def _end_of_groups(text: str, end: int) -> int:
    """The end of the groups of digits that continue a telephone number, so that it is not cut in half."""
    while (more := _MORE_GROUPS.match(text, end)) and not is_measurement(text, more.end()):
        end = more.end()
    return end


# ------------------------------------------------------------------------------------------ check digits and countries


@lru_cache(maxsize=4096)
def _is_telephone(number: str) -> bool:
    """Whether groups of digits are a valid number of some country, in the groups in which that country writes it."""
    groups = re.findall(r"\d+", number)
    length = sum(map(len, groups))
    rounded = all(group.endswith("0") for group in groups)
    if len(groups) < 3 or not FEWEST_OF_TELEPHONE < length <= MOST_OF_TELEPHONE or rounded or "." in number:
        return False
    if min(map(len, groups)) < 2 or len(set(groups)) < len(groups) == 3 or _SIZES.intersection(groups):
        return False
    is_date = "/" in number or [len(group) for group in groups] in ([2, 2, 4], [4, 2, 2])
    if is_date or len(set(groups)) == 1 or _are_years(groups):
        return False
    import phonenumbers  # late: its tables are read for few texts

    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        try:
            parsed = phonenumbers.parse(number, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number_for_region(parsed, region):
            written = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.NATIONAL)
            if re.findall(r"\d+", written) == groups:
                return True
    return False


def _are_years(groups: list[str]) -> bool:
    return all(len(group) == 4 and group[:2] in ("19", "20") for group in groups)


def _has_check_digit(number: str) -> bool:
    """Whether a number in groups has the check digits of a national number: Aadhaar (4-4-4), or SIN (3-3-3)."""
    groups = re.findall(r"\d+", number)
    digits = [int(digit) for digit in "".join(groups)]
    lengths = [len(group) for group in groups]
    if _are_years(groups) or number.endswith("0"):
        return False
    return (lengths == [4, 4, 4] and _verhoeff(digits)) or (lengths in ([3, 3, 3], [4, 4, 4, 4]) and _luhn(digits))


def _luhn(digits: list[int]) -> bool:
    doubled = [sum(divmod(2 * digit, 10)) if place % 2 else digit for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _verhoeff(digits: list[int]) -> bool:
    """The checksum of J. Verhoeff (1969): multiplication in the dihedral group of order 10, after permutations."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        for _ in range(place % 8):
            digit = _PERMUTED[digit]
        check = _dihedral(check, digit)
    return check == 0


_PERMUTED = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _dihedral(first: int, second: int) -> int:
    turned = (first + second) % 5 if first < 5 else (first - second) % 5
    return turned + 5 * ((first < 5) != (second < 5))


# -------------------------------------------------------------------------------------------------------------- ages

_OLD_NUMBER = re.compile(r"[19](?<![^\W_].)(?<!\d[.,/-].)(?:(?<=9)\d|(?<=1)[01]\d)(?!\d)")
_YEARS_OLD = re.compile(
    r"\s?[岁歲歳才세]|(?:\s|-){0,2}(?:years?|yrs?|y/?o|y\.o\.|jahren?|j[aä]hrige?\w?|ans|años|anos|anni|jaar|jarige?|lata?|"
    r"letni[ae]?|let[áéý]?|лет\w*|года?|år|årig|åring|ani|yaşında\w*|vuoti\w*|éves|ετών|χρονών|tahun|tuổi|سنة|عاما|"
    r"वर्षीय|वर्ष|साल|ปี)" + END,
    re.IGNORECASE,
)
_SEX = re.compile(rf"[MF]{END}[ ,]+(?:w/|(?:with|who|s/p|p/w|c/o|h/o|presents|presenting)\b)")
_AGE_BEFORE = re.compile(r"(?<![^\W_])(?:anni|lat|anos|años)[ \t]\Z", re.IGNORECASE)  # `di anni 93`
_NO_AGE = re.compile(r"[^\W_]|\+|[.,]\d| ?(?:%|mo)")
_BEFORE_AGE = frozenset(
    "age aged alter edad idade eta leeftijd wiek возраст alder 年龄 年齢 나이 בן בת العمر بعمر".split()
)
_IN_WORDS = re.compile(
    r"(?<![^\W_])(?:ninety(?:[ -](?:one|two|three|four|five|six|seven|eight|nine))?(?=[ -]years?)|"
    r"\w*neunzig(?= jahre| ?jähr)|quatre-vingt-(?:dix(?:-(?:sept|huit|neuf))?|onze|douze|treize|quatorze|quinze|seize)"
    r"(?= ans)|noventa(?: [ey] \w+)?(?= a[nñ]os)|novant\w*(?= anni)|\w*negentig(?= ?jar| jaar)|"
    r"девяност\w+(?: \w+)?(?= лет))",
    re.IGNORECASE,
)
_NINETY = ("ninety", "neunzig", "quatre-vingt", "novent", "novant", "noventa", "negentig", "девяност")


def ages_over_89(text: str, plain: str, view: str) -> Iterator[Span]:
    """The numbers of ages over 89, in digits or in words.

    Args:
        text: A text.
        plain: Its plain view.
        view: Its view for numbers.
    """
    for match in _OLD_NUMBER.finditer(view):
        end = match.end()
        labelled = word_before(plain, match.start()) in _BEFORE_AGE and not _NO_AGE.match(plain, end)
        labelled |= bool(_AGE_BEFORE.search(plain, max(0, match.start() - 6), match.start())) and not (
            _NO_AGE.match(plain, end)
        )
        if labelled or _YEARS_OLD.match(plain, end) or _SEX.match(plain, end):
            yield match.span()
    lowered = text.lower()
    if any(word in lowered for word in _NINETY):
        yield from (match.span() for match in _IN_WORDS.finditer(text))
