"""Collects what `cyclic prepare` is given: every input in order and every report, in a private database.

    find files        every file behind the sources, without the tables and documents that hold reports
    stored dataset    with `--update`, the inputs and reports of the dataset that is updated
    number inputs     new inputs get consecutive numbers, in the order of their paths
    read reports      rows of tables, documents of the layout, and text files beside images

`database.py` describes the tables, `collect_inputs.py` and `collect_reports.py` fill them.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cyclic_cli.config import PrepareConfig, as_plain
from cyclic_cli.events import Note
from cyclic_cli.prepare import layouts
from cyclic_cli.prepare.collect_inputs import NewInputs, find_files
from cyclic_cli.prepare.collect_reports import ReportReader, is_table, structured_report_text, take_report_files
from cyclic_cli.prepare.database import STORED_COLUMNS, STRUCTURED_REPORT, Row, insert, open_database
from cyclic_cli.prepare.sources import Input
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.storage.dataset import FRAME_COLUMNS, StoredDataset


class Inventory:
    """The inputs and reports of one call of `cyclic prepare`, and of the dataset that it updates.

    Args:
        sources: What the user named; see `sources.walk`.
        tables: Report tables the user named; None takes those that the layout finds in the sources.
        out: The dataset's folder, which is skipped.
        config: Settings.
        keyer: Makes the keys.
        stored: The finished dataset that is updated.

    Attributes:
        db: The database of inputs, frames and reports; see `database.py`.
        labels: Label columns of the tables and of the updated dataset.
        notes: What the user should know about the tables and texts.
        report_files: Number of tables, documents and side-car texts of this call.
        new: Number of inputs that the updated dataset does not hold.
        next_shard: Number of the first shard that is written.

    Raises:
        CyclicError: a table cannot be read. UsageError: a table would be misread, or the layout is unknown.
    """

    def __init__(
        self,
        sources: list[Path],
        tables: list[Path] | None,
        out: Path,
        config: PrepareConfig,
        keyer: Keyer,
        stored: StoredDataset | None = None,
    ) -> None:
        self.config, self.keyer = config, keyer
        self.db = open_database()
        self.notes: list[Note] = []
        find_files(self.db, sources, out)
        self.layout = layouts.resolve(
            config.layout, (relative for (relative,) in self.db.execute("SELECT relative FROM found_files"))
        )
        report_files = self._find_report_files([*(tables or []), *filter(is_table, sources)])
        if stored is not None:
            self._add_stored(stored)
        (self._first,) = self.db.execute("SELECT coalesce(max(number) + 1, 0) FROM inputs").fetchone()
        (self.next_shard,) = self.db.execute("SELECT coalesce(max(shard) + 1, 0) FROM frames").fetchone()
        (self._generation,) = self.db.execute("SELECT coalesce(max(generation) + 1, 0) FROM reports").fetchone()
        self.new, self._input_digest = NewInputs(self.db, self.layout, config, keyer).add(self._first)
        roots = [f"{os.path.abspath(source)}/" for source in sources if source.is_dir()]
        reader = ReportReader(self.db, self.layout, config, keyer, roots, self._generation)
        reader.read_tables(report_files)
        self.report_files += reader.read_side_cars()
        self.notes += reader.notes
        self.labels = list(dict.fromkeys([*(stored.facts.labels if stored else []), *reader.labels]))
        self._report_digest = reader.digest.hexdigest()

    def _find_report_files(self, named: list[Path]) -> list[Input]:
        """The tables that the user named, and the report files found in the sources; sets `report_files`."""
        found = take_report_files(self.db, self.layout, named)
        self.report_files = len(named) + len(found)
        if named and found and self.layout is layouts.LAYOUTS["tables"]:
            self.notes.append(Note(f"{len(found)} tables in the sources are not read, since --reports names others"))
            found = []
        return [Input(table, table.name, table.name) for table in named] + found

    def _add_stored(self, stored: StoredDataset) -> None:
        """Add the inputs and reports of the dataset that is updated."""
        for row in stored.inputs():  # one row per frame
            insert(self.db, "inputs", {name: row[name] for name in STORED_COLUMNS}, "OR IGNORE")
            insert(self.db, "frames", {"place": row["place"], **{name: row[name] for name in FRAME_COLUMNS}})
        for row in stored.reports():
            insert(self.db, "reports", {**row, "labels": json.loads(row["labels"])})

    def request(self) -> dict[str, Any]:
        """What was asked for. An equal request continues an unfinished dataset, or finds it finished."""
        (inputs,) = self.db.execute("SELECT count(*) FROM found_files").fetchone()
        return {
            "settings": as_plain(self.config),
            "secret": self.keyer.check(),
            "inputs": inputs,
            "fingerprint": self.keyer.key("request", self._input_digest),
            "reports": self.keyer.key("reports", self._report_digest),
        }

    def has_reports(self) -> bool:
        """Whether there is any report; a dataset may consist of texts alone."""
        return self.db.execute("SELECT 1 FROM reports LIMIT 1").fetchone() is not None

    def new_inputs(self, first: int, length: int) -> list[tuple[int, str, str]]:
        """Number, path and name within an archive of `length` new inputs, from the new input `first` (from 0) on."""
        begin = self._first + first
        rows = self.db.execute(
            "SELECT number, path, member FROM inputs WHERE number >= ? AND number < ? ORDER BY number",
            (begin, begin + length),
        )
        return [(number, os.path.abspath(os.fsdecode(path)), member) for number, path, member in rows]

    def add_frames(self, rows: Iterable[Row]) -> None:
        """Add the frames of new inputs, as the shards recorded them, and the texts of structured reports."""
        for row in rows:
            (place,) = self.db.execute("SELECT place FROM inputs WHERE number = ?", (row["input"],)).fetchone()
            insert(self.db, "frames", {"place": place, **{name: row.get(name) for name in FRAME_COLUMNS}})
            if row.get("told"):  # a structured report with a text
                report = {
                    "generation": self._generation, "rank": STRUCTURED_REPORT, "labels": {},
                    "text": structured_report_text(self.db, place, self.config.preprocessing),
                }  # fmt: skip
                keys = {name: row.get(name) for name in ("study", "accession", "patient", "words")}
                insert(self.db, "reports", report | keys)
