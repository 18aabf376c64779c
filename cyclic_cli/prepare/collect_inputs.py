"""Finds the files behind the sources and numbers the new ones: fills the tables `found_files` and `inputs`."""

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from cyclic_cli.config import PrepareConfig
from cyclic_cli.prepare.database import LOCATION_COLUMNS, LONGEST_ENDING, RELATIVE, insert
from cyclic_cli.prepare.layouts import Layout
from cyclic_cli.prepare.sources import Input, beside, walk
from cyclic_cli.prepare.texts import base_name
from cyclic_cli.privacy.keys import Keyer, is_placeholder

READERS = 8  # threads that read the ends of files: on a network file system every access waits
BATCH = 64  # files that a thread takes at once


def find_files(db: sqlite3.Connection, sources: list[Path], out: Path) -> None:
    """Fill `found_files` with every file behind the sources, each once, without side-car texts of other files.

    Args:
        db: The database.
        sources: See `sources.walk`.
        out: The dataset's folder, which is skipped.
    """
    rows = (
        (
            os.fsencode(item.absolute), os.fsencode(item.path), item.member, item.source, item.relative,
            item.side_car, os.fsencode(beside(item, item.side_car)),
        )
        for item in walk(sources, out)
    )  # fmt: skip
    db.executemany("INSERT OR IGNORE INTO found_files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    db.execute("DELETE FROM found_files WHERE absolute IN (SELECT side_car_path FROM found_files)")


def found_files(db: sqlite3.Connection, where: str = "") -> Iterator[Input]:
    """The rows of `found_files` that satisfy an SQL condition (`WHERE …`), sorted by source and path."""
    columns = "path, source, relative, member, side_car"
    for path, *rest in db.execute(f"SELECT {columns} FROM found_files {where} ORDER BY source, absolute"):
        yield Input(Path(os.fsdecode(path)), *rest)


def key_or_empty(keyer: Keyer, kind: str, identity: str) -> str:
    """The key of an identity; empty where the identity is missing or a placeholder such as `anonymous`."""
    return "" if is_placeholder(identity) else keyer.key(kind, identity)


class NewInputs:
    """Adds the found files to `inputs`.

    Args:
        db: The database, with `found_files` complete and the inputs of an updated dataset in `inputs`.
        layout: Says which patient and study a path names.
        config: Settings.
        keyer: Makes the keys.
    """

    def __init__(self, db: sqlite3.Connection, layout: Layout, config: PrepareConfig, keyer: Keyer) -> None:
        self._db, self._layout, self._config, self._keyer = db, layout, config, keyer

    def add(self, first: int) -> tuple[int, str]:
        """Number the inputs that are new, from `first` on, in the order of their sources.

        Returns:
            How many inputs are new, and a SHA-256 digest of the sources and ends of all found files.
        """
        digest = hashlib.sha256()
        number, waiting = first, found_files(self._db)
        with ThreadPoolExecutor(READERS) as threads:
            while True:
                batches = [list(islice(waiting, BATCH)) for _ in range(READERS)]
                for items, hashes in zip(batches, threads.map(_hashes_of_ends, batches), strict=True):
                    for item, ends in zip(items, hashes, strict=True):
                        digest.update(item.source.encode() + ends)
                        number += self._add_one(item, ends.hex(), number)
                if not batches[-1]:
                    return number - first, digest.hexdigest()

    def _add_one(self, item: Input, ends: str, number: int) -> bool:
        """Add one input. False where the updated dataset holds the same content under the same path."""
        key, names = self._keyer.key, self._names(item)
        ends = key("ends", str(names[RELATIVE]), ends)
        folder = os.path.dirname(item.source)
        location = (os.fsencode(item.absolute), os.fsencode(item.path), item.member, folder, item.side_car)
        same = self._db.execute("SELECT place FROM inputs WHERE ends = ? AND absolute IS NULL", (ends,)).fetchone()
        if same:
            settings = ", ".join(f"{name} = ?" for name in LOCATION_COLUMNS)
            self._db.execute(f"UPDATE inputs SET {settings} WHERE place = ?", (*location, *same))
            return False
        patient, study = self._path_owner(item)
        stored = {
            "place": self._free_place(item.source, ends, number), "number": number,
            "source": item.source if self._config.paths else None, "ends": ends, "names": names,
            "path_patient": patient, "path_study": study,
        }  # fmt: skip
        insert(self._db, "inputs", stored | dict(zip(LOCATION_COLUMNS, location, strict=True)))
        return True

    def _free_place(self, source: str, ends: str, number: int) -> str:
        """A key for an input that no other input has. Files of the same path may come in different updates."""
        key = self._keyer.key
        for place in (key("place", source), key("place", source, ends)):
            if not self._is_taken(place):
                return place
        return key("place", source, ends, str(number))

    def _is_taken(self, place: str) -> bool:
        """Whether an input has that place. A stored input that was rejected is removed: its file was repaired."""
        row = self._db.execute("SELECT number, absolute FROM inputs WHERE place = ?", (place,)).fetchone()
        if row is None:
            return False
        accepted = "SELECT 1 FROM frames WHERE place = ? AND status != 'rejected'"
        if row[1] is not None or self._db.execute(accepted, (place,)).fetchone():
            return True
        self._db.execute("DELETE FROM frames WHERE place = ?", (place,))
        self._db.execute("DELETE FROM inputs WHERE place = ?", (place,))
        return False

    def _names(self, item: Input) -> list[int]:
        """Hashes of the names by which a table may refer to an input; see `database.RELATIVE`."""
        parts = item.absolute.split("/")
        endings = ["/".join(parts[-depth:]) for depth in range(2, min(len(parts), LONGEST_ENDING + 1))]
        return [self._keyer.number(name) for name in (item.relative, item.name, base_name(Path(item.name)), *endings)]

    def _path_owner(self, item: Input) -> tuple[str, str]:
        """Keys of the patient and the study in the path, by the layout or by `--patient-pattern`; empty for none."""
        patient, study = self._layout.owner(item.relative)
        if not patient and self._config.patient_pattern:
            found = re.search(self._config.patient_pattern, item.source)
            patient = (found[1] if found.groups() else found[0]) or "" if found else ""
        return key_or_empty(self._keyer, "patient", patient), key_or_empty(self._keyer, "study", study)


def _hashes_of_ends(items: list[Input]) -> list[bytes]:
    return [hashlib.sha256(item.ends()).digest() for item in items]
