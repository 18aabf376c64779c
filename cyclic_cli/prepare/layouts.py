"""Knows the layouts of public collections: which files hold reports, and which patients and studies they belong to.

    tables           CSV, TSV or JSON Lines beside the images, or named with --reports; all layouts read these too
    mimic-cxr-jpg    files/p10/p10000032/s50414267/….jpg, mimic-cxr-2.0.0-split.csv.gz, -metadata, -chexpert, -negbio
    mimic-cxr        the same with ….dcm, reports in files/p10/p10000032/s50414267.txt, cxr-record-list.csv.gz
    openi            ecgen-radiology/1.xml, CXR1_1_IM-0001-3001.png or 1/1_IM-0001-3001.dcm
    roco             train/radiology/captions.txt and images/ROCO_00002.jpg; in version 2 train_captions.csv

MIMIC-CXR and MIMIC-CXR-JPG: Johnson et al., Scientific Data 6:317, 2019, and physionet.org/content/mimic-cxr-jpg.
Open-i: Demner-Fushman et al., JAMIA 23(2):304, 2016. ROCO: Pelka et al., LABELS 2018; Rückert et al., Scientific
Data 11:688, 2024.

To add a layout, write a class here and add it to `LAYOUTS`. Where the paths of images contain the number of their
study, reports are given under that number. A report then reaches all images of its study, in any format and folder.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import PurePosixPath
from typing import ClassVar
from xml.etree import ElementTree

from cyclic_cli.config import PrepareConfig
from cyclic_cli.errors import Rejected
from cyclic_cli.prepare.encodings import decoded
from cyclic_cli.prepare.report import Report
from cyclic_cli.prepare.tables import DAMAGED, SPLIT_NAMES, TABLE_NAMES, Table
from cyclic_cli.prepare.texts import TextFile, plain
from cyclic_cli.registry import check

LONGEST_DOCUMENT = 2**24  # bytes; a longer file is not taken for a report


class ReportStream:
    """The reports of tables and documents, one at a time; can be iterated once.

    `labels` are the labels of all tables, and `notes` say how the columns of each table were understood. Both are
    available before the iteration. After it, `notes` also give the number of unreadable texts and the first of them.
    """

    def __init__(self, layout: "Layout", files: Sequence[TextFile], config: PrepareConfig) -> None:
        """Read the columns of every table.

        Raises:
            CyclicError: a table cannot be read.
            UsageError: a table has no usable columns or would be misread, or no table has a column that the settings
                name.
        """
        self._layout, self._files = layout, layout.chosen(files)
        self._tables = {
            number: Table(file, config, layout.columns)
            for number, file in enumerate(self._files)
            if not layout.is_document(file.relative)
        }
        tables = self._tables.values()
        names = sorted({name for table in tables for name in table.names})
        for column in (config.image_column, config.text_column, config.patient_column, *config.label_columns):
            if column is not None:
                check(column, names, "column of the tables")
        for table in tables:
            table.columns.check(table.name, table.names)
        self.labels = list(dict.fromkeys(label for table in tables for label in table.columns.labels))
        self.notes = [f"{table.name}: {table.columns.described()}" for table in tables]
        self.notes += [f"{table.name}: {table.encoding.described}" for table in tables if table.encoding.is_guessed]
        unread = len(files) - len(self._files)
        self.notes += [f"{unread} text files of the collection hold no reports and are not read"] if unread else []

    def __iter__(self) -> Iterator[Report]:
        failed, first = 0, ""
        encodings: Counter[str] = Counter()
        for number, file in enumerate(self._files):
            table = self._tables.get(number)
            if table is not None:
                yield from (self._layout.row(report, file.relative) for report in table)
                continue
            try:
                text, encoding = decoded(content_of(file))
                encodings[encoding.described] += encoding.is_guessed
                yield from self._layout.document(file, text)
            except Rejected as error:
                first = first or f"{PurePosixPath(file.relative).name}: {error.message}"
                failed += 1
        if failed:
            self.notes.append(f"{failed} text files could not be read; the first is {first}")
        self.notes += notes_on_encodings(encodings)


class Layout:
    """Tables beside the images; the base class of all layouts."""

    columns: ClassVar[dict[str, str]] = {}
    """Role of a column → one more usual name of it; see `columns.Columns.find`."""

    def recognises(self, relative: str) -> bool:
        """Whether the path of a file, relative to its source, is typical of this layout."""
        return False

    def claims(self, relative: str) -> bool:
        """Whether the file is one of the layout's texts, and therefore not an image."""
        return relative in TABLE_NAMES

    def owner(self, relative: str) -> tuple[str, str]:
        """The patient and the study that a path contains; an empty string for what it does not contain."""
        return "", ""

    def read(self, files: Sequence[TextFile], config: PrepareConfig) -> ReportStream:
        """The reports in texts that the layout claims, and in tables that the user named."""
        return ReportStream(self, files, config)

    def chosen(self, files: Sequence[TextFile]) -> list[TextFile]:
        """The texts that are read. The collection's other texts hold no reports."""
        return list(files)

    def is_document(self, relative: str) -> bool:
        """Whether a text is read with `document`; otherwise it is read as a table."""
        return False

    def document(self, file: TextFile, text: str) -> Iterator[Report]:
        """The reports in a text that is not a table. Raises Rejected when it cannot be read."""
        raise NotImplementedError

    def row(self, report: Report, relative: str) -> Report:
        """A row of a table, adapted to the layout."""
        return report


def notes_on_encodings(described: Counter[str]) -> list[str]:
    """What was guessed about the encodings of text files, each with the number of files."""
    return [f"{count} text files: {guess}" for guess, count in sorted(described.items()) if count]


def content_of(file: TextFile) -> bytes:
    """The bytes of a document. Raises Rejected with the reason `unreadable` or `too_large`."""
    try:
        with file.open() as stream:
            content = stream.read(LONGEST_DOCUMENT + 1)
    except DAMAGED as error:
        raise Rejected("unreadable") from error
    if len(content) > LONGEST_DOCUMENT:
        raise Rejected("too_large", f"more than {LONGEST_DOCUMENT // 2**20} MiB, too large for a report")
    return content


# ------------------------------------------------------------------------------------------------ MIMIC-CXR


class MimicCxr(Layout):
    """MIMIC-CXR or MIMIC-CXR-JPG, or the images of one with the texts of the other.

    Splits and labels are given for studies. Several tables hold the same labels, made by different labellers that
    disagree. Only one of these tables is read: CheXpert's, else NegBio's, else the test set's.

    Args:
        suffix: Suffix of the images' names.
        shown_by: Regular expression for the end of a path of an image or text that is typical of the layout.
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
        tables = {self._table(file.relative) for file in files}
        labellers = [name for name in self.LABELLERS if name in tables]
        unread = {"provider", *labellers[1:]}
        return [file for file in files if self._table(file.relative) not in unread]

    def is_document(self, relative: str) -> bool:
        return relative.endswith(".txt") and bool(self.IN_STUDY.search(relative))

    def document(self, file: TextFile, text: str) -> Iterator[Report]:
        patient, study = self.owner(file.relative)
        sections = findings_and_impression(plain(text))
        yield Report(patient=patient, study=study, text=sections, line=f"s{study}.txt", table=file.absolute)

    def row(self, report: Report, relative: str) -> Report:
        table, image = self._table(relative), PurePosixPath(report.image)
        if table in ("split", "study"):  # rows about whole studies; the study list's paths name reports, not images
            return replace(report, image="")
        if table in ("record", "metadata") and report.patient and report.study:
            folder = f"files/p{report.patient[:2]}/p{report.patient}/s{report.study}"
            return replace(report, image=f"{folder}/{image.name.removesuffix(image.suffix)}{self.suffix}")
        return report

    def _table(self, relative: str) -> str:
        """The name of the collection's table at a path; empty for any other file."""
        found = self.TABLE.search(relative)
        return (found["list"] or found["of"]) if found else ""


HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,&-]*[A-Z)])[ \t]*:", re.MULTILINE)
DESCRIBES_IMAGE = {
    "FINDINGS": True,
    "FINDING": True,
    "IMPRESSION": True,
    "IMPRESSIONS": True,
    "CONCLUSION": True,
} | dict.fromkeys(
    "INDICATION HISTORY COMPARISON COMPARISONS TECHNIQUE EXAMINATION EXAM REASON CLINICAL INFORMATION RECOMMENDATION "
    "RECOMMENDATIONS NOTIFICATION WET WETREAD READ ADDENDUM DATE COMMENT NOTE PROCEDURE REQUEST DOSE PFI".split(),
    False,
)
"""Word of a heading → whether its section describes the image."""
VIEWS = re.compile("CHEST|PORTABLE|VIEW|LATERAL|FRONTAL|UPRIGHT|RIBS")
"""Words of headings that only name the examination (`CHEST, TWO VIEWS:`) and are followed by the findings."""


def findings_and_impression(report: str) -> str:
    """The sections of a MIMIC-CXR report that describe the image, one line per section.

    A heading is a run of words in capitals with a colon at the beginning of a line, as in the collection's own parser
    (github.com/MIT-LCP/mimic-cxr, txt/section_parser.py). A misspelt word of a heading counts as the most similar known
    word. Within FINDINGS or IMPRESSION, a heading of unknown words (`HEART:`) belongs to the section's text.
    A report without these sections gives its last section from the second paragraph on. A report without any heading
    gives its whole text except the title.
    """
    sections = _sections("\n".join(report.splitlines()))
    texts = [text for describes_image, text in sections if describes_image and text.strip()]
    if not texts:
        paragraphs = [part for part in re.split(r"\n[ \t]*\n", sections[-1][1]) if part.strip()]
        texts = paragraphs[1:] if len(sections) > 1 else [" ".join(paragraphs)]
    plain = (" ".join(text.split()).removeprefix("FINAL REPORT ") for text in texts)
    return "\n".join(text for text in plain if text)


def _sections(report: str) -> list[tuple[bool, str]]:
    """For each section whether it describes the image, and its text; the first is the text before all headings."""
    headings = list(HEADING.finditer(report))
    ends = [heading.start() for heading in headings[1:]] + [len(report)]
    sections = [(False, report[: headings[0].start()] if headings else report)]
    for heading, end in zip(headings, ends, strict=False):
        describes_image, text = _describes_image(heading[1]), report[heading.end() : end]
        if describes_image is None and sections[-1][0]:
            sections[-1] = (True, sections[-1][1] + report[heading.start() : end])
        else:
            if describes_image is None:
                describes_image = bool(VIEWS.search(heading[1]))
            sections.append((describes_image, text))
    return sections


@lru_cache(maxsize=4096)
def _describes_image(heading: str) -> bool | None:
    """Whether the section under a heading describes the image; None when the heading has no known word."""
    nearest = [get_close_matches(word, DESCRIBES_IMAGE, n=1, cutoff=0.8) for word in re.findall("[A-Z]+", heading)]
    known = [DESCRIBES_IMAGE[word[0]] for word in nearest if word]
    return any(known) if known else None


# --------------------------------------------------------------------------------------------------- Open-i


class OpenI(Layout):
    """Indiana University's chest X-rays in Open-i. The number of a report is also that of its patient and study."""

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

    def document(self, file: TextFile, text: str) -> Iterator[Report]:
        root = _parsed(text)
        name = PurePosixPath(file.relative).name
        number = "".join(re.findall(r"\d+", next((node.get("id", "") for node in root.iter("uId")), "")))
        number = number or name.removesuffix(".xml")
        texts = {node.get("Label"): " ".join("".join(node.itertext()).split()) for node in root.iter("AbstractText")}
        sections = "\n".join(plain(texts[label]) for label in self.SECTIONS if texts.get(label))
        yield Report(patient=number, study=number, text=sections, line=name, table=file.absolute)


def _parsed(text: str) -> ElementTree.Element:
    """The root of an XML document. Raises Rejected when it is not well formed or declares types or entities.

    Attacks by XML (entities that expand exponentially, external files) need such a declaration, and reports have none.
    A declaration cannot be hidden by an encoding, because the parser gets text that is decoded already.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Rejected("unknown_format", "an XML document with a type declaration")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Rejected("unknown_format", "not well-formed XML") from error


# ----------------------------------------------------------------------------------------------------- ROCO


class Roco(Layout):
    """Radiology Objects in COntext, versions 1 and 2.

    The name of an image is used as its study. The split is in the name of a folder or of a table. Images of version 1
    have ROCO's numbers as names, or names made from their article; `dlinks.txt` maps the numbers to the articles.
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

    def document(self, file: TextFile, text: str) -> Iterator[Report]:
        found = self.OF_V1.search(file.relative)
        split = SPLIT_NAMES[found["split"]] if found else ""
        name = f"{self._text(file.relative)}.txt"
        for entry in self.ENTRY.finditer(text):
            report = Report(study=entry["study"], split=split, line=f"{name}, {entry['study']}", table=file.absolute)
            article = self.ARTICLE.search(entry["rest"])
            if name == "captions.txt":
                yield replace(report, text=plain(" ".join(entry["rest"].split())))
            elif article:
                image = entry["rest"].rpartition("\t")[2].strip()
                yield replace(report, image=f"images/{article[1]}_{image}")

    def row(self, report: Report, relative: str) -> Report:
        found = self.OF_V2.search(relative)
        return replace(report, split=SPLIT_NAMES[found["split"]]) if found and found["split"] else report

    def _text(self, relative: str) -> str:
        """The name of the collection's text at a path; empty for any other file."""
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
"""Name → layout. When the paths match several layouts, `auto` chooses the first of them."""


def resolve(name: str, relatives: Iterable[str]) -> Layout:
    """The layout of a name. `auto` recognises it from the paths, independently of their order.

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
