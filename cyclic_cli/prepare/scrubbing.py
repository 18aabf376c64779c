"""Removes identities from report texts and text labels, by the headers and table rows of the report's patients."""

import json
import sqlite3
from itertools import groupby

from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.scrub import scrub

_HAS_TEXT_LABEL = """labels LIKE '%": "%'"""  # in JSON
_SCHEMA = f"""
CREATE TABLE kept_out_texts (number INTEGER PRIMARY KEY, detail);  -- filled by `strict_texts.py`
CREATE TABLE identity_words (patient, word, PRIMARY KEY (patient, word)) WITHOUT ROWID;
CREATE TABLE patients_with_text AS SELECT DISTINCT p.patient FROM report_patients p JOIN reports r USING (number)
    WHERE r.text != '' OR r.{_HAS_TEXT_LABEL};
CREATE UNIQUE INDEX patients_with_text_patient ON patients_with_text (patient);
CREATE TABLE patients_with_names AS SELECT DISTINCT o.patient FROM owners o JOIN headers h USING (place)
    WHERE h.words IS NOT NULL AND h.words != '[]';
CREATE UNIQUE INDEX patients_with_names_patient ON patients_with_names (patient);
INSERT OR IGNORE INTO identity_words SELECT o.patient, j.value FROM owners o JOIN patients_with_text USING (patient)
    JOIN headers h USING (place), json_each(h.words) j;
INSERT OR IGNORE INTO identity_words SELECT p.patient, j.value FROM report_patients p JOIN reports r USING (number),
    json_each(r.words) j;
"""


def scrub_reports(db: sqlite3.Connection, keyer: Keyer) -> int:
    """Scrub the texts and labels in `reports`, and the labels in `owners`.

    Args:
        db: The database after `assign_patients`.
        keyer: The one that the fingerprints of identities were made with.

    Returns:
        How many texts have no names in their table row or in a header of their patients. From these texts only what
        can be told by its form can be removed.
    """
    db.executescript(_SCHEMA)
    without_names = _scrub_reports(db, keyer)
    _scrub_owners(db, keyer)
    return without_names


def _scrub_reports(db: sqlite3.Connection, keyer: Keyer) -> int:
    """Scrub `reports`; how many texts have no names to look for."""
    texts = db.execute(
        f"""SELECT (SELECT group_concat(patient, ' ') FROM report_patients p WHERE p.number = r.number) AS patients,
               r.number, r.text, r.labels
           FROM reports r WHERE r.text != '' OR r.{_HAS_TEXT_LABEL} ORDER BY patients"""
    )
    without_names = 0
    for joined, rows in groupby(texts, lambda row: row[0]):
        patients = (joined or "").split()
        words = _identity_words(db, patients)
        for _, number, text, labels in rows:
            without_names += bool(text) and not _has_names(db, patients, number)
            db.execute(
                "UPDATE reports SET text = ?, labels = ? WHERE number = ?",
                (scrub(text, words, keyer), _scrub_labels(labels, words, keyer), number),
            )
    return without_names


def _scrub_owners(db: sqlite3.Connection, keyer: Keyer) -> None:
    labelled = db.execute(f"SELECT patient, rowid, labels FROM owners WHERE {_HAS_TEXT_LABEL} ORDER BY patient")
    for patient, rows in groupby(labelled, lambda row: row[0]):
        words = _identity_words(db, [patient])
        for _, row, labels in rows:
            scrubbed = _scrub_labels(labels, words, keyer)
            db.execute("UPDATE owners SET labels = ? WHERE rowid = ?", (scrubbed, row))


def _has_names(db: sqlite3.Connection, patients: list[str], number: int) -> bool:
    """Whether the report's own row, or a header of its patients, holds more than the numbers that become keys."""
    query = (
        "SELECT 1 FROM patients_with_names WHERE patient = ? UNION SELECT 1 FROM reports WHERE number = ? AND has_names"
    )
    return any(db.execute(query, (patient, number)).fetchone() for patient in patients)


def _identity_words(db: sqlite3.Connection, patients: list[str]) -> frozenset[str]:
    """Fingerprints of identities in the headers and table rows of some patients."""
    marks = ", ".join("?" * len(patients))
    rows = db.execute(f"SELECT word FROM identity_words WHERE patient IN ({marks})", patients)
    return frozenset(word for (word,) in rows)


def _scrub_labels(labels: str, words: frozenset[str], keyer: Keyer) -> str:
    """Labels as JSON with identities removed; a text label may contain a name just as a report may."""
    values = json.loads(labels)
    scrubbed = {name: scrub(value, words, keyer) for name, value in values.items() if isinstance(value, str)}
    return json.dumps(values | scrubbed)
