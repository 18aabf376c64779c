"""What a Structured Report says, as text: its content tree in reading order (PS3.3 C.17.3).

A report is a tree of content items. Read are TEXT items and the meanings of CODE items, each under the name that the
document gives it. Never read are persons' names, dates, times, UIDs, numbers, references and whatever only says who
observed whom and when (relationships HAS OBS CONTEXT, HAS ACQ CONTEXT, HAS CONCEPT MOD). Sections that say what no
picture shows, such as the history, are left out, as in every other layout of reports.
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

DEEPEST = 32  # levels of the tree; the standard's own templates have about ten
LONGEST = 100_000  # characters

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
"""Headings of PS3.16 CID 7001, Diagnostic Imaging Report Headings, under which nothing describes the picture."""
CONTEXT = {"HAS OBS CONTEXT", "HAS ACQ CONTEXT", "HAS CONCEPT MOD"}  # PS3.3 C.17.3.2.4


def text_of(header: Dataset) -> str:
    """The findings and impressions of a Basic Text, Enhanced or Comprehensive Structured Report.

    Args:
        header: The document. Anything may stand in it.

    Returns:
        A line an item: `Heading:` for a container, the text itself where it has its container's name, else
        `Name: text`; at most LONGEST characters. Empty where the document says nothing in words.
    """
    return "\n".join(_lines(header, "", 0))[:LONGEST].rstrip()


def _lines(parent: Dataset, heading: str, depth: int) -> Iterator[str]:
    """What the items below one say; `heading` is the name of the container they are in."""
    for item in _items(parent, "ContentSequence") if depth < DEEPEST else ():
        if _word(item, "RelationshipType") in CONTEXT or _concept(item) in NOT_OF_THE_PICTURE:
            continue
        kind, name = _word(item, "ValueType"), _meaning(item, "ConceptNameCodeSequence")
        if kind == "CONTAINER":
            below = list(_lines(item, name or heading, depth + 1))
            yield from [f"{name}:", *below] if below and name else below
            continue
        said = _plain(item.get("TextValue")) if kind == "TEXT" else ""
        said = _meaning(item, "ConceptCodeSequence") if kind == "CODE" else said
        if said:
            yield said if not name or _alike(name, heading) else f"{name}: {said}"
        yield from _lines(item, heading, depth + 1)


def _alike(name: str, heading: str) -> bool:
    """Whether an item has its container's name, as a Finding among Findings."""
    return name.lower().rstrip("s") == heading.lower().rstrip("s")


def _items(item: Dataset, name: str) -> list[Dataset]:
    value = item.get(name)
    return list(value) if isinstance(value, Sequence) else []


def _word(item: Dataset, name: str) -> str:
    return str(item.get(name) or "").strip().upper()


def _concept(item: Dataset) -> tuple[str, str]:
    """Scheme and value of the code that names an item."""
    code = next(iter(_items(item, "ConceptNameCodeSequence")), Dataset())
    return _word(code, "CodingSchemeDesignator"), _word(code, "CodeValue")


def _meaning(item: Dataset, name: str) -> str:
    code = next(iter(_items(item, name)), Dataset())
    return _plain(code.get("CodeMeaning"))


def _plain(value: object) -> str:
    """Text with one blank between words; its lines stay lines."""
    lines = (" ".join(line.split()) for line in str(value or "").splitlines())
    return "\n".join(line for line in lines if line)
