"""Chooses the samples of the dataset: one image of each set of equal images, and texts without an image.

Fills the table `samples`, a row per row of the index. Two images are equal where all stored pixels are equal.
"""

import sqlite3
from itertools import groupby
from typing import Any

from cyclic_cli.prepare.database import STRUCTURED_REPORT, insert
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.storage.dataset import INDEX_COLUMNS

_SCHEMA = f"""
CREATE TABLE input_texts (place PRIMARY KEY, text) WITHOUT ROWID;
CREATE TABLE samples ({", ".join(f'"{name}"' for name in INDEX_COLUMNS)},
                      place, patient_known, line, labels, perceptual_hash);
"""
_SPLIT_COLUMNS = ("split", "position")  # filled by `splitting.py`
_TEXT_ONLY: dict[str, Any] = {name: "" for name, kind in INDEX_COLUMNS.items() if kind == "string"} | {
    "has_image": False, "has_text": True, "shard": -1, "row": -1, "height": 0, "width": 0, "bits": 0,
    "pixel_spacing": 0.0, "frame": -1, "source": None,
}  # fmt: skip
"""A row of the index of a text without an image."""


def choose_samples(db: sqlite3.Connection, keyer: Keyer) -> None:
    """Fill `samples`, and `usable_frames` with every usable frame and the one that is kept in its place.

    Args:
        db: The database after `scrub_reports`.
        keyer: Makes the keys of samples without an image.
    """
    db.executescript(_SCHEMA)
    _collect_input_texts(db)
    _choose_among_equal_images(db)
    _add_text_samples(db, keyer)


def _collect_input_texts(db: sqlite3.Connection) -> None:
    """Fill `input_texts` with the text of every input; contradicting texts set the owner's `conflict`.

    The text comes from the reports of the lowest rank and, among these, of the newest generation. A study may have
    several structured reports: they do not contradict one another, and are joined.
    """
    reports = db.execute(
        """SELECT m.place, r.rank, r.generation, r.text FROM matches m JOIN reports r USING (number)
           WHERE r.text != '' ORDER BY m.place, r.rank, r.generation DESC, r.text"""
    )
    for place, rows in groupby(reports, lambda row: row[0]):
        (rank, _), preferred = next(groupby(rows, lambda row: row[1:3]))
        texts = list(dict.fromkeys(text for *_, text in preferred))
        if len(texts) > 1 and rank != STRUCTURED_REPORT:
            db.execute("UPDATE owners SET conflict = 1 WHERE place = ?", (place,))
        else:
            db.execute("INSERT INTO input_texts VALUES (?, ?)", (place, "\n\n".join(texts)))


def _choose_among_equal_images(db: sqlite3.Connection) -> None:
    """Keep one of several equal images: of the first patient key in sorted order, with a text where there is one."""
    columns = [name for name in INDEX_COLUMNS if name not in _SPLIT_COLUMNS]
    names = ", ".join(f'"{name}"' for name in columns)
    db.executescript(
        f"""
        CREATE TABLE usable_frames AS SELECT f.place, f.frame, f.content, f.perceptual_hash, o.patient,
                row_number() OVER equal AS rank,
                first_value(f.place) OVER equal AS kept_place, first_value(o.patient) OVER equal AS kept_patient
            FROM frames f JOIN owners o USING (place) LEFT JOIN input_texts t USING (place)
            WHERE f.status = 'used' AND NOT o.conflict
            WINDOW equal AS (PARTITION BY f.content
                             ORDER BY o.patient, t.text IS NULL, f.sample, f.place, f.frame);
        INSERT INTO samples ({names}, split, place, patient_known, line, labels, perceptual_hash)
            SELECT {", ".join(map(_origin, columns))}, o.split, f.place, o.patient_known, o.line, o.labels,
                f.perceptual_hash
            FROM usable_frames u JOIN frames f USING (place, frame) JOIN owners o USING (place)
            JOIN inputs i USING (place) LEFT JOIN input_texts t USING (place) WHERE u.rank = 1;
        CREATE INDEX samples_place ON samples (place);
        """
    )


def _origin(column: str) -> str:
    """The SQL expression behind a column of the index, for a sample with an image."""
    of_owner = {"patient": "o.patient", "study": "o.study", "source": "i.source", "has_image": "1"}
    of_text = {"text": "coalesce(t.text, '')", "has_text": "t.text IS NOT NULL"}
    return (of_owner | of_text).get(column) or f'f."{column}"'


def _add_text_samples(db: sqlite3.Connection, keyer: Keyer) -> None:
    """Add texts whose image is missing, unusable or a duplicate, unless their patient or study has the same text."""
    db.executescript(
        """
        CREATE TABLE sample_texts (owner, text, PRIMARY KEY (owner, text)) WITHOUT ROWID;
        INSERT OR IGNORE INTO sample_texts SELECT patient, text FROM samples WHERE text != '';
        INSERT OR IGNORE INTO sample_texts SELECT study, text FROM samples WHERE text != '';
        """
    )
    texts = db.execute(
        """SELECT o.patient, o.study, coalesce(t.text, r.text) AS text, o.patient_known, o.split, o.line, o.labels
           FROM owners o LEFT JOIN input_texts t USING (place) LEFT JOIN reports r USING (number)
           WHERE coalesce(t.text, r.text, '') != '' AND NOT o.conflict ORDER BY o.patient, o.study, text"""
    )
    for patient, study, text, patient_known, split, line, labels in texts:
        same = "SELECT 1 FROM sample_texts WHERE text = ? AND owner IN (?, ?)"
        if not db.execute(same, (text, patient, study)).fetchone():
            db.executemany("INSERT OR IGNORE INTO sample_texts VALUES (?, ?)", [(patient, text), (study, text)])
            row = _TEXT_ONLY | {
                "sample": keyer.key("text sample", patient, study, text), "patient": patient, "study": study,
                "text": text, "patient_known": patient_known, "split": split, "line": line, "labels": labels,
            }  # fmt: skip
            insert(db, "samples", row)
