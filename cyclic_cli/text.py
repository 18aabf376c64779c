"""Reports: tables (CSV or JSON Lines) and `.txt` side-cars, and how they find their images.

Of a table only the columns that say which image, which patient, which study, which split, what text and which
labels are read; every other column is dropped and counted, because tables carry names and dates. How a row finds its
image stands at `Reports.match`: an image without its report is a pity, one with another's report a disaster.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cyclic_cli.config import PrepareConfig
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.images import SUFFIXES
from cyclic_cli.registry import check
from cyclic_cli.storage import INDEX_COLUMNS

TABLE_NAMES = ("reports.csv", "reports.jsonl", "findings.csv", "labels.csv")
"""Tables that are read without being named when they lie in a source folder."""
SIDE_CAR = "report.txt"
"""A study's report beside its images; `scan.txt` beside `scan.dcm` goes before it."""

IMAGE_COLUMNS = (
    "path",
    "image",
    "image_path",
    "file",
    "filename",
    "file_name",
    "dicom_path",
    "dicom",
    "image_id",
)
TEXT_COLUMNS = ("text", "report_text", "caption")
SECTION_COLUMNS = ("findings", "impression")  # joined where there is no text column
REPORT_COLUMN = "report"  # the text where there is neither; else a number, which tells studies apart
PATIENT_COLUMNS = ("patient", "patient_id", "patientid", "subject_id", "subject", "case_id", "case")
STUDY_COLUMNS = ("study", "study_id", "study_uid", "studyinstanceuid", "study_instance_uid")
SPLIT_COLUMNS = ("split", "subset")
LABEL_COLUMNS = {
    # CheXpert (Irvin et al., AAAI 2019)
    "no_finding", "enlarged_cardiomediastinum", "cardiomegaly", "lung_opacity", "lung_lesion", "edema", "consolidation",
    "pneumonia", "atelectasis", "pneumothorax", "pleural_effusion", "pleural_other", "fracture", "support_devices",
    # the demo's phantoms
    "nodule", "pacemaker",
}  # fmt: skip
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip

LINE = "\0line"  # where a row stands in its file, beside its cells

Label = float | str | None


@dataclass(frozen=True)
class Report:
    """What a table or a side-car says of one image, or of none."""

    image: str = ""  # as the table writes it
    text: str = ""
    patient: str = ""
    study: str = ""
    split: str = ""
    labels: dict[str, Label] = field(default_factory=dict)
    line: str = ""  # where it stands: "reports.csv, line 7"

    def __repr__(self) -> str:
        return "Report(hidden)"


@dataclass
class Matched:
    """Reports on the images they speak of."""

    reports: dict[int, Report] = field(default_factory=dict)  # by the number of the input
    conflicting: set[int] = field(default_factory=set)  # inputs whose rows contradict one another
    unmatched: list[Report] = field(default_factory=list)  # of no image, or of one that is not there
    by_name: int = 0  # rows that found their image by its file name alone


class Reports:
    """Every report of some tables, and the way from a row to its image."""

    def __init__(self, tables: Iterable[Path], config: PrepareConfig) -> None:
        self.tables = [_Table(path, config) for path in tables]
        _check_asked_columns(self.tables, config)
        for table in self.tables:
            table.columns.check(table.name, sorted(table.names))
        self.labels = list(dict.fromkeys(label for table in self.tables for label in table.columns.labels))

    def match(self, inputs: list[tuple[Path, str]]) -> Matched:
        """Bring every row to its image: inputs are files with their paths relative to their source.

        A row is given to one image at most, and by the strictest rule that finds one: its path starts at the table's
        folder, or at a source, or it is how the path of one input alone ends; a mere file name, without folders, must
        be unique among inputs and rows.
        """
        matched = Matched()
        for table in self.tables:
            matched.unmatched += table.free
            places, by_name = table.places(inputs)
            matched.by_name += by_name
            for image, report in table.rows.items():
                number = places.get(image)
                if number is None:
                    matched.unmatched += [report] if report else []
                    continue
                known = matched.reports.get(number, Report())
                merged = _merge(known, report) if report else None
                if merged is None:
                    matched.conflicting.add(number)
                else:
                    matched.reports[number] = merged
        return matched


class _Table:
    """The rows of one table, one for each image it names."""

    def __init__(self, path: Path, config: PrepareConfig) -> None:
        rows = _table_rows(path)
        names = {_normal(name): name for row in rows[:1000] for name in row if name != LINE}
        self.name, self.folder, self.names = path.name, path.parent, set(names.values())
        self.columns = _Columns.find(names, config)
        self.dropped_columns = len(names) - self.columns.count()
        self.free: list[Report] = []  # without an image
        self.rows: dict[str, Report | None] = {}  # by image; None where its rows contradict one another
        for number, row in enumerate(rows, 2):
            report = self.columns.report(row, f"{self.name}, line {row.get(LINE, number)}")
            image = os.path.normpath(report.image) if report.image else ""
            if not image:
                self.free.append(report)
            elif image not in self.rows:
                self.rows[image] = report
            else:
                known = self.rows[image]
                self.rows[image] = _merge(known, report) if known else None

    def places(self, inputs: list[tuple[Path, str]]) -> tuple[dict[str, int], int]:
        """The number of the input of each row that has one, and how many rows found theirs by the last rule."""
        absolute = [os.path.abspath(path) for path, _ in inputs]
        by_path = {path: number for number, path in enumerate(absolute)}
        written = {image: by_path.get(os.path.abspath(self.folder / image), -1) for image in self.rows}
        depths = {image.count("/") + 1 for image in self.rows if "/" in image}
        rules = [
            written,
            _unique([os.path.normpath(relative) for _, relative in inputs]),
            _unique_endings(absolute, depths),
            _unique([path.name for path, _ in inputs]),
        ]
        places: dict[str, int] = {}
        for numbers in rules:
            taken, stricter = {-1, *places.values()}, len(places)
            for image in self.rows:
                if image not in places and numbers.get(image, -1) not in taken:
                    places[image] = numbers[image]
        return places, len(places) - stricter


def _unique(keys: list[str]) -> dict[str, int]:
    """The numbers of the keys that occur once."""
    counts = Counter(keys)
    return {key: number for number, key in enumerate(keys) if counts[key] == 1}


def _unique_endings(paths: list[str], depths: set[int]) -> dict[str, int]:
    """The last `depth` parts of each path → its number, or -1 where several paths end so."""
    endings: dict[str, int] = {}
    for number, path in enumerate(paths):
        parts = path.split("/")
        for depth in depths:
            ending = "/".join(parts[-depth:])
            endings[ending] = -1 if ending in endings else number
    return endings


def _check_asked_columns(tables: list[_Table], config: PrepareConfig) -> None:
    """Raise UsageError when a column that was asked for by name is in no table."""
    known = sorted({name for table in tables for name in table.names})
    for asked in (config.image_column, config.text_column, config.patient_column, *config.label_columns):
        if asked is not None:
            check(asked, known, "column of the tables")


def _merge(known: Report, new: Report) -> Report | None:
    """Two rows of one image as one; None when they contradict one another."""
    for name in ("text", "patient", "study", "split"):
        first, second = getattr(known, name), getattr(new, name)
        if first and second and first != second:
            return None
        known = replace(known, **{name: first or second})
    for label, value in new.labels.items():
        first_value = known.labels.get(label)
        if first_value is not None and value is not None and first_value != value:
            return None
    filled = {label: value for label, value in new.labels.items() if value is not None}
    return replace(known, labels={**new.labels, **known.labels, **filled})


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table are read, by the names the table gives them."""

    image: str | None
    texts: tuple[str, ...]
    patient: str | None
    study: str | None
    split: str | None
    labels: dict[str, str]  # label → column

    @classmethod
    def find(cls, names: dict[str, str], config: PrepareConfig) -> "_Columns":
        def named(asked: str | None, usual: tuple[str, ...]) -> str | None:
            if asked in names.values():
                return asked
            return next((names[name] for name in usual if name in names), None)

        text = named(config.text_column, TEXT_COLUMNS)
        sections = tuple(names[name] for name in SECTION_COLUMNS if name in names)
        if not text and not sections:
            text = names.get(REPORT_COLUMN)
        labels = {_label_name(label): label for label in config.label_columns if label in names.values()}
        found = {name: column for name, column in names.items() if name in LABEL_COLUMNS}
        return cls(
            image=named(config.image_column, IMAGE_COLUMNS),
            texts=(text,) if text else sections,
            patient=named(config.patient_column, PATIENT_COLUMNS),
            study=named(None, STUDY_COLUMNS) or (names.get(REPORT_COLUMN) if sections and not text else None),
            split=named(None, SPLIT_COLUMNS),
            labels={**found, **labels},
        )

    def check(self, table: str, names: list[str]) -> None:
        """Raise UsageError when nothing of a table can be used, or a label would keep what must not be kept."""
        said = self.texts or self.patient or self.study or self.split or self.labels
        if not said or not (self.image or self.texts):
            raise UsageError(
                f"In {table} no column of images, with reports, patients or labels, is recognised.",
                f"Name them with --image-column and the like. Columns: {', '.join(names)[:300] or 'none'}.",
            )
        for label in self.labels.values():
            if label in (self.image, self.patient, self.study, *self.texts):
                raise UsageError(f"{label!r} of {table} names images, patients or texts.", "It can be no label.")

    def described(self) -> str:
        """How the columns were understood."""
        parts = {
            "image": self.image, "text": " + ".join(self.texts), "patient": self.patient, "study": self.study,
            "split": self.split, "labels": ", ".join(self.labels.values()),
        }  # fmt: skip
        return "; ".join(f"{what}: {column}" for what, column in parts.items() if column)

    def count(self) -> int:
        single = [self.image, self.patient, self.study, self.split]
        return len({*self.texts, *self.labels.values(), *(column for column in single if column)})

    def report(self, row: dict[str, Any], line: str) -> Report:
        """One row; `line` says where it stands. Raises UsageError for a split that has no usual name."""

        def cell(column: str | None) -> str:
            return str(row.get(column) or "").strip() if column else ""

        split = cell(self.split).lower()
        if split:
            check(split, SPLITS, f"split ({line})")
        return Report(
            image=cell(self.image),
            text="\n".join(part for part in map(cell, self.texts) if part),
            patient=cell(self.patient),
            study=cell(self.study),
            split=SPLITS.get(split, ""),
            labels={label: _label(row.get(column)) for label, column in self.labels.items()},
            line=line,
        )


def _label_name(column: str) -> str:
    """A label's column of the index, which has columns of its own."""
    name = _normal(column)
    return f"label_{name}" if name in INDEX_COLUMNS else name


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def _label(value: Any) -> Label:
    if value is None or str(value).strip() == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value).strip()


def _table_rows(table: Path) -> list[dict[str, Any]]:
    """The rows of a CSV or JSON Lines file as dictionaries. Raises CyclicError when it is neither."""
    try:
        text = read_text(table)
    except OSError as error:
        raise CyclicError(f"The table {table} cannot be read: {error.strerror}.", "Check --reports.") from error
    if table.suffix.lower() in (".jsonl", ".ndjson"):
        return [_json_row(line, table, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    csv.field_size_limit(2**27)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in reader:
            if None in row:  # a text with an unquoted separator would be cut, and move what follows
                raise csv.Error("more cells than the head")
            rows.append({**row, LINE: reader.line_num})
    except csv.Error as error:
        raise UsageError(
            f"{table}, line {reader.reader.line_num}: {error}.",
            "Put texts that hold separators or line ends into quotes.",
        ) from None
    return rows


def _json_row(line: str, table: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"{table}, line {number}, is not a JSON object.", "Give one object a line.")
    return row


def read_text(path: Path) -> str:
    """A text file in UTF-8 (with or without a mark), else in Windows' Western code page, which decodes anything."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def base_name(path: Path) -> str:
    """A file's name without a suffix of an image format; dots of a UID stay."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def side_car(image: Path, texts: set[str]) -> str | None:
    """The text file beside an image that belongs to it: `scan.txt` for `scan.dcm`, else the folder's `report.txt`.

    Args:
        image: The image file.
        texts: Names of the text files in its folder.
    """
    for name in (base_name(image) + ".txt", SIDE_CAR):
        if name in texts:
            return name
    return None
