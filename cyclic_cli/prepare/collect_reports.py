"""Reads tables, side-car texts and structured reports: fills the table `reports`.

Every identity in a report is replaced by a keyed hash here. Names in the report's text are removed later, when the
patient is known; see `scrubbing.py`.
"""

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

from cyclic_cli.config import PrepareConfig, Preprocessing
from cyclic_cli.errors import CyclicError, Rejected, Skipped
from cyclic_cli.events import Note
from cyclic_cli.imaging import readers
from cyclic_cli.prepare import layouts
from cyclic_cli.prepare.collect_inputs import found_files, key_or_empty
from cyclic_cli.prepare.database import IMAGE_ROW, LOCATION_COLUMNS, SIDE_CAR_TEXT, STUDY_ROW, Row, insert
from cyclic_cli.prepare.encodings import decoded
from cyclic_cli.prepare.report import Label, Report
from cyclic_cli.prepare.sources import Input
from cyclic_cli.prepare.tables import TABLE_SUFFIXES
from cyclic_cli.prepare.texts import SIDE_CAR, base_name, is_readable, plain
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.scrub import fingerprints


def is_table(source: Path) -> bool:
    """Whether a source that the user named is a table of reports."""
    return source.name.lower().endswith(TABLE_SUFFIXES) and source.is_file()


def take_report_files(db: sqlite3.Connection, layout: layouts.Layout, tables: Sequence[Path]) -> list[Input]:
    """Remove report files from `found_files`, so that they do not become inputs.

    Args:
        db: The database.
        layout: Says which found files hold reports.
        tables: Tables that the user named.

    Returns:
        The report files among the found files, without `tables`.

    Raises:
        CyclicError: a named table does not exist.
    """
    for table in tables:
        if not table.is_file():
            raise CyclicError(f"There is no table {table}.", "Check --reports.")
        db.execute("DELETE FROM found_files WHERE absolute = ?", (os.fsencode(os.path.abspath(table)),))
    db.create_function("claims", 1, layout.claims, deterministic=True)
    found = list(found_files(db, "WHERE claims(relative)"))
    db.execute("DELETE FROM found_files WHERE claims(relative)")
    return found


def structured_report_text(db: sqlite3.Connection, place: str, preprocessing: Preprocessing) -> str:
    """The text of the DICOM structured report at a place; empty where the file can no longer be read.

    It is read from the file again, because shards would have to store it on disk before names are removed from it.
    """
    path, member = db.execute("SELECT path, member FROM inputs WHERE place = ?", (place,)).fetchone()
    with suppress(Rejected):  # the file was readable when its shard was written
        try:
            readers.open_scan(Input(Path(os.fsdecode(path)), "", "", member).read(), preprocessing)
        except Skipped as report:
            return _readable(db, plain(report.text), place=place)
    return ""


def _readable(db: sqlite3.Connection, text: str, place: str | None = None, line: str | None = None) -> str:
    """The text; empty where it is damaged, which is recorded under its input or its line of a table."""
    if is_readable(text):
        return text
    insert(db, "unreadable_texts", {"place": place, "line": line})
    return ""


class ReportReader:
    """Adds the reports of one call to `reports`.

    Args:
        db: The database, with `inputs` complete and the reports of an updated dataset in `reports`.
        layout: Reads the tables and documents.
        config: Settings.
        keyer: Makes the keys.
        roots: Absolute paths of the source folders, each with a trailing slash.
        generation: Number of the update that the reports come with.

    Attributes:
        labels: Label columns of the tables, in their order.
        notes: How the tables were understood, and what could not be read.
        digest: SHA-256 of the content of every table and side-car text read so far.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        layout: layouts.Layout,
        config: PrepareConfig,
        keyer: Keyer,
        roots: list[str],
        generation: int,
    ) -> None:
        self._db, self._layout, self._config, self._keyer, self._roots = db, layout, config, keyer, roots
        self._generation = generation
        self._rows = 0  # rows and documents read so far
        self.labels: list[str] = []
        self.notes: list[Note] = []
        self.digest = hashlib.sha256()

    def read_tables(self, files: list[Input]) -> None:
        """Add every row of tables, and every document of the layout.

        Raises:
            CyclicError: a file cannot be read. UsageError: a table would be misread.
        """
        for item in files:
            with item.open() as file:
                while block := file.read(2**20):
                    self.digest.update(block)
        if not files:
            return
        stream = self._layout.read(files, self._config)
        self.labels = stream.labels
        (first,) = self._db.execute('SELECT coalesce(max("table"), 0) FROM reports').fetchone()
        for number, (_, reports) in enumerate(groupby(stream, lambda report: report.table), first + 1):
            for report in reports:
                row = self._row(report, number)
                if not self._is_stored(row):
                    insert(self._db, "reports", row)
        self.notes += [Note(note) for note in stream.notes]  # after the last row they also count unreadable documents

    def read_side_cars(self) -> int:
        """Add the side-car text of every input that has one, in place of a text stored earlier.

        Returns:
            The number of text files; images of one folder may share one.
        """
        files: set[tuple[str, str]] = set()
        encodings: Counter[str] = Counter()
        unreadable = 0
        query = f"SELECT place, {', '.join(LOCATION_COLUMNS)} FROM inputs WHERE side_car != '' ORDER BY number"
        for place, _, path, member, folder, name in self._db.execute(query).fetchall():
            text = _side_car(Path(os.fsdecode(path)), member, name)
            self._db.execute("DELETE FROM reports WHERE rank = ? AND place = ?", (SIDE_CAR_TEXT, place))
            try:
                content = layouts.content_of(text)
            except Rejected:
                unreadable += 1
            else:
                self.digest.update(content)
                written, encoding = decoded(content)
                encodings[encoding.described] += encoding.is_guessed
                row = {
                    "generation": self._generation, "rank": SIDE_CAR_TEXT, "place": place, "labels": {},
                    "text": _readable(self._db, plain(written).strip(), place=place),
                    "shared": self._keyer.number(folder) if name == SIDE_CAR else None,
                }  # fmt: skip
                insert(self._db, "reports", row)
            files.add((text.absolute, text.member))
        if unreadable:
            note = f"{unreadable} text files beside images could not be read, or are too long"
            self.notes.append(Note(note, warning=True))
        self.notes += map(Note, layouts.notes_on_encodings(encodings))
        return len(files)

    def _row(self, report: Report, table: int) -> Row:
        """A report as a row of `reports`, with keys in place of identities."""
        of_image = bool(report.image or report.instance)
        content = json.dumps(asdict(replace(report, line="", table="")), sort_keys=True)
        self._rows += 1
        shown = report.line if self._config.paths else f"report {self._rows}"
        numbers = {report.patient, report.study, report.accession, report.instance, report.image}
        row = {
            "generation": self._generation,
            "digest": self._keyer.number(content),
            "has_names": bool({*report.identifying.names, *report.identifying.remarks} - numbers),
            "table": table,
            "rank": IMAGE_ROW if of_image or not (report.study or report.accession) else STUDY_ROW,
            "instance": key_or_empty(self._keyer, "instance", report.instance),
            "study": key_or_empty(self._keyer, "study", report.study),
            "accession": key_or_empty(self._keyer, "accession", report.accession),
            "patient": key_or_empty(self._keyer, "patient", report.patient),
            "split": report.split,
            "labels": {name: self._readable_label(value, shown) for name, value in report.labels.items()},
            "words": fingerprints(report.identifying, self._keyer),
            "text": _readable(self._db, report.text, line=shown),
            "line": report.line,
        }
        return row | (self._image_columns(report) if report.image else {})

    def _readable_label(self, value: Label, line: str) -> Label:
        """A label; None for a text that is damaged."""
        return _readable(self._db, value, line=line) or None if isinstance(value, str) else value

    def _is_stored(self, row: Row) -> bool:
        """Whether the updated dataset holds the same row about the same image."""
        same = """SELECT 1 FROM reports r LEFT JOIN inputs i USING (place)
                  WHERE r.digest = ? AND r.generation < ? AND (r.image IS NULL OR i.absolute = ?)"""
        values = (row["digest"], row["generation"], row.get("expected_path"))
        return self._db.execute(same, values).fetchone() is not None

    def _image_columns(self, report: Report) -> Row:
        """Hashes of the image's name in a report (see `REPORT_COLUMNS`), and the path where the image is expected."""
        image = os.path.normpath(report.image)
        expected = os.path.normpath(os.path.join(os.path.dirname(report.table), image))
        within = next((expected.removeprefix(root) for root in self._roots if expected.startswith(root)), None)
        return {
            "image": self._keyer.number(image),
            "within": self._keyer.number(within) if within else None,
            "stem": self._keyer.number(base_name(Path(os.path.basename(image)))),
            "depth": image.count("/") + 1,
            "expected_path": os.fsencode(expected),
        }


def _side_car(image: Path, member: str, name: str) -> Input:
    """The text file of a name beside an image, which may lie in an archive."""
    if not member:
        return Input(image.with_name(name), name, name)
    folder = os.path.dirname(member)
    return Input(image, name, name, f"{folder}/{name}" if folder else name)
