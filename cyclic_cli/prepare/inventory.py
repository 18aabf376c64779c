"""What is offered to `cyclic prepare`: every input in order and every report, laid into a scratch database.

The database is private: SQLite keeps it in memory up to a bound and spills to a temporary file that has no name, so
that memory does not grow with the number of inputs and nothing stays behind. Whatever names somebody stands in it as a
keyed hash; only paths and report texts, which are needed again, are in the clear.

An input is known by its `place`, a key of its path relative to its source. The inputs and reports of a finished data
set that is updated are in the tables too, so that a report and its image may come in different months.
"""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from cyclic_cli.config import PrepareConfig, as_plain
from cyclic_cli.errors import CyclicError, Rejected, Skipped
from cyclic_cli.events import Note
from cyclic_cli.imaging import readers
from cyclic_cli.prepare import layouts
from cyclic_cli.prepare.sources import Input, beside, walk
from cyclic_cli.prepare.tables import SIDE_CAR, TABLE_SUFFIXES, Report, as_text, base_name
from cyclic_cli.privacy.keys import Keyer, names_nobody
from cyclic_cli.privacy.scrub import fingerprints
from cyclic_cli.storage.dataset import FRAME_COLUMNS, INPUT_COLUMNS, REPORT_COLUMNS, StoredDataset

TABLE, BESIDE, OF_STUDY, STRUCTURED = range(4)
"""Where a report comes from. What the first says counts; what it leaves open is filled by the next."""
RELATIVE, NAME, STEM, ENDING = range(4)
"""Positions in an input's `names`: its path in the source, its name, the same without suffix, and from ENDING on the
last two, three … parts of its absolute path."""
LONGEST_ENDING = 12  # parts
READERS = 8  # threads that look at files: on a network file system each look waits
CACHE = 16_000  # KiB of the database in memory

_IN_MEMORY = ("absolute", "path", "member", "folder", "side_car")  # of an input, beside what is stored of it
_STORED = [name for name in INPUT_COLUMNS if name not in FRAME_COLUMNS]
_SCHEMA = f"""
CREATE TABLE found (absolute BLOB PRIMARY KEY, path BLOB, member, source, relative, side_car, beside BLOB);
CREATE TABLE inputs ({", ".join(_STORED)}, {", ".join(_IN_MEMORY)}, PRIMARY KEY (place));
CREATE INDEX inputs_number ON inputs (number);
CREATE INDEX inputs_ends ON inputs (ends);
CREATE TABLE frames (place, {", ".join(FRAME_COLUMNS)}, PRIMARY KEY (place, frame)) WITHOUT ROWID;
CREATE TABLE reports (number INTEGER PRIMARY KEY, wanted BLOB, line TEXT, naming INTEGER,
                      {", ".join(f'"{name}"' for name in REPORT_COLUMNS)});
CREATE INDEX reports_digest ON reports (digest);
"""


class Inventory:
    """The inputs and reports of one call of `cyclic prepare`, and of the dataset that it updates.

    Args:
        sources: What the user named; see `sources.walk`.
        tables: Report tables the user named; None takes those that the layout finds in the sources.
        out: The dataset's folder, which is no input.
        config: Settings.
        keyer: Makes the keys.
        known: The finished dataset that is updated.

    Raises:
        CyclicError: a table cannot be read. UsageError: a table that would be misread, an unknown layout.
    """

    def __init__(
        self,
        sources: list[Path],
        tables: list[Path] | None,
        out: Path,
        config: PrepareConfig,
        keyer: Keyer,
        known: StoredDataset | None = None,
    ) -> None:
        self.config, self.keyer = config, keyer
        self.db = _scratch_database()
        self.labels: list[str] = list(known.facts.labels) if known else []
        self.notes: list[Note] = []
        self.report_files = 0  # tables and side-cars of this call
        self._digest, self._told = hashlib.sha256(), hashlib.sha256()  # of inputs and of reports
        self._sources = sources
        self._roots = [f"{os.path.abspath(source)}/" for source in sources if source.is_dir()]
        self._find(sources, out)
        self.layout = layouts.resolve(config.layout, (row[0] for row in self.db.execute("SELECT relative FROM found")))
        texts = self._take_texts(tables)
        if known is not None:
            self._take_known(known)
        one = self.db.execute
        (self.first,) = one("SELECT coalesce(max(number) + 1, 0) FROM inputs").fetchone()
        (self.next_shard,) = one("SELECT coalesce(max(shard) + 1, 0) FROM frames").fetchone()
        (generation,) = one("SELECT coalesce(max(generation) + 1, 0) FROM reports").fetchone()
        self._fresh = {"generation": generation}
        self.new = self._take_inputs()
        self._take_reports(texts)
        self._take_side_cars()

    def request(self) -> dict[str, Any]:
        """What was asked for: the same request finds its dataset begun, or finished."""
        (offered,) = self.db.execute("SELECT count(*) FROM found").fetchone()
        return {
            "settings": as_plain(self.config),
            "secret": self.keyer.check(),
            "inputs": offered,
            "fingerprint": self.keyer.key("request", self._digest.hexdigest()),
            "reports": self.keyer.key("reports", self._told.hexdigest()),
        }

    def has_reports(self) -> bool:
        """Whether anything is said at all; a dataset of texts alone is one too."""
        return self.db.execute("SELECT 1 FROM reports LIMIT 1").fetchone() is not None

    def run(self, first: int, length: int) -> list[tuple[int, str, str]]:
        """Number, path and name within an archive of some of the new inputs, counted from 0 in their order."""
        begin = self.first + first
        rows = self.db.execute(
            "SELECT number, path, member FROM inputs WHERE number >= ? AND number < ? ORDER BY number",
            (begin, begin + length),
        )
        return [(number, os.path.abspath(os.fsdecode(path)), member) for number, path, member in rows]

    def add_frames(self, rows: Iterable[dict[str, Any]]) -> None:
        """What new inputs were worth, as their shard says it. The text of a structured report becomes a report."""
        for row in rows:
            (place,) = self.db.execute("SELECT place FROM inputs WHERE number = ?", (row["input"],)).fetchone()
            self.insert("frames", {"place": place, **{name: row.get(name) for name in FRAME_COLUMNS}})
            if row.get("told"):
                said = {name: row.get(name) for name in ("study", "accession", "patient", "words")}
                text = self._structured_text(place)
                self.insert("reports", self._fresh | {"rank": STRUCTURED, "labels": {}, "text": text, **said})

    def _structured_text(self, place: str) -> str:
        """What a structured report says. It is read here: from where files are decoded it would come by the disk."""
        path, member = self.db.execute("SELECT path, member FROM inputs WHERE place = ?", (place,)).fetchone()
        with suppress(Rejected):  # it was there when its shard was written
            try:
                readers.open_scan(Input(Path(os.fsdecode(path)), "", "", member).read(), self.config.preprocessing)
            except Skipped as report:
                return report.text
        return ""

    # ---------------------------------------------------------------------------------------------- inputs

    def _find(self, sources: list[Path], out: Path) -> None:
        """Every file behind the sources, each once, without the side-cars of others."""
        rows = (
            (
                os.fsencode(item.absolute), os.fsencode(item.path), item.member, item.source, item.relative,
                item.side_car, os.fsencode(beside(item, item.side_car)),
            )
            for item in walk(sources, out)
        )  # fmt: skip
        self.db.executemany("INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self.db.execute("DELETE FROM found WHERE absolute IN (SELECT beside FROM found)")

    def _found(self, where: str = "") -> Iterator[Input]:
        columns = "path, source, relative, member, side_car"
        for path, *rest in self.db.execute(f"SELECT {columns} FROM found {where} ORDER BY source, absolute"):
            yield Input(Path(os.fsdecode(path)), *rest)

    def _take_texts(self, tables: list[Path] | None) -> list[Input]:
        """The tables and other texts of the layout, which are no inputs: those named, else those found."""
        named = [*(tables or []), *(source for source in self._sources if _is_table(source))]
        for table in named:
            if not table.is_file():
                raise CyclicError(f"There is no table {table}.", "Check --reports.")
            self.db.execute("DELETE FROM found WHERE absolute = ?", (os.fsencode(os.path.abspath(table)),))
        self.db.create_function("claims", 1, self.layout.claims, deterministic=True)
        found = list(self._found("WHERE claims(relative)"))
        self.db.execute("DELETE FROM found WHERE claims(relative)")
        self.report_files = len(named) + len(found)
        if named and found and self.layout is layouts.LAYOUTS["tables"]:
            self.notes.append(Note(f"{len(found)} tables in the sources are not read, since --reports names others"))
            found = []
        return [Input(table, table.name, table.name) for table in named] + found

    def _take_known(self, known: StoredDataset) -> None:
        """The inputs and reports of the dataset that is updated."""
        for row in known.inputs():
            self.insert("inputs", {name: row[name] for name in _STORED}, "OR IGNORE")  # once for all its frames
            self.insert("frames", {"place": row["place"], **{name: row[name] for name in FRAME_COLUMNS}})
        for row in known.reports():
            self.insert("reports", {**row, "labels": json.loads(row["labels"])})

    def _take_inputs(self) -> int:
        """Number the inputs that are new, in the order of their sources; how many there are."""
        number, waiting = self.first, self._found()
        with ThreadPoolExecutor(READERS) as threads:
            while True:
                some = [list(islice(waiting, 64)) for _ in range(READERS)]
                for items, ends in zip(some, threads.map(_ends, some), strict=True):
                    for item, digest in zip(items, ends, strict=True):
                        self._digest.update(item.source.encode() + digest)
                        number += self._take_input(item, digest.hex(), number)
                if not some[-1]:
                    return number - self.first

    def _take_input(self, item: Input, ends: str, number: int) -> bool:
        """Note one input. False when it is known already: the same content under the same path of its source."""
        key, names = self.keyer.key, self._names(item)
        ends = key("ends", str(names[RELATIVE]), ends)
        place, other = key("place", item.source), key("place", item.source, ends)
        folder = os.path.dirname(item.source)
        here = (os.fsencode(item.absolute), os.fsencode(item.path), item.member, folder, item.side_car)
        same = self.db.execute("SELECT place FROM inputs WHERE ends = ? AND absolute IS NULL", (ends,)).fetchone()
        if same:
            settings = ", ".join(f"{name} = ?" for name in _IN_MEMORY)
            self.db.execute(f"UPDATE inputs SET {settings} WHERE place = ?", (*here, *same))
            return False
        for taken in (place, other):
            if not self._is_taken(taken):
                place = taken
                break
        else:
            place = key("place", item.source, ends, str(number))
        person, study = self._path_owner(item)
        stored = {
            "place": place, "number": number, "source": item.source if self.config.paths else None, "ends": ends,
            "names": names, "path_patient": person, "path_study": study,
        }  # fmt: skip
        self.insert("inputs", stored | dict(zip(_IN_MEMORY, here, strict=True)))
        return True

    def _is_taken(self, place: str) -> bool:
        """Whether an input has that place. One that had to be rejected makes room: its file was mended."""
        row = self.db.execute("SELECT number, absolute FROM inputs WHERE place = ?", (place,)).fetchone()
        if row is None:
            return False
        good = "SELECT 1 FROM frames WHERE place = ? AND status != 'rejected'"
        if row[1] is not None or self.db.execute(good, (place,)).fetchone():
            return True
        self.db.execute("DELETE FROM frames WHERE place = ?", (place,))
        self.db.execute("DELETE FROM inputs WHERE place = ?", (place,))
        return False

    def _names(self, item: Input) -> list[int]:
        """Hashes of what a table may call an input: see RELATIVE, NAME, STEM and ENDING."""
        parts = item.absolute.split("/")
        endings = ["/".join(parts[-depth:]) for depth in range(2, min(len(parts), LONGEST_ENDING + 1))]
        return [self.keyer.number(name) for name in (item.relative, item.name, base_name(Path(item.name)), *endings)]

    def _path_owner(self, item: Input) -> tuple[str, str]:
        """Keys of the patient and the study that the path names, by the layout or by `--patient-pattern`."""
        patient, study = self.layout.owner(item.relative)
        if not patient and self.config.patient_pattern:
            found = re.search(self.config.patient_pattern, item.source)
            patient = (found[1] if found.groups() else found[0]) or "" if found else ""
        return self._key("patient", patient), self._key("study", study)

    # --------------------------------------------------------------------------------------------- reports

    def _take_reports(self, texts: list[Input]) -> None:
        """Every row of every table."""
        for item in texts:
            with item.open() as file:
                while block := file.read(2**20):
                    self._told.update(block)
        if not texts:
            return
        stream = self.layout.read(texts, self.config)
        self.labels += [label for label in stream.labels if label not in self.labels]
        (first,) = self.db.execute('SELECT coalesce(max("table"), 0) FROM reports').fetchone()
        for number, (_, reports) in enumerate(groupby(stream, lambda report: report.table), first + 1):
            for report in reports:
                row = self._report(report, number)
                if not self._is_known(row):
                    self.insert("reports", row)
        self.notes += [Note(note) for note in stream.notes]  # now they tell of texts that could not be read, too

    def _report(self, report: Report, table: int) -> dict[str, Any]:
        """A report with keys in the place of whatever names somebody."""
        of_image = bool(report.image or report.instance)
        whole = json.dumps(asdict(replace(report, line="", table="")), sort_keys=True)
        keys = {report.patient, report.study, report.accession, report.instance, report.image}
        row = self._fresh | {
            "digest": self.keyer.number(whole),
            "naming": bool({*report.identifying.names, *report.identifying.remarks} - keys),
            "table": table,
            "rank": TABLE if of_image or not (report.study or report.accession) else OF_STUDY,
            "instance": self._key("instance", report.instance),
            "study": self._key("study", report.study),
            "accession": self._key("accession", report.accession),
            "patient": self._key("patient", report.patient),
            "split": report.split,
            "labels": report.labels,
            "words": fingerprints(report.identifying, self.keyer),
            "text": report.text,
            "line": report.line,
        }
        return row | (self._image_of(report) if report.image else {})

    def _is_known(self, row: dict[str, Any]) -> bool:
        """Whether the dataset that is updated has the same row, about the same image."""
        known = """SELECT 1 FROM reports r LEFT JOIN inputs i USING (place)
                   WHERE r.digest = ? AND r.generation < ? AND (r.image IS NULL OR i.absolute = ?)"""
        return self.db.execute(known, (row["digest"], row["generation"], row.get("wanted"))).fetchone() is not None

    def _image_of(self, report: Report) -> dict[str, Any]:
        """What a report calls its image: see `REPORT_COLUMNS`; `wanted` is where that would be."""
        image = os.path.normpath(report.image)
        wanted = os.path.normpath(os.path.join(os.path.dirname(report.table), image))
        within = next((wanted.removeprefix(root) for root in self._roots if wanted.startswith(root)), None)
        return {
            "image": self.keyer.number(image),
            "within": self.keyer.number(within) if within else None,
            "stem": self.keyer.number(base_name(Path(os.path.basename(image)))),
            "depth": image.count("/") + 1,
            "wanted": os.fsencode(wanted),
        }

    def _take_side_cars(self) -> None:
        """The text files beside images; one that was read before may have been written anew."""
        files: set[tuple[str, str]] = set()
        broken = 0
        query = f"SELECT place, {', '.join(_IN_MEMORY)} FROM inputs WHERE side_car != '' ORDER BY number"
        for place, _, path, member, folder, name in self.db.execute(query).fetchall():
            text = _side_car(Path(os.fsdecode(path)), member, name)
            self.db.execute("DELETE FROM reports WHERE rank = ? AND place = ?", (BESIDE, place))
            try:
                content = layouts.content_of(text)
            except Rejected:
                broken += 1
            else:
                self._told.update(content)
                shared = self.keyer.number(folder) if name == SIDE_CAR else None
                said = {"text": as_text(content).strip(), "shared": shared}
                self.insert("reports", self._fresh | {"rank": BESIDE, "place": place, "labels": {}, **said})
            files.add((text.absolute, text.member))
        self.report_files += len(files)
        if broken:
            self.notes.append(
                Note(f"{broken} text files beside images could not be read, or are too long", warning=True)
            )

    # ------------------------------------------------------------------------------------------------ rows

    def _key(self, kind: str, value: str) -> str:
        return "" if names_nobody(value) else self.keyer.key(kind, value)

    def insert(self, table: str, row: dict[str, Any], otherwise: str = "") -> None:
        """Add one row to a table of the database; lists and tables within it become JSON."""
        names = ", ".join(f'"{name}"' for name in row)
        values = [json.dumps(value) if isinstance(value, list | dict) else value for value in row.values()]
        marks = ", ".join("?" * len(values))
        self.db.execute(f"INSERT {otherwise} INTO {table} ({names}) VALUES ({marks})", values)


def _ends(items: list[Input]) -> list[bytes]:
    return [hashlib.sha256(item.ends()).digest() for item in items]


def _is_table(source: Path) -> bool:
    """Whether a source that the user named is a table of reports."""
    return source.name.lower().endswith(TABLE_SUFFIXES) and source.is_file()


def _side_car(image: Path, member: str, name: str) -> Input:
    if not member:
        return Input(image.with_name(name), name, name)
    folder = os.path.dirname(member)
    return Input(image, name, name, f"{folder}/{name}" if folder else name)


def _scratch_database() -> sqlite3.Connection:
    """A database of this process alone: nothing of it is left when the process ends, however it ends."""
    database = sqlite3.connect("", isolation_level=None)
    for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE}", "temp_store = FILE"):
        database.execute(f"PRAGMA {setting}")
    database.executescript(_SCHEMA)
    database.execute("BEGIN")  # one transaction for ever: nothing needs to be durable
    return database
