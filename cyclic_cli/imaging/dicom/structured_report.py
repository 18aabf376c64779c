"""Extracts the text of a DICOM Structured Report, in the reading order of its content tree (PS3.3 C.17.3).

A report is a tree of content items. TEXT items and the meanings of CODE items are read, together with their names in
the document. Persons' names, dates, times, UIDs, numbers and references are not read. Nor are items that only state who
observed whom and when (relationships HAS OBS CONTEXT, HAS ACQ CONTEXT, HAS CONCEPT MOD), or which person, institution
or number the report belongs to. Sections about things that no image shows, such as the history, are left out, as in
every other layout of reports.
"""

import re
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

DEEPEST = 32  # maximum depth of the tree; the standard's templates have about ten levels
LONGEST = 100_000  # maximum length of a text in characters

NOT_OF_THE_PICTURE = {
    ("DCM", "121060"), ("LN", "11329-0"),  # History
    ("DCM", "121062"), ("LN", "55115-0"),  # Request
    ("DCM", "121064"), ("LN", "55111-9"),  # Current Procedure Descriptions
    ("DCM", "121066"), ("LN", "55114-3"),  # Prior Procedure Descriptions
    ("DCM", "121068"), ("LN", "18834-2"),  # Previous Findings
    ("DCM", "121109"), ("LN", "18785-6"),  # Indications for Procedure
    ("DCM", "121110"), ("LN", "55108-5"),  # Patient Presentation
    ("LN", "55752-0"),  # Clinical Information
    ("LN", "29549-3"),  # Medications Administered
    ("LN", "73569-6"),  # Radiation Exposure and Protection Information
    ("LN", "73568-8"),  # Communication of Critical Results
}  # fmt: skip
"""Headings of sections that do not describe the image (PS3.16 CID 7001, Diagnostic Imaging Report Headings)."""
LONGEST_NAME = 100  # maximum length of a text that names a person or an institution; a longer one is a report's text
NAMES_IDENTITY = frozenset(
    ("DCM", code)
    for code in (
        "121008 121009 128774 128775 "  # Person Observer: name, organization, login, identifier (TID 1003)
        "121013 121016 121017 "  # Device Observer: name, serial number, physical location (TID 1004)
        "121020 121021 121022 121040 "  # Placer, Filler, Accession Number (TID 1005); of a specimen
        "121029 121030 121031 121036 "  # Subject: name, ID, birth date; Mother of fetus (TID 1007, 1008)
        "121193 121196 121197 "  # Device Subject: name, serial number, physical location (TID 1010)
        "113870 113871 113872 113873 121114 121152 121435"  # Person and organization (TID 1020), performers
    ).split()
)  # fmt: skip
"""Concepts of content items that name a person, an institution or a number of either (PS3.16 annexes A and D)."""
IDENTITY_MEANING = re.compile(
    r"\b(?:name|institution|hospital|clinic|organi[sz]ation|physician|radiologist|doctor|observer|author|operator|"
    r"technologist|referrer|address|telephone|phone|e-?mail|(?:patient|accession|order|record|insurance)s? "
    r"(?:id|no|nr|number|identifier)|einrichtung|krankenhaus|klinik|klinikum|praxis|arzt|ärztin|befunder|radiologe|"
    r"radiologin|adresse|hôpital|établissement|médecin|radiologue|institución|clínica|médico|radiólogo|istituto|"
    r"ospedale|istituzione|ziekenhuis|instelling|arts|instituição|szpital|lekarz)\b",
    re.IGNORECASE,
)
"""The same for concepts with a site's own codes, by their meaning."""
NO_IDENTITY_MEANING = re.compile(
    r"\b(?:findings?|procedure|device|drug|agent|anatom\w*|structure|lesion|series|template|target|notes?|comments?|"
    r"impressions?|narrative|opinion|review|report|conclusions?|recommendations?|results?|befund|beurteilung)\b",
    re.IGNORECASE,
)
"""Meanings such as `Procedure Name` or `Physician Note`, whose items name no person."""
CONTEXT = {"HAS OBS CONTEXT", "HAS ACQ CONTEXT", "HAS CONCEPT MOD"}  # PS3.3 C.17.3.2.4


def text_of(header: Dataset) -> str:
    """The findings and impressions of a Basic Text, Enhanced or Comprehensive Structured Report.

    Args:
        header: The document, whose content is not trusted.

    Returns:
        The text, with one line per item and at most LONGEST characters. A container becomes `Heading:`, and an item
        becomes `Name: text`, or the text alone where the item has the name of its container. The text is empty where
        the document has no text.
    """
    return "\n".join(_lines(header, "", 0))[:LONGEST].rstrip()


def _lines(parent: Dataset, heading: str, depth: int) -> Iterator[str]:
    """Yield the lines of all items below `parent`; `heading` is the name of their container."""
    for item in _items(parent, "ContentSequence") if depth < DEEPEST else ():
        if _word(item, "RelationshipType") in CONTEXT or _concept(item) in NOT_OF_THE_PICTURE or _names_identity(item):
            continue
        kind, name = _word(item, "ValueType"), _meaning(item, "ConceptNameCodeSequence")
        if kind == "CONTAINER":
            below = list(_lines(item, name or heading, depth + 1))
            yield from [f"{name}:", *below] if below and name else below
            continue
        text = _plain(item.get("TextValue")) if kind == "TEXT" else ""
        text = _meaning(item, "ConceptCodeSequence") if kind == "CODE" else text
        if text:
            yield text if not name or _alike(name, heading) else f"{name}: {text}"
        yield from _lines(item, heading, depth + 1)


def identities_in(header: Dataset) -> Iterator[str]:
    """The values of all content items that name a person, an institution or a number of either.

    They are read at any place in the document, also where `text_of` leaves items out.

    Args:
        header: The document, whose content is not trusted.
    """
    waiting, depth = [header], 0
    while waiting and depth < DEEPEST:
        below = [item for parent in waiting for item in _items(parent, "ContentSequence")]
        for item in below:
            kind = _word(item, "ValueType")
            if kind == "PNAME" or _names_identity(item):
                yield _plain(item.get("PersonName" if kind == "PNAME" else "TextValue"))
        waiting, depth = below, depth + 1


def _names_identity(item: Dataset) -> bool:
    """Whether a content item is a text that names a person, an institution or a number of either."""
    if _word(item, "ValueType") != "TEXT" or len(str(item.get("TextValue") or "")) > LONGEST_NAME:
        return False
    meaning = _meaning(item, "ConceptNameCodeSequence")
    named = IDENTITY_MEANING.search(meaning) and not NO_IDENTITY_MEANING.search(meaning)
    return bool(named) or _concept(item) in NAMES_IDENTITY


def _alike(name: str, heading: str) -> bool:
    """Whether an item has the name of its container, such as Finding in Findings."""
    return name.lower().rstrip("s") == heading.lower().rstrip("s")


def _items(item: Dataset, name: str) -> list[Dataset]:
    """The items of a sequence; empty where the attribute is missing or not a sequence."""
    value = item.get(name)
    return list(value) if isinstance(value, Sequence) else []


def _word(item: Dataset, name: str) -> str:
    """An attribute as upper-case text."""
    return str(item.get(name) or "").strip().upper()


def _concept(item: Dataset) -> tuple[str, str]:
    """Coding scheme and value of the code that names an item."""
    code = next(iter(_items(item, "ConceptNameCodeSequence")), Dataset())
    return _word(code, "CodingSchemeDesignator"), _word(code, "CodeValue")


def _meaning(item: Dataset, name: str) -> str:
    """The Code Meaning of the first code in a sequence."""
    code = next(iter(_items(item, name)), Dataset())
    return _plain(code.get("CodeMeaning"))


def _plain(value: object) -> str:
    """The text with single spaces between words, and with its line breaks."""
    lines = (" ".join(line.split()) for line in str(value or "").splitlines())
    return "\n".join(line for line in lines if line)
