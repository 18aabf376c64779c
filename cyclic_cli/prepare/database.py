"""Opens the private SQLite database in which `cyclic prepare` collects and pairs inputs and reports.

SQLite keeps up to `CACHE` KiB in memory and moves the rest to an unnamed temporary file. Memory therefore does not grow
with the number of inputs, and nothing is left on disk when the process ends. Identities are stored only as keyed
hashes. File paths and report texts are stored as they are, because later phases read them again.

Every input has a `place`: a key computed from its path relative to its source. The tables `inputs`, `frames` and
`reports` also hold the rows of a finished dataset that is updated, so that a report and its image may arrive in
different calls.
`unreadable_texts` lists damaged texts, by the input beside which they lie or by their line of a table.
"""

import json
import sqlite3
from typing import Any

from cyclic_cli.storage.dataset import FRAME_COLUMNS, INPUT_COLUMNS, REPORT_COLUMNS

Row = dict[str, Any]

IMAGE_ROW, SIDE_CAR_TEXT, STUDY_ROW, STRUCTURED_REPORT = range(4)
"""Values of `reports.rank`, the kind of report; lower ranks take precedence, and higher ranks fill what is missing.

IMAGE_ROW: a table row about an image, or about neither an image nor a study. SIDE_CAR_TEXT: a text file beside an
image. STUDY_ROW: a table row or a document about a study. STRUCTURED_REPORT: a DICOM structured report.
"""
RELATIVE, NAME, STEM, ENDING = range(4)
"""Positions in `inputs.names`: the path relative to the source, the file name, the file name without its suffix, and
from ENDING on the last two, three … parts of the absolute path."""
LONGEST_ENDING = 12  # parts of a path
CACHE = 16_000  # KiB of the database in memory

LOCATION_COLUMNS = ("absolute", "path", "member", "folder", "side_car")
"""Columns of `inputs` that say where the file is in this call. They are not written to the dataset, and are NULL for
inputs that only the updated dataset knows."""
STORED_COLUMNS = [name for name in INPUT_COLUMNS if name not in FRAME_COLUMNS]
"""Columns of `inputs` that are written to the dataset."""
_SCHEMA = f"""
CREATE TABLE found_files (absolute BLOB PRIMARY KEY, path BLOB, member, source, relative, side_car,
                          side_car_path BLOB);
CREATE TABLE inputs ({", ".join(STORED_COLUMNS)}, {", ".join(LOCATION_COLUMNS)}, PRIMARY KEY (place));
CREATE INDEX inputs_number ON inputs (number);
CREATE INDEX inputs_ends ON inputs (ends);
CREATE TABLE frames (place, {", ".join(FRAME_COLUMNS)}, PRIMARY KEY (place, frame)) WITHOUT ROWID;
CREATE TABLE reports (number INTEGER PRIMARY KEY, expected_path BLOB, line TEXT, has_names INTEGER,
                      {", ".join(f'"{name}"' for name in REPORT_COLUMNS)});
CREATE INDEX reports_digest ON reports (digest);
CREATE TABLE unreadable_texts (place, line TEXT);
"""


def open_database() -> sqlite3.Connection:
    """An empty database of this process with the tables `found_files`, `inputs`, `frames` and `reports`."""
    database = sqlite3.connect("", isolation_level=None)
    for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE}", "temp_store = FILE"):
        database.execute(f"PRAGMA {setting}")
    database.executescript(_SCHEMA)
    database.execute("BEGIN")  # one transaction that is never committed: nothing has to be durable
    return database


def insert(db: sqlite3.Connection, table: str, row: Row, on_conflict: str = "") -> None:
    """Add one row to a table; lists and dictionaries in the row are stored as JSON.

    Args:
        db: The database.
        table: The table's name.
        row: Column → value.
        on_conflict: SQLite's conflict clause, such as `OR IGNORE`.
    """
    names = ", ".join(f'"{name}"' for name in row)
    values = [json.dumps(value) if isinstance(value, list | dict) else value for value in row.values()]
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT {on_conflict} INTO {table} ({names}) VALUES ({marks})", values)
