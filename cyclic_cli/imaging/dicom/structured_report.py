"""Extracts the text of a DICOM Structured Report, in the reading order of its content tree (PS3.3 C.17.3).

A report is a tree of content items. TEXT items and the meanings of CODE items are read, together with their names in
the document. Persons' names, dates, times, UIDs, numbers and references are not read. Nor are items that only state who
observed whom and when (relationships HAS OBS CONTEXT, HAS ACQ CONTEXT, HAS CONCEPT MOD). Sections about things that no
image shows, such as the history, are left out, as in every other layout of reports.
"""

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
        if _word(item, "RelationshipType") in CONTEXT or _concept(item) in NOT_OF_THE_PICTURE:
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
