"""Reports as tables say them (CSV, TSV or JSON Lines, plain or gzipped), and the `.txt` side-cars of images.

Of a table only the columns that say which image, which patient, which study, which split, what text and which
labels are read; every other column is dropped and counted, because tables carry names and dates. What stands in
identity-like columns is held in memory, to be cut out of the report, and goes nowhere else. Rows come one by one, so
that memory does not grow with a table's length. `layouts.py` says which files are tables.

No error quotes a cell. A head's column names are named, since nobody could mend the table without them.
"""

import codecs
import csv
import gzip
import json
import math
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import TextIOWrapper
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TextIO, cast

from cyclic_cli.config import PrepareConfig
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.imaging.readers import SUFFIXES
from cyclic_cli.privacy.scrub import Identifying
from cyclic_cli.storage.dataset import INDEX_COLUMNS

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz")
TABLE_NAMES = tuple(stem + suffix for stem in ("reports", "findings", "labels") for suffix in TABLE_SUFFIXES)
"""Tables that are read without being named when they lie in a source folder."""
SIDE_CAR = "report.txt"
"""A study's report beside its images; `scan.txt` beside `scan.dcm` goes before it."""

COLUMNS = {
    "image": (
        "path", "image", "image_path", "file", "file_name", "file_path", "dicom_path", "dicom", "image_id",
        "image_name", "dicom_id",
    ),
    "instance": ("sop_instance_uid", "instance_uid", "sop_uid"),
    "patient": ("patient", "patient_id", "subject_id", "subject", "case_id", "case"),
    "study": ("study", "study_id", "study_uid", "study_instance_uid"),
    "accession": ("accession", "accession_number", "accession_no"),
    "split": ("split", "subset"),
}  # fmt: skip
"""What a column says → its usual names, the first that is there; however it writes capitals and separators."""
TEXT_COLUMNS = ("text", "report_text", "caption")
SECTION_COLUMNS = ("findings", "impression")  # joined where there is no text column
REPORT_COLUMN = "report"  # the text where there is neither; else a number, which tells studies apart
LABEL_COLUMNS = (
    # CheXpert (Irvin et al., AAAI 2019)
    "no_finding", "enlarged_cardiomediastinum", "cardiomegaly", "lung_opacity", "lung_lesion", "edema", "consolidation",
    "pneumonia", "atelectasis", "pneumothorax", "pleural_effusion", "pleural_other", "fracture", "support_devices",
    # the demo's phantoms
    "nodule", "pacemaker",
)  # fmt: skip
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip

IDENTITY_WORDS = set(
    "accession address birthdate birthday birthplace city clinic doctor dob email fax firstname forename fullname "
    "hospital initials institution insurance lastname mail mrn nhs operator phone physician physicians postcode "
    "practitioner provider radiologist radiologists reader referrer referring reporter ssn station street surname "
    "technician technologist tel telephone zip zipcode author attending consultant date datetime timestamp "
    "arzt anschrift adresse datum geburtsdatum klinik krankenhaus nachname radiologe telefon vorname "
    "hopital medecin nom prenom naissance apellido apellidos direccion fecha medico nombre telefono".split()
)
"""Words of a column's name any of which says that its cells name somebody: English, German, French, Spanish."""
NAME_WORDS = set(
    "name names patient person subject first last given family middle maiden full birth mother mothers father".split()
)
"""Words that may stand beside `name` where it is a person's: `file_name` and `disease_name` are no such columns."""
IDENTITY_PARTS = re.compile(
    "accession|physician|radiologist|referring|institution|telephone|phonenumber|surname|forename|"
    "(patient|person|first|last|given|family|middle|maiden|full|birth)s?name|"
    "(study|series|exam|examination|scan|acquisition|content|birth|report|admission|discharge|visit|order|death)date|"
    "(patient|person|record|case|encounter|visit|admission|order|requisition|insurance|hospital|socialsecurity)s?"
    "(id|ids|no|nr|num|number|identifier)$"
)
"""The same for names written without a break, such as `patientname` and `referringphysicianname`."""

LONGEST_LINE = 2**24  # characters; a longer one is no table's, and would fill the memory
MOST_COLUMNS = 10_000
BLOCK = 2**16  # bytes read at once
LONGEST_NAME = 100  # characters; what is longer in an identity-like column is a remark
SHOWN_NAME = 40  # characters of a column's name in an error
DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError)  # the last for an encrypted archive

Label = float | str | None
Rows = Generator[tuple[int, dict[str, Any]], None, None]


class TextFile(Protocol):
    """A text file of the sources, or of a zip archive in them."""

    @property
    def path(self) -> Path:
        """The file, or the archive that holds it."""

    @property
    def relative(self) -> str:
        """Its path in the source it came with."""

    @property
    def member(self) -> str:
        """Its name within the archive; else empty."""

    @property
    def absolute(self) -> str:
        """Where it is, the name within the archive included."""

    def open(self) -> BinaryIO:
        """Its bytes."""


@dataclass(frozen=True)
class Report:
    """What a table, a text or a side-car says of one image, of a study, or of neither."""

    image: str = ""  # path or name of the image, as the table writes it
    instance: str = ""  # SOP Instance UID
    study: str = ""  # a UID or a number
    accession: str = ""
    patient: str = ""
    text: str = ""
    split: str = ""  # empty, train, val or test
    labels: dict[str, Label] = field(default_factory=dict)
    line: str = ""  # where it stands: "reports.csv, line 7"
    table: str = ""  # absolute path of the file it stands in, whose folder `image` is relative to
    identifying: Identifying = field(default_factory=Identifying)

    def __repr__(self) -> str:
        return "Report(hidden)"


def merge(known: Report, new: Report) -> Report | None:
    """Two rows of one image as one; None when they contradict one another."""
    whole: dict[str, Any] = {}
    for name in ("text", "patient", "study", "accession", "instance", "split"):
        first, second = getattr(known, name), getattr(new, name)
        if first and second and first != second:
            return None
        whole[name] = first or second
    for label, value in new.labels.items():
        first_value = known.labels.get(label)
        if first_value is not None and value is not None and first_value != value:
            return None
    filled = {label: value for label, value in new.labels.items() if value is not None}
    whole["labels"] = {**new.labels, **known.labels, **filled}
    whole["identifying"] = Identifying(
        known.identifying.names + new.identifying.names, known.identifying.remarks + new.identifying.remarks
    )
    return replace(known, **whole)


def as_text(content: bytes) -> str:
    """Bytes in UTF-8 or, with its mark, UTF-16; else in Windows' Western code page, which decodes anything."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
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


# -------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read, by the names the table gives them."""

    keys: dict[str, str]  # what a column says (of `COLUMNS`) → column
    texts: tuple[str, ...]
    labels: dict[str, str]  # label → column
    identifying: tuple[str, ...]  # read only to be cut out of the report
    dropped: int  # columns of which nothing is kept, those included

    @classmethod
    def find(cls, names: list[str], config: PrepareConfig, also: dict[str, str]) -> "Columns":
        """Recognise columns by their names.

        Args:
            names: The table's columns.
            config: Says which columns the user named.
            also: What a column says → a further usual name of it, as the table's layout has it.
        """
        by_key = {_key(name): name for name in reversed(names)}  # of two spellings the first counts

        def named(asked: str | None, usual: Iterable[str]) -> str | None:
            if asked in names:
                return asked
            return next((by_key[_key(name)] for name in usual if _key(name) in by_key), None)

        asked = {"image": config.image_column, "patient": config.patient_column}
        found = {what: named(asked.get(what), usual) for what, usual in COLUMNS.items()}
        found |= {what: named(asked.get(what), [name]) or found[what] for what, name in also.items()}
        text = named(config.text_column, TEXT_COLUMNS)
        sections = tuple(by_key[name] for name in SECTION_COLUMNS if name in by_key)
        if not text and sections:
            found["study"] = found["study"] or by_key.get(REPORT_COLUMN)
        elif not text:
            text = by_key.get(REPORT_COLUMN)
        keys = {what: column for what, column in found.items() if column}
        texts = (text,) if text else sections
        known = {_key(label): label for label in LABEL_COLUMNS}
        labels = {known[_key(name)]: name for name in names if _key(name) in known}
        labels |= {_label_name(label): label for label in config.label_columns if label in names}
        read = {*texts, *labels.values(), *keys.values()}
        identifying = [name for name in names if name not in read and is_identifying(name)]
        identifying += [keys[what] for what in ("patient", "study", "accession") if what in keys]
        return cls(keys, texts, labels, tuple(identifying), len(set(names) - read))

    def check(self, table: str, names: list[str]) -> None:
        """Raise UsageError when nothing of a table can be used, or a label would keep what must not be kept."""
        who = {"image", "instance", "study", "accession"} & self.keys.keys()
        says = self.labels or {"patient", "split"} & self.keys.keys() or len(who) > 1
        if not self.texts and not (who and says):
            listed = ", ".join(_shown(name) for name in sorted(names))
            raise UsageError(
                f"In {table} no column of images, with reports, patients or labels, is recognised.",
                f"Name them with --image-column and the like. Columns: {listed[:300] or 'none'}.",
            )
        kept_apart = {*self.texts, *(column for what, column in self.keys.items() if what != "split")}
        for label in self.labels.values():
            if label in kept_apart:
                raise UsageError(
                    f"{_shown(label)!r} of {table} names images, patients or texts.", "It can be no label."
                )

    def described(self) -> str:
        """How the columns were understood, and how many are not read."""
        parts = {"image": self.keys.get("image"), "text": " + ".join(self.texts), **self.keys}
        parts["labels"] = ", ".join(self.labels.values())
        said = [f"{what}: {column}" for what, column in parts.items() if column]
        cut = sum(column not in self.keys.values() for column in self.identifying)
        rest = f"{self.dropped} other columns are not read"
        return "; ".join([*said, f"{rest} (of {cut}, what they name is cut out of the reports)" if cut else rest])


@lru_cache(maxsize=4096)
def is_identifying(name: str) -> bool:
    """Whether cells of a column of this name say who somebody is, or when and where he was seen."""
    words = set(_normal(name).split("_"))
    person = bool({"name", "names"} & words) and words <= NAME_WORDS
    return person or bool(words & IDENTITY_WORDS) or bool(IDENTITY_PARTS.search(_key(name)))


def _normal(name: str) -> str:
    """A column's name as lower-case words: `SOPInstanceUID` reads `sop_instance_uid`, `Prénom` reads `prenom`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip())
    plain = unicodedata.normalize("NFKD", parted).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")


def _key(name: str) -> str:
    """What different spellings of one name share."""
    return _normal(name).replace("_", "")


def _label_name(column: str) -> str:
    """A label's column of the index, which has columns of its own."""
    name = _normal(column)
    return f"label_{name}" if name in INDEX_COLUMNS else name


def _shown(name: str) -> str:
    """A column's name for an error, cut, without what would move a terminal's cursor."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}…"


# --------------------------------------------------------------------------------------------------- tables


class Table:
    """A CSV, TSV or JSON Lines file, plain or gzipped, in UTF-8, UTF-16 with its mark, or Windows' Western code page.

    Iterating reads it from the beginning, a row at a time. Its first line may be Excel's `sep=;`.

    Args:
        file: The table.
        config: Says which columns the user named.
        also: See `Columns.find`.

    Raises:
        CyclicError: the file cannot be read.
        UsageError: it is no table, or it would be misread; with the line.
    """

    def __init__(self, file: TextFile, config: PrepareConfig, also: dict[str, str] | None = None) -> None:
        self.file = file
        self.name = PurePosixPath(file.relative).name
        self._encoding = self._find_encoding()
        self.names = self._find_names()
        self.columns = Columns.find(self.names, config, also or {})

    def __iter__(self) -> Iterator[Report]:
        table = self.file.absolute
        for number, row in self._rows():
            yield self._report(row, f"{self.name}, line {number}", table)

    def _report(self, row: dict[str, Any], line: str, table: str) -> Report:
        """One row. Raises UsageError for a split that has no usual name."""
        keys = {what: _cell(row.get(column)) for what, column in self.columns.keys.items()}
        for what in {"patient", "study", "accession"} & keys.keys():
            keys[what] = _whole(keys[what])
        split = keys.pop("split", "").lower()
        if split and split not in SPLITS:
            raise UsageError(f"{line}: the split has no known name.", f"Known: {', '.join(SPLITS)}.")
        named = dict.fromkeys(_whole(_cell(row.get(column))) for column in self.columns.identifying)
        if "instance" not in keys and _is_uid(keys.get("image", "")):
            keys["instance"] = keys["image"]
        return Report(
            **keys,
            text="\n".join(part for part in (_cell(row.get(column)) for column in self.columns.texts) if part),
            split=SPLITS.get(split, ""),
            labels={label: _label(row.get(column)) for label, column in self.columns.labels.items()},
            line=line,
            table=table,
            identifying=Identifying(
                tuple(name for name in named if 0 < len(name) <= LONGEST_NAME),
                tuple(name for name in named if len(name) > LONGEST_NAME),
            ),
        )

    def _find_names(self) -> list[str]:
        """Every column, in the order of the head; of JSON Lines the whole file is read, as each row has its own."""
        names: dict[str, None] = {}
        with closing(self._rows()) as rows:
            for _, row in rows:
                names |= dict.fromkeys(row)
                if len(names) > MOST_COLUMNS:
                    raise UsageError(f"{self.name} has more than {MOST_COLUMNS} columns.", "Is it a table of reports?")
                if not self._is_json:
                    break
        return [name for name in names if name]

    @property
    def _is_json(self) -> bool:
        return self.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))

    def _rows(self) -> Rows:
        """The number of the line where each row ends, and the row by column."""
        with self._opened() as stream, TextIOWrapper(stream, self._encoding, errors="replace", newline="") as text:
            yield from self._json_rows(text) if self._is_json else self._csv_rows(text)

    def _json_rows(self, text: TextIO) -> Rows:
        for number, line in enumerate(self._lines(text), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UsageError(f"{self.name}, line {number}, is not a JSON object.", "Give one object a line.")
            yield number, {name.strip(): value for name, value in row.items()}

    def _csv_rows(self, text: TextIO) -> Rows:
        lines = self._lines(text)
        first, before = next(lines, ""), 0
        told = re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE)
        if told:
            first, before = next(lines, ""), 1
        unquoted = re.sub(r'"[^"]*"', "", first)
        csv.field_size_limit(LONGEST_LINE)
        delimiter = told[1] if told else max(",;\t|", key=unquoted.count)
        reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        head: list[str] | None = None
        rows = 0
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if head is None:
                    head = self._checked_head(cells, reader.line_num + before)
                    continue
                if len(cells) != len(head):  # a text with an unquoted separator or line end moves what follows
                    raise csv.Error(
                        "more cells than the head" if len(cells) > len(head) else "fewer cells than the head"
                    )
                rows += 1
                yield reader.line_num + before, dict(zip(head, cells, strict=True))
        except csv.Error as error:
            raise UsageError(
                f"{self.name}, line {reader.line_num + before}: {error}.",
                "Put texts that hold separators or line ends into quotes.",
            ) from None
        if head and not rows:
            raise UsageError(
                f"{self.name} has a head and no rows, so no column of images says anything.", "Leave it out."
            )

    def _checked_head(self, cells: list[str], number: int) -> list[str]:
        head = [cell.strip() for cell in cells]
        for name, count in Counter(head).items():
            if name and count > 1:
                raise UsageError(
                    f"{self.name}, line {number}: {count} columns are called {_shown(name)!r}.", "Rename one."
                )
        return head

    def _lines(self, text: TextIO) -> Iterator[str]:
        """Lines with their ends. Raises UsageError for what no table holds."""
        number = 0
        while line := text.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise UsageError(f"{self.name}, line {number}, is too long for a table.", "Is it one?")
            if "\0" in line:
                raise UsageError(f"{self.name}, line {number}, has a NUL character.", "Save it as text in UTF-8.")
            yield line

    def _find_encoding(self) -> str:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with self._opened() as stream:
            block = stream.read(BLOCK)
            if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return "utf-16"
            try:
                while block:
                    decoder.decode(block)
                    block = stream.read(BLOCK)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                return "cp1252"
        return "utf-8-sig"

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The table's bytes, unpacked. Raises CyclicError where it cannot be read."""
        try:
            with self.file.open() as raw:
                packed = raw.read(2) == b"\x1f\x8b"
                raw.seek(0)
                yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        except DAMAGED as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "it is damaged or encrypted"
            raise CyclicError(f"The table {self.name} cannot be read: {reason}.", "Check --reports.") from error


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _whole(cell: str) -> str:
    """A number without the `.0` that spreadsheets and pandas hang on columns with gaps."""
    return cell[:-2] if cell.endswith(".0") and cell[:-2].isdecimal() else cell


def _is_uid(cell: str) -> bool:
    """Whether this is a UID (PS3.5 9.1) of several parts, and no file's name."""
    return len(cell) <= 64 and bool(re.fullmatch(r"[0-2](\.(0|[1-9]\d*)){4,}", cell))


def _label(value: Any) -> Label:
    """A number where it is one; None where nothing stands, NaN included."""
    text = _cell(value)
    try:
        number = float(value if isinstance(value, bool) else text)
    except ValueError:
        return text or None
    return number if math.isfinite(number) else None
