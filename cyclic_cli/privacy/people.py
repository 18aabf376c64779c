"""Finds persons that no header names, by what stands beside them: `Dr. X`, `X, MD`, `Signed: X`, `Befundet von X`.

Names are identifiers by the HIPAA Safe Harbor method (45 CFR 164.514(b)(2)(i)(A)). Only capitalised words are names,
and at least one of them is not an ordinary word, so `Dr. to review`, `MD maps` and `Signed: Radiology` stay.
"""

import re
from collections.abc import Iterator

from cyclic_cli.privacy.words import Span, fold, ordinary_words

TITLES = frozenset(
    "dr dres drs dra drin prof professor mr mrs ms miss mme mlle monsieur madame herr herrn frau sr sra srta sig dott "
    "dottor dottore dottoressa dhr mevr mevrouw pani lek doktor doctor docteur doutor доктор проф".split()
)
_ABBREVIATIONS_TOO = frozenset("dr mr ms sr sig lek drs".split())  # DR: digital radiography, MS: multiple sclerosis
_SIGNED = frozenset(
    "signed gez gezeichnet unterschrift unterzeichnet signe signee firmado firmato fdo assinado getekend ondertekend "
    "podpisano podpisal podpisala podpis opisal opisala wykonal wykonala zlecil sporzadzil underskrevet undertecknat "
    "подписал подписала подпись описал описала выполнил".split()
)
_WRITTEN = frozenset(
    "dictated reported read reviewed interpreted performed referred requested ordered verified approved transcribed "
    "authenticated finalized finalised signed entered electronically discussed communicated befundet diktiert "
    "validiert vidiert freigegeben erstellt verfasst beurteilt angefordert zugewiesen dicte valide redige interprete "
    "realise prescrit relu dictado informado validado revisado realizado solicitado firmado refertato dettato "
    "validato eseguito redatto richiesto firmato gedicteerd beoordeeld verslagen geautoriseerd aangevraagd ditado "
    "laudado assinado opisane".split()
)
_ROLES = frozenset(
    "attending radiologist technologist technician physician resident fellow surgeon provider reader author clinician "
    "arzt arztin radiologe radiologin befunder befunderin uberweiser zuweiser einweiser oberarzt facharzt mtra "
    "radiologue medecin auteur manipulateur radiologo radiologa medico medica tecnico autor radioloog arts aanvrager "
    "laborant radiologista lekarz opisujacy рентгенолог врач".split()
)
_NAMES = frozenset(
    "name nom prenom nombre apellidos apellido nome cognome sobrenome naam achternaam voornaam nachname vorname "
    "surname patientenname patientname nazwisko imie navn namn nimi nev jmeno имя фамилия фио".split()
)
_DEGREES = frozenset("md mbbs frcr franzcr ffrrcsi dnb facr phd frcpc do pa rn np".split())
_ALSO_WORDS = frozenset("do pa np rn".split())  # degrees that need a comma
_PARTICLES = frozenset(
    "al bin da das de del della den der di do dos du el la las le los ten ter van von y zu zum".split()
)

_BY = r"(?:by|with|to|von|vom|durch|mit|par|por|da|dal|dalla|door|przez|av|af)"
_TITLE = (
    r"(?:(?:dr|prof|med|habil|univ|priv|doz|pd|rer|nat|dent|hc|dipl|ing|ssa|dott|drs?a?|lek|mr|mrs|ms|m|mme|herr|frau|"
    r"lekarz|arzt|врач)(?:\.|(?![^\W\d_]))[- ]{0,2})"
)
_AFTER_TITLE = re.compile(rf"[^\W\d_]+\.?[ \t]*{_TITLE}{{0,5}}(?=[^\W\d_])", re.IGNORECASE)
_AFTER_SIGNED = re.compile(
    rf"[^\W\d_]+\.?(?:\(a\))?[ \t]*(?:electronically |digitally )?(?:{_BY}\b)?[ \t]*[:;,]?\s?[ \t]*"
    rf"{_TITLE}{{0,5}}(?=[^\W\d_])",
    re.IGNORECASE,
)
_AFTER_WRITTEN = re.compile(
    rf"[^\W\d_]+(?:\(a\))?[ \t]+(?:(?:and|und|et|y|e|en|i) \w+ |\w+ )?{_BY}\b[ \t]*:?\s?[ \t]*"
    rf"{_TITLE}{{0,5}}(?=[^\W\d_])",
    re.IGNORECASE,
)
_AFTER_LABEL = re.compile(rf"[^\W\d_]+(?:\(in\)|/in)?[ \t]*:[ \t]*{_TITLE}{{0,5}}(?=[^\W\d_])", re.IGNORECASE)
_NAME_WORD = re.compile(r"[^\W\d_]+(?:['’‐-][^\W\d_]+)*")
_ELIDED = re.compile(r"[^\W\d_]{1,2}['’](?=[^\W\d_])")  # d'Alessio
_BETWEEN = re.compile(r"[ \t]{1,2}|___[ \t]|[ \t]___[ \t]")
_AFTER_INITIAL = re.compile(r"\.?[ \t]{0,2}-?")
_COMMA = re.compile(r",[ \t]?")
_BEFORE_DEGREE = re.compile(r"(?:, ?| )(?:M\.D\.,? |Dr\. )?\Z")
LONGEST = 5  # words of a name


def may_name_person(token: str) -> bool:
    """Whether a name may stand after a folded word, or before it."""
    return token in _STARTS


_STARTS = TITLES | _SIGNED | _WRITTEN | _ROLES | _NAMES | _DEGREES | {"m"}  # M.D.


def people_at(text: str, position: int, word: str) -> Iterator[Span]:
    """The names after a title, an announcement or a label, or before a degree, that begins at a position."""
    token = fold(word)
    if (token in _DEGREES and word.isupper()) or text.startswith("M.D.", position):
        yield from _before_degree(text, position, token)
    if token in TITLES and _is_title(text, position, word, token):
        yield from _name_after(_AFTER_TITLE, text, position)
    if token in _SIGNED:
        yield from _name_after(_AFTER_SIGNED, text, position, reversible=True)
    if token in _WRITTEN:
        yield from _name_after(_AFTER_WRITTEN, text, position, reversible=True)
    if token in _ROLES or token in _NAMES:
        for start, end in _name_after(_AFTER_LABEL, text, position, reversible=True):
            if _is_whole_value(text, start, end):
                yield start, end


def _is_title(text: str, position: int, word: str, token: str) -> bool:
    """Whether a word is a title here: `Dr`, `DR.` and `by DR` are, `DR` and `MS` alone are methods and diseases."""
    end = position + len(word)
    if token not in _ABBREVIATIONS_TOO or not word.isupper() or text[end : end + 1] == ".":
        return word[0].isupper() or text[end : end + 1] == "."
    line = (
        text[max(0, position - 80) : position].rpartition("\n")[2] + text[position : position + 80].partition("\n")[0]
    )
    return line.isupper() or bool(re.search(rf"\b{_BY}\s\Z", text[max(0, position - 8) : position], re.IGNORECASE))


def _name_after(pattern: re.Pattern[str], text: str, position: int, reversible: bool = False) -> Iterator[Span]:
    """The name that stands where a pattern ends; `reversible` allows `Okonkwo, Chidi`."""
    match = pattern.match(text, position)
    if not match:
        return
    words: list[re.Match[str]] = []
    at = match.end()
    while len(words) < LONGEST and (word := _NAME_WORD.match(text, at)) and _may_be_in_name(word[0]):
        words.append(word)
        gap = (_AFTER_INITIAL if len(word[0]) == 1 else _BETWEEN).match(text, word.end())
        if not gap and reversible and len(words) == 1 and not _is_ordinary(word[0]):
            gap = _COMMA.match(text, word.end())
        if not gap:
            break
        at = gap.end()
    while words and (_is_ordinary(words[-1][0]) or fold(words[-1][0]) in _PARTICLES):
        words.pop()
    if _is_name(words):
        yield words[0].start(), words[-1].end()


def _is_whole_value(text: str, start: int, end: int) -> bool:
    """Whether what follows a label such as `Arzt:` is a name and not a remark: several words, or all of the line."""
    return len(_NAME_WORD.findall(text, start, end)) > 1 or not text[end : end + 80].split("\n")[0].strip()


def _before_degree(text: str, position: int, token: str) -> Iterator[Span]:
    """The name before a degree: two words (`Chidi Okonkwo MD`), or one and a comma (`Okonkwo, MD`)."""
    begin = max(0, position - 64)
    gap = _BEFORE_DEGREE.search(text, begin, position)
    if not gap or (token in _ALSO_WORDS and "," not in gap[0]):
        return
    words: list[re.Match[str]] = []
    end = gap.start()
    for word in reversed(list(_NAME_WORD.finditer(text, begin, end))):
        between = text[word.end() : end]
        touches = ("", ".") if not words else (" ", ". ", ".") if len(word[0]) == 1 else (" ",)
        if len(words) == LONGEST or not _may_be_in_name(word[0]) or between not in touches:
            break
        words.insert(0, word)
        end = word.start()
    while words and (_is_ordinary(words[0][0]) or fold(words[0][0]) in _PARTICLES | TITLES):
        words.pop(0)
    if not _is_name(words) or _is_ordinary(words[-1][0]):
        return
    alone = len(words) == 1
    abbreviation = words[-1][0].isupper() and len(words[-1][0]) < 5
    if not (alone and (abbreviation or "," not in gap[0])):
        yield words[0].start(), words[-1].end()


def _may_be_in_name(word: str) -> bool:
    """Whether a word is a particle (van), or has capital initials and does not itself stand beside names (Signed)."""
    folded = fold(word)
    if folded in _PARTICLES:
        return True
    parts = re.split("[‐-]", _ELIDED.sub("", word))
    return all(part[:1].isupper() for part in parts) and (len(word) == 1 or folded not in _STARTS)


def _is_ordinary(word: str) -> bool:
    """Whether a word, or all parts of a word with hyphens, are ordinary words; initials are not."""
    return all(len(part) > 1 and fold(part) in ordinary_words() for part in re.split(r"['’‐-]", word))


def _is_name(words: list[re.Match[str]]) -> bool:
    return any(len(word[0]) > 1 and word[0] != word[0].lower() and not _is_ordinary(word[0]) for word in words)
