"""How collections lay out their texts: which files hold reports, and whose.

    tables           CSV or JSON Lines beside the images, or named with --reports; every layout reads these too
    mimic-cxr-jpg    files/p10/p10000032/s50414267/….jpg, mimic-cxr-2.0.0-split.csv.gz, -metadata, -chexpert, -negbio
    mimic-cxr        the same with ….dcm, reports in files/p10/p10000032/s50414267.txt, cxr-record-list.csv.gz
    openi            ecgen-radiology/1.xml, CXR1_1_IM-0001-3001.png or 1/1_IM-0001-3001.dcm
    roco             train/radiology/captions.txt and images/ROCO_00002.jpg; of version 2, train_captions.csv

MIMIC-CXR and MIMIC-CXR-JPG: Johnson et al., Scientific Data 6:317, 2019, and physionet.org/content/mimic-cxr-jpg.
Open-i: Demner-Fushman et al., JAMIA 23(2):304, 2016. ROCO: Pelka et al., LABELS 2018; Rückert et al., Scientific
Data 11:688, 2024.

A new layout is a class here and its line in `LAYOUTS`. Where a collection writes a report's number into the paths of
its images, the report is given by that number and reaches every image of the study, whatever its format and folder.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import PurePosixPath
from typing import ClassVar
from xml.etree import ElementTree

from cyclic_cli.config import PrepareConfig
from cyclic_cli.errors import Rejected
from cyclic_cli.prepare.tables import DAMAGED, SPLITS, TABLE_NAMES, Report, Table, TextFile, as_text
from cyclic_cli.registry import check

LONGEST_DOCUMENT = 2**24  # bytes; a longer one is no report


class ReportStream:
    """Every report of some texts, one by one; to be iterated once.

    `labels` are the label columns of all tables, and `notes` say how each table was understood. Both are known before
    the first report is taken; once the last is, `notes` also say how many texts could not be read, and which first.
    """

    def __init__(self, layout: "Layout", files: Sequence[TextFile], config: PrepareConfig) -> None:
        """Look at every table's head. Raises UsageError for a table, or a column asked for, that cannot be."""
        self._layout, self._files = layout, layout.chosen(files)
        self._tables = {
            number: Table(file, config, layout.columns)
            for number, file in enumerate(self._files)
            if not layout.is_document(file.relative)
        }
        tables = self._tables.values()
        known = sorted({name for table in tables for name in table.names})
        for asked in (config.image_column, config.text_column, config.patient_column, *config.label_columns):
            if asked is not None:
                check(asked, known, "column of the tables")
        for table in tables:
            table.columns.check(table.name, table.names)
        self.labels = list(dict.fromkeys(label for table in tables for label in table.columns.labels))
        self.notes = [f"{table.name}: {table.columns.described()}" for table in tables]
        unread = len(files) - len(self._files)
        self.notes += [f"{unread} texts of the collection hold no reports, and are not read"] if unread else []

    def __iter__(self) -> Iterator[Report]:
        failed, first = 0, ""
        for number, file in enumerate(self._files):
            table = self._tables.get(number)
            if table is not None:
                yield from (self._layout.row(report, file.relative) for report in table)
                continue
            try:
                yield from self._layout.document(file)
            except Rejected as error:
                first = first or f"{PurePosixPath(file.relative).name}: {error.message}"
                failed += 1
        if failed:
            self.notes.append(f"{failed} texts could not be read, the first of them {first}")


class Layout:
    """Tables beside the images. The base of all others, which say what differs."""

    columns: ClassVar[dict[str, str]] = {}
    """What a column says → a further usual name of it; see `text.Columns`."""

    def recognises(self, relative: str) -> bool:
        """Whether a file's path, relative to its source, shows that the source is in this layout."""
        return False

    def claims(self, relative: str) -> bool:
        """Whether a file of the sources is one of the layout's texts, and so no image."""
        return relative in TABLE_NAMES

    def owner(self, relative: str) -> tuple[str, str]:
        """The patient and the study that a file's path names; empty where it names none."""
        return "", ""

    def read(self, files: Sequence[TextFile], config: PrepareConfig) -> ReportStream:
        """The reports of texts that the layout claims, and of tables that the user named."""
        return ReportStream(self, files, config)

    def chosen(self, files: Sequence[TextFile]) -> list[TextFile]:
        """Those of the texts that are read: others belong to the collection, and hold no reports."""
        return list(files)

    def is_document(self, relative: str) -> bool:
        """Whether a text is read by `document`, and not as a table."""
        return False

    def document(self, file: TextFile) -> Iterator[Report]:
        """The reports of a text that is no table. Raises Rejected where it cannot be read."""
        raise NotImplementedError

    def row(self, report: Report, relative: str) -> Report:
        """What a table's row means here."""
        return report


def content_of(file: TextFile) -> bytes:
    """A document's bytes. Raises Rejected: unreadable, too_large."""
    try:
        with file.open() as stream:
            content = stream.read(LONGEST_DOCUMENT + 1)
    except DAMAGED as error:
        raise Rejected("unreadable") from error
    if len(content) > LONGEST_DOCUMENT:
        raise Rejected("too_large", f"more than {LONGEST_DOCUMENT // 2**20} MiB, which no report has")
    return content


# ------------------------------------------------------------------------------------------------ MIMIC-CXR


class MimicCxr(Layout):
    """MIMIC-CXR or MIMIC-CXR-JPG, or the images of one with texts of the other.

    Splits and labels are given by study. Several tables hold the same labels found by different labellers, which do
    not agree: of them the first of CheXpert's, NegBio's and the test set's is read.

    Args:
        suffix: Of the images' names.
        shown_by: What the path of an image or a text ends with.
    """

    IN_STUDY = re.compile(r"(?:^|/)p(?P<patient>\d{8})/s(?P<study>\d{8})(?:/[^/]+|\.txt)$")
    TABLE = re.compile(
        r"(?:^|/)(?:cxr-(?P<list>record|study|provider)-list|"
        r"mimic-cxr-[\d.]+-(?P<of>split|metadata|chexpert|negbio|test-set-labeled))\.csv(?:\.gz)?$"
    )
    LABELLERS = ("chexpert", "negbio", "test-set-labeled")

    def __init__(self, suffix: str, shown_by: str) -> None:
        self.suffix, self.shown_by = suffix, re.compile(shown_by)

    def recognises(self, relative: str) -> bool:
        return bool(self.shown_by.search(relative) and self.IN_STUDY.search(relative))

    def claims(self, relative: str) -> bool:
        return super().claims(relative) or self.is_document(relative) or bool(self._table(relative))

    def owner(self, relative: str) -> tuple[str, str]:
        found = self.IN_STUDY.search(relative)
        return (found["patient"], found["study"]) if found else ("", "")

    def chosen(self, files: Sequence[TextFile]) -> list[TextFile]:
        there = {self._table(file.relative) for file in files}
        labellers = [name for name in self.LABELLERS if name in there]
        left_out = {"provider", *labellers[1:]}
        return [file for file in files if self._table(file.relative) not in left_out]

    def is_document(self, relative: str) -> bool:
        return relative.endswith(".txt") and bool(self.IN_STUDY.search(relative))

    def document(self, file: TextFile) -> Iterator[Report]:
        patient, study = self.owner(file.relative)
        text = findings_and_impression(as_text(content_of(file)))
        yield Report(patient=patient, study=study, text=text, line=f"s{study}.txt", table=file.absolute)

    def row(self, report: Report, relative: str) -> Report:
        table, image = self._table(relative), PurePosixPath(report.image)
        if table in ("split", "study"):  # of a whole study; the study list's paths are those of reports
            return replace(report, image="")
        if table in ("record", "metadata") and report.patient and report.study:
            folder = f"files/p{report.patient[:2]}/p{report.patient}/s{report.study}"
            return replace(report, image=f"{folder}/{image.name.removesuffix(image.suffix)}{self.suffix}")
        return report

    def _table(self, relative: str) -> str:
        """Which table of the collection this is; empty for none."""
        found = self.TABLE.search(relative)
        return (found["list"] or found["of"]) if found else ""


HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,&-]*[A-Z)])[ \t]*:", re.MULTILINE)
SAYS = {"FINDINGS": True, "FINDING": True, "IMPRESSION": True, "IMPRESSIONS": True, "CONCLUSION": True} | dict.fromkeys(
    "INDICATION HISTORY COMPARISON COMPARISONS TECHNIQUE EXAMINATION EXAM REASON CLINICAL INFORMATION RECOMMENDATION "
    "RECOMMENDATIONS NOTIFICATION WET WETREAD READ ADDENDUM DATE COMMENT NOTE PROCEDURE REQUEST DOSE PFI".split(),
    False,
)
"""Words of a heading, and whether what stands under it describes the picture."""
VIEWS = re.compile("CHEST|PORTABLE|VIEW|LATERAL|FRONTAL|UPRIGHT|RIBS")
"""Words of headings that only name the picture (`CHEST, TWO VIEWS:`), under which its findings stand."""


def findings_and_impression(report: str) -> str:
    """What a report of MIMIC-CXR says of the picture, a line a section.

    Sections are told by their headings, words in capitals and a colon at a line's beginning, as by the collection's
    own parser (github.com/MIT-LCP/mimic-cxr, txt/section_parser.py); a misspelt one counts as the word that it is
    nearest to. A heading within FINDINGS or IMPRESSION that is none of a report's sections (`HEART:`) is part of them.
    A report without these sections gives what follows the first paragraph of its last section; one without any
    heading gives everything but its title.
    """
    sections = _sections("\n".join(report.splitlines()))
    said = [text for says, text in sections if says and text.strip()]
    if not said:
        paragraphs = [part for part in re.split(r"\n[ \t]*\n", sections[-1][1]) if part.strip()]
        said = paragraphs[1:] if len(sections) > 1 else [" ".join(paragraphs)]
    plain = (" ".join(text.split()).removeprefix("FINAL REPORT ") for text in said)
    return "\n".join(text for text in plain if text)


def _sections(report: str) -> list[tuple[bool, str]]:
    """Whether each section describes the picture, and its text; the first is what stands before all headings."""
    headings = list(HEADING.finditer(report))
    ends = [heading.start() for heading in headings[1:]] + [len(report)]
    sections = [(False, report[: headings[0].start()] if headings else report)]
    for heading, end in zip(headings, ends, strict=False):
        says, text = _says(heading[1]), report[heading.end() : end]
        if says is None and sections[-1][0]:
            sections[-1] = (True, sections[-1][1] + report[heading.start() : end])
        else:
            sections.append((bool(says if says is not None else VIEWS.search(heading[1])), text))
    return sections


@lru_cache(maxsize=4096)
def _says(heading: str) -> bool | None:
    """Whether a section describes the picture; None where its heading is none of those a report has."""
    nearest = [get_close_matches(word, SAYS, n=1, cutoff=0.8) for word in re.findall("[A-Z]+", heading)]
    known = [SAYS[word[0]] for word in nearest if word]
    return any(known) if known else None


# --------------------------------------------------------------------------------------------------- Open-i


class OpenI(Layout):
    """Indiana University's chest X-rays in Open-i. One number names a report, its patient and its study."""

    IMAGE = re.compile(r"(?:^|/)(?:CXR)?(?P<number>\d+)_(?:\d+_)?IM-\d+-[^/]*$")
    SHOWN_BY = re.compile(r"(?:^|/)(?:ecgen-radiology/\d+\.xml|CXR\d+_(?:\d+_)?IM-\d+-[^/]*)$")
    TEXT = re.compile(r"(?:^|/)(?P<number>\d+)\.xml$")
    SECTIONS = ("FINDINGS", "IMPRESSION")

    def recognises(self, relative: str) -> bool:
        return bool(self.SHOWN_BY.search(relative))

    def claims(self, relative: str) -> bool:
        return super().claims(relative) or self.is_document(relative)

    def owner(self, relative: str) -> tuple[str, str]:
        found = self.IMAGE.search(relative)
        return (found["number"], found["number"]) if found else ("", "")

    def is_document(self, relative: str) -> bool:
        return bool(self.TEXT.search(relative))

    def document(self, file: TextFile) -> Iterator[Report]:
        root = _parsed(as_text(content_of(file)))
        name = PurePosixPath(file.relative).name
        number = "".join(re.findall(r"\d+", next((node.get("id", "") for node in root.iter("uId")), "")))
        number = number or name.removesuffix(".xml")
        said = {node.get("Label"): " ".join("".join(node.itertext()).split()) for node in root.iter("AbstractText")}
        text = "\n".join(said[label] for label in self.SECTIONS if said.get(label))
        yield Report(patient=number, study=number, text=text, line=name, table=file.absolute)


def _parsed(text: str) -> ElementTree.Element:
    """An XML document's root. Raises Rejected for what is not well formed, or declares types or entities.

    A declaration is what every attack by XML needs (entities that multiply, files that are fetched), and no report has
    one. It cannot hide: the text is decoded here, and no other encoding is looked for.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Rejected("unknown_format", "an XML document with a type declaration")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Rejected("unknown_format", "not well-formed XML") from error


# ----------------------------------------------------------------------------------------------------- ROCO


class Roco(Layout):
    """Radiology Objects in COntext, of both versions.

    An image's name is its study, and the name of a folder or of a table its split. The images of version 1 are
    named by ROCO's numbers, or by the article they come from, which `dlinks.txt` says.
    """

    columns: ClassVar = {"study": "id"}
    IMAGE = re.compile(r"(?:^|/)(?P<study>ROCO(?:v2)?_\w+)\.(?:jpe?g|png)$")
    OF_V1 = re.compile(r"(?:^|/)(?P<split>train|validation|test)/(?:non-)?radiology/(?P<what>\w+)\.(?:txt|csv)$")
    OF_V2 = re.compile(r"(?:^|/)(?:(?P<split>train|valid|test)_(?P<what>\w+)|cui_mapping|license_information)\.csv$")
    ENTRY = re.compile(r"^(?P<study>ROCO_\w+)[ \t]+(?P<rest>.*?)(?=^ROCO_\w+[ \t]|\Z)", re.MULTILINE | re.DOTALL)
    ARTICLE = re.compile(r"(PMC\d+)\.tar\.gz")

    def recognises(self, relative: str) -> bool:
        return bool(self.IMAGE.search(relative)) or self.is_document(relative)

    def claims(self, relative: str) -> bool:
        return super().claims(relative) or bool(self._text(relative))

    def owner(self, relative: str) -> tuple[str, str]:
        found = self.IMAGE.search(relative)
        return "", found["study"] if found else ""

    def chosen(self, files: Sequence[TextFile]) -> list[TextFile]:
        return [file for file in files if self._text(file.relative) in ("", "captions", "dlinks")]

    def is_document(self, relative: str) -> bool:
        found = self.OF_V1.search(relative)
        return bool(found and found["what"] in ("captions", "dlinks") and relative.endswith(".txt"))

    def document(self, file: TextFile) -> Iterator[Report]:
        found = self.OF_V1.search(file.relative)
        split, name, table = SPLITS[found["split"]] if found else "", f"{self._text(file.relative)}.txt", file.absolute
        for entry in self.ENTRY.finditer(as_text(content_of(file))):
            report = Report(study=entry["study"], split=split, line=f"{name}, {entry['study']}", table=table)
            article = self.ARTICLE.search(entry["rest"])
            if name == "captions.txt":
                yield replace(report, text=" ".join(entry["rest"].split()))
            elif article:
                image = entry["rest"].rpartition("\t")[2].strip()
                yield replace(report, image=f"images/{article[1]}_{image}")

    def row(self, report: Report, relative: str) -> Report:
        found = self.OF_V2.search(relative)
        return replace(report, split=SPLITS[found["split"]]) if found and found["split"] else report

    def _text(self, relative: str) -> str:
        """Which text of the collection this is; empty for none."""
        found = self.OF_V1.search(relative) or self.OF_V2.search(relative)
        return (found["what"] or "other") if found else ""


# ------------------------------------------------------------------------------------------------ by name


LAYOUTS: dict[str, Layout] = {
    "mimic-cxr-jpg": MimicCxr(".jpg", r"\.(?:jpe?g|png)$"),
    "mimic-cxr": MimicCxr(".dcm", r"\.(?:dcm|txt)$"),
    "openi": OpenI(),
    "roco": Roco(),
    "tables": Layout(),
}
"""Every layout. Where paths show several, `auto` takes the first."""


def resolve(name: str, relatives: Iterable[str]) -> Layout:
    """The layout behind a name; `auto` goes by the paths, whatever their order.

    Args:
        name: A key of `LAYOUTS`, or `auto`.
        relatives: Paths of all files of the sources, relative to their source.

    Raises:
        UsageError: there is no such layout.
    """
    if name != "auto":
        check(name, ["auto", *LAYOUTS], "layout")
        return LAYOUTS[name]
    shown: set[str] = set()
    for relative in relatives:
        shown |= {known for known, layout in LAYOUTS.items() if layout.recognises(relative)}
    return next((layout for known, layout in LAYOUTS.items() if known in shown), LAYOUTS["tables"])
