"""Gives the rows of the files that `cyclic prepare` writes, their counts and their fingerprint."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from cyclic_cli.errors import REASONS
from cyclic_cli.prepare.database import STORED_COLUMNS, Row
from cyclic_cli.prepare.near_duplicates import near_duplicates
from cyclic_cli.privacy.keys import SPLITS
from cyclic_cli.storage.dataset import FRAME_COLUMNS, INDEX_COLUMNS, INPUT_COLUMNS, REPORT_COLUMNS

_SHOWN_NAME = "coalesce({0}.source, printf('%06d', {0}.number + 1))"  # an input's number stands for a hidden path


class DatasetTables:
    """The rows of a dataset's files, read from the database one by one.

    Creates the table `outcomes`, which holds for every input whether it is used, a duplicate, skipped or rejected; an
    input counts by the best of its frames.

    Args:
        db: The database after `assign_splits`.
        labels: Label columns of the index.
        text_labels: Labels that hold text.
        report_files: Number of tables, documents and side-car texts that were read.
    """

    def __init__(self, db: sqlite3.Connection, labels: list[str], text_labels: set[str], report_files: int) -> None:
        self._db, self._labels, self._text_labels, self._report_files = db, labels, text_labels, report_files
        db.executescript(
            """
            CREATE TABLE outcomes AS SELECT o.place, CASE
                    WHEN o.place IN (SELECT place FROM samples) THEN 'used'
                    WHEN o.place IN (SELECT place FROM usable_frames) THEN 'duplicate'
                    WHEN h.status = 'used' THEN 'rejected' ELSE h.status END AS status, h.frame AS first_frame
                FROM owners o JOIN headers h USING (place);
            CREATE INDEX outcomes_place ON outcomes (place);
            """
        )

    def index(self) -> Iterator[Row]:
        """The rows of `index.parquet`, sorted by split and position."""
        order = " ".join(f"WHEN '{name}' THEN {number}" for number, name in enumerate(SPLITS))
        columns = ", ".join(f'"{name}"' for name in INDEX_COLUMNS)
        rows = self._db.execute(
            f"SELECT {columns}, labels FROM samples ORDER BY CASE split {order} END, position, patient, sample, frame"
        )
        for *values, labels in rows:
            row = dict(zip(INDEX_COLUMNS, values, strict=True))
            given = json.loads(labels)
            label_columns = {name: given.get(name) for name in self._labels}
            texts = {name: label_columns.get(name) for name in self._text_labels}
            label_columns |= {name: str(value) for name, value in texts.items() if value is not None}
            yield row | {name: bool(row[name]) for name in ("has_image", "has_text")} | label_columns

    def inputs(self) -> Iterator[Row]:
        """The rows of `inputs.parquet`, one for every frame of every input."""
        columns = ", ".join([*(f"i.{name}" for name in STORED_COLUMNS), *(f"f.{name}" for name in FRAME_COLUMNS)])
        rows = self._db.execute(
            f"SELECT {columns} FROM inputs i JOIN frames f USING (place) ORDER BY i.number, f.frame"
        )
        return (_from_json(dict(zip(INPUT_COLUMNS, row, strict=True)), "names", "words", "guesses") for row in rows)

    def reports(self) -> Iterator[Row]:
        """The rows of `reports.parquet`."""
        columns = ", ".join(f'"{name}"' for name in REPORT_COLUMNS)
        rows = self._db.execute(f"SELECT {columns} FROM reports ORDER BY number")
        return (_from_json(dict(zip(REPORT_COLUMNS, row, strict=True)), "words") for row in rows)

    def rejected(self) -> Iterator[Row]:
        """The lines of `rejected.jsonl`: skipped and rejected inputs, unusable frames of used ones, damaged texts."""
        rows = self._db.execute(
            f"""SELECT {_SHOWN_NAME.format("i")} AS name, o.status, f.frame, f.reason, f.detail
               FROM outcomes o JOIN inputs i USING (place) JOIN frames f USING (place)
               WHERE o.status IN ('skipped', 'rejected') AND f.frame = o.first_frame
                   OR o.status = 'used' AND f.status != 'used'
               ORDER BY name, f.frame"""
        )
        for name, status, frame, reason, detail in rows:
            if reason is None:  # the frame is usable, but rows about it contradict one another
                reason, detail = "conflicting_rows", REASONS["conflicting_rows"]
            if status == "used":
                yield {"source": name, "frame": frame, "status": "frame", "reason": reason, "detail": detail}
            else:
                yield {"source": name, "status": status, "reason": reason, "detail": detail}
        texts = self._db.execute(
            f"""SELECT coalesce(t.line, {_SHOWN_NAME.format("i")}) AS name
                FROM unreadable_texts t LEFT JOIN inputs i USING (place) GROUP BY name ORDER BY min(t.rowid)"""
        )
        for (name,) in texts:
            reason = "unreadable_text"
            yield {"source": name, "status": "text", "reason": reason, "detail": REASONS[reason]}

    def duplicates(self) -> Iterator[Row]:
        """The lines of `duplicates.jsonl`: frames left out because their pixels are equal, and near duplicates."""
        equal = self._db.execute(
            f"""SELECT {_SHOWN_NAME.format("i")} AS name, {_SHOWN_NAME.format("k")}, u.patient = u.kept_patient, u.frame
                FROM usable_frames u JOIN inputs i USING (place) JOIN inputs k ON k.place = u.kept_place
                WHERE u.rank > 1 ORDER BY name, u.frame"""
        )
        for source, kept, same_patient, frame in equal:
            yield {
                "source": source, "frame": frame, "of": kept, "kind": "exact", "same_patient": bool(same_patient),
            }  # fmt: skip
        for first, second, distance in self._near_pairs:
            one, two = self._sample(first), self._sample(second)
            yield {
                "source": two["name"], "of": one["name"], "kind": "near", "distance": distance,
                "same_patient": one["patient"] == two["patient"], "splits": sorted({one["split"], two["split"]}),
            }  # fmt: skip

    def counts(self) -> dict[str, Any]:
        """The totals that the summary and `dataset.yaml` share. They do not depend on time or workers."""
        query = self._db.execute
        outcomes = dict(query("SELECT status, count(*) FROM outcomes GROUP BY status").fetchall())
        reasons = query(
            """SELECT coalesce(f.reason, 'conflicting_rows'), count(*) FROM outcomes o JOIN frames f
               ON f.place = o.place AND f.frame = o.first_frame WHERE o.status = 'rejected' GROUP BY 1 ORDER BY 1"""
        ).fetchall()
        guessed = query(
            """SELECT g.value, count(*) FROM samples s JOIN frames f USING (place, frame), json_each(f.guesses) g
               GROUP BY 1 ORDER BY 1"""
        ).fetchall()
        (unreadable,) = query("SELECT count(*) FROM (SELECT DISTINCT place, line FROM unreadable_texts)").fetchone()
        splits = dict(query("SELECT split, count(*) FROM samples GROUP BY split").fetchall())
        samples, patients, studies, images, paired = query(
            """SELECT count(*), count(DISTINCT patient), count(DISTINCT study), coalesce(sum(has_image), 0),
                      coalesce(sum(has_image AND has_text), 0) FROM samples"""
        ).fetchone()
        return {
            "inputs": sum(outcomes.values()), "used": outcomes.get("used", 0),
            "duplicates": outcomes.get("duplicate", 0), "skipped": outcomes.get("skipped", 0),
            "rejected": outcomes.get("rejected", 0), "rejected_by_reason": dict(reasons),
            "guessed": dict(guessed), "near_duplicates": len(self._near_pairs),
            "samples": samples, "patients": patients, "studies": studies,
            "paired": paired, "image_only": images - paired, "text_only": samples - images,
            "texts_unreadable": unreadable, "report_files": self._report_files,
            "splits": {name: splits.get(name, 0) for name in SPLITS},
        }  # fmt: skip

    def fingerprint(self) -> str:
        """A SHA-256 hash of the samples, the first 32 digits."""
        digest = hashlib.sha256()
        for row in self.index():
            digest.update(
                "\0".join(str(row[name]) for name in ("sample", "patient", "split", "content", "text")).encode()
            )
        return digest.hexdigest()[:32]

    @cached_property
    def _near_pairs(self) -> list[tuple[int, int, int]]:
        """Pairs of samples that look nearly the same: their rows in `samples`, and the bits that differ."""
        rows = self._db.execute(
            "SELECT rowid, perceptual_hash FROM samples WHERE perceptual_hash IS NOT NULL ORDER BY sample, frame"
        )
        return near_duplicates(rows)

    def _sample(self, row: int) -> Row:
        """Name, patient and split of a sample with an image."""
        values = self._db.execute(
            f"SELECT {_SHOWN_NAME.format('i')}, s.patient, s.split FROM samples s JOIN inputs i USING (place) "
            "WHERE s.rowid = ?",
            (row,),
        ).fetchone()
        return dict(zip(("name", "patient", "split"), values, strict=True))


def _from_json(row: Row, *names: str) -> Row:
    return row | {name: json.loads(row[name]) if row[name] else None for name in names}
