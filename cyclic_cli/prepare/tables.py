"""Reads report tables row by row: CSV, TSV or JSON Lines, plain or gzipped.

Only recognised columns are kept (see `columns.py`). The cells of identifying columns are held in memory, because they
must be cut out of the report, and are never written. Memory does not grow with the length of a table. Which files of
a source are tables is decided in `layouts.py`.

Errors never quote a cell. They may name columns, because the user could not fix the table otherwise.
"""

import csv
import gzip
import json
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from cyclic_cli.config import PrepareConfig
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.prepare.columns import Columns, shown
from cyclic_cli.prepare.encodings import find_encoding
from cyclic_cli.prepare.report import Label, Report
from cyclic_cli.prepare.texts import TextFile, plain
from cyclic_cli.privacy.scrub import Identifying

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz")
TABLE_NAMES = tuple(stem + suffix for stem in ("reports", "findings", "labels") for suffix in TABLE_SUFFIXES)
"""Names of tables that are read from a source folder although the user does not name them."""
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
"""Usual name of a split → train, val or test."""

LONGEST_LINE = 2**24  # characters; a longer line is taken as a sign that the file is not a table
MOST_COLUMNS = 10_000
LONGEST_NAME = 100  # characters; a longer cell of an identifying column is treated as free text
DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError)  # RuntimeError: an encrypted archive

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # in JSON

Rows = Generator[tuple[int, dict[str, Any]], None, None]


class Table:
    """A CSV, TSV or JSON Lines file, plain or gzipped, in any encoding (see `encodings.py`).

    Each iteration reads the file from the beginning, one row at a time. The first line of a CSV file may be Excel's
    `sep=;`, which names the delimiter.

    Args:
        file: The table.
        config: Settings, which may name columns.
        extra_names: See `Columns.find`.

    Raises:
        CyclicError: the file cannot be read.
        UsageError: the file is not a table, or it would be misread; the message names the line.
    """

    def __init__(self, file: TextFile, config: PrepareConfig, extra_names: dict[str, str] | None = None) -> None:
        self.file = file
        self.name = PurePosixPath(file.relative).name
        with self._opened() as stream:
            self.encoding = find_encoding(stream)
        self.names = self._find_names()
        self.columns = Columns.find(self.names, config, extra_names or {})
        if self.columns.texts:
            with closing(self._rows()) as rows:
                self.columns = self.columns.with_contents(self.names, (row for _, row in rows))

    def __iter__(self) -> Iterator[Report]:
        table = self.file.absolute
        for number, row in self._rows():
            yield self._report(row, f"{self.name}, line {number}", table)

    def _report(self, row: dict[str, Any], line: str, table: str) -> Report:
        """One row as a report. Raises UsageError for an unknown name of a split."""
        keys = {role: _cell(row.get(column)) for role, column in self.columns.keys.items()}
        for role in {"patient", "study", "accession"} & keys.keys():
            keys[role] = _without_decimal_zero(keys[role])
        split = keys.pop("split", "").lower()
        if split and split not in SPLIT_NAMES:
            raise UsageError(f"{line}: unknown name of a split.", f"Known names: {', '.join(SPLIT_NAMES)}.")
        identifying = dict.fromkeys(
            _without_decimal_zero(plain(_cell(row.get(column)))) for column in self.columns.identifying
        )
        if "instance" not in keys and _is_uid(keys.get("image", "")):
            keys["instance"] = keys["image"]
        return Report(
            **keys,
            text="\n".join(part for part in (plain(_cell(row.get(column))) for column in self.columns.texts) if part),
            split=SPLIT_NAMES.get(split, ""),
            labels={label: _label(row.get(column)) for label, column in self.columns.labels.items()},
            line=line,
            table=table,
            identifying=Identifying(
                tuple(cell for cell in identifying if 0 < len(cell) <= LONGEST_NAME),
                tuple(cell for cell in identifying if len(cell) > LONGEST_NAME),
            ),
        )

    def _find_names(self) -> list[str]:
        """All columns in their order. JSON Lines are read to the end for this, as each row has columns of its own."""
        names: dict[str, None] = {}
        with closing(self._rows()) as rows:
            for _, row in rows:
                names |= dict.fromkeys(row)
                if len(names) > MOST_COLUMNS:
                    raise UsageError(
                        f"{self.name} has more than {MOST_COLUMNS} columns.", "Check that it is a table of reports."
                    )
                if not self._is_json:
                    break
        return [name for name in names if name]

    @property
    def _is_json(self) -> bool:
        return self.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))

    def _rows(self) -> Rows:
        """For each row the number of its last line, and its cells by column."""
        with self._opened() as stream:
            lines = self._lines(stream)
            yield from self._json_rows(lines) if self._is_json else self._csv_rows(lines)

    def _json_rows(self, lines: Iterator[str]) -> Rows:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UsageError(f"{self.name}, line {number}, is not a JSON object.", "Write one object per line.")
            if _SURROGATE.search(line):  # half a character cannot be stored
                whole = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
                row = json.loads(whole.decode("utf-8", "replace"))
            yield number, {name.strip(): value for name, value in row.items()}

    def _csv_rows(self, lines: Iterator[str]) -> Rows:
        first, before = next(lines, ""), 0
        separator_line = re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE)
        if separator_line:
            first, before = next(lines, ""), 1
        unquoted = re.sub(r'"[^"]*"', "", first)
        csv.field_size_limit(LONGEST_LINE)
        delimiter = separator_line[1] if separator_line else max(",;\t|", key=unquoted.count)
        reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        rows = 0
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if header is None:
                    header = self._checked_header(cells, reader.line_num + before)
                    continue
                if len(cells) != len(header):  # an unquoted separator or line end would shift the cells after it
                    difference = "more" if len(cells) > len(header) else "fewer"
                    raise csv.Error(f"{difference} cells than the header row")
                rows += 1
                yield reader.line_num + before, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UsageError(
                f"{self.name}, line {reader.line_num + before}: {error}.",
                "Put texts that contain separators or line ends into quotes.",
            ) from None
        if header and not rows:
            raise UsageError(f"{self.name} has a header row but no other rows.", "Leave it out.")

    def _checked_header(self, cells: list[str], number: int) -> list[str]:
        """The names of the columns. Raises UsageError when two columns have one name."""
        header = [cell.strip() for cell in cells]
        for name, count in Counter(header).items():
            if name and count > 1:
                raise UsageError(
                    f"{self.name}, line {number}: {count} columns are called {shown(name)!r}.", "Rename one."
                )
        return header

    def _lines(self, stream: BinaryIO) -> Iterator[str]:
        """Lines with their line ends. Raises UsageError for a line that a table cannot have."""
        for number, line in enumerate(self.encoding.lines(stream, LONGEST_LINE), 1):
            if len(line) == LONGEST_LINE:
                raise UsageError(f"{self.name}, line {number}, is too long for a table.", "Check that it is a table.")
            if "\0" in line:
                raise UsageError(f"{self.name}, line {number}, has a NUL character.", "Save it as text in UTF-8.")
            yield line

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The table's bytes, decompressed. Raises CyclicError when they cannot be read."""
        try:
            with self.file.open() as raw:
                is_gzip = raw.read(2) == b"\x1f\x8b"
                raw.seek(0)
                yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_gzip else raw
        except DAMAGED as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "it is damaged or encrypted"
            raise CyclicError(f"The table {self.name} cannot be read: {reason}.", "Check --reports.") from error


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _without_decimal_zero(cell: str) -> str:
    """A whole number without `.0`, which spreadsheets and pandas append in columns that have empty cells."""
    return cell[:-2] if cell.endswith(".0") and cell[:-2].isdecimal() else cell


def _is_uid(cell: str) -> bool:
    """Whether a cell is a DICOM UID (PS3.5 9.1) of at least five components, and not the name of a file."""
    return len(cell) <= 64 and bool(re.fullmatch(r"[0-2](\.(0|[1-9]\d*)){4,}", cell))


def _label(value: Any) -> Label:
    """A label as a number where it is one; None for an empty cell, NaN or infinity."""
    text = _cell(value)
    try:
        number = float(value if isinstance(value, bool) else text)
    except ValueError:
        return plain(text) or None
    return number if math.isfinite(number) else None
