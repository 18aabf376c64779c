"""Decides the patient and the study of every input, and of every report without an input: the table `owners`.

The patient comes from the table, else the header, the path, the study; without any of them the study, or a sample
without a study, counts as a patient of its own.
"""

import json
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from cyclic_cli.prepare.database import SIDE_CAR_TEXT, insert
from cyclic_cli.prepare.report import Report, merge
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.privacy.scrub import Identifying, fingerprints, scrub

_SCHEMA = """
CREATE TABLE owners (
    place, number INTEGER,  -- of an input, or of a report that was matched to no input
    table_patient, header_patient, header_patient_number, path_patient,  -- keys of the patient, by their origin
    study, header_study,
    split, line, labels,  -- as given by tables; `line` is where they stand
    conflict,  -- whether reports about the image contradict one another
    fallback_patient,  -- key for an owner whose patient is unknown
    patient,
    patient_known INTEGER DEFAULT 1
);
CREATE TABLE report_patients (number INTEGER, patient);
"""
_REPORT_COLUMNS = "r.rank, r.generation, r.patient, r.study, r.split, r.labels, r.line"


@dataclass(frozen=True)
class Assigned:
    """What was noticed while patients were assigned."""

    text_labels: set[str]  # labels that hold text; all others hold numbers
    contradicting_images: int  # images that are missing, and whose rows contradict one another


def add_path_identities(db: sqlite3.Connection, pattern: str | None, keyer: Keyer) -> None:
    """Add what `--patient-pattern` finds in a path to the identities in the file's header, so that it is cut as well.

    Args:
        db: The database with all frames, before `match_reports`.
        pattern: The regular expression, which is searched in the path relative to the source; None for none.
        keyer: Makes the fingerprints.
    """
    found = db.execute(
        """SELECT i.place, f.source FROM inputs i JOIN found_files f USING (absolute)
           WHERE i.path_patient != '' ORDER BY i.number"""
    )
    for place, source in found.fetchall() if pattern else ():
        match = re.search(pattern or "", source)
        name = (match[1] if match.groups() else match[0]) if match else None
        words = fingerprints(Identifying((name,) if name else ()), keyer)
        query = "SELECT frame, words FROM frames WHERE place = ? ORDER BY frame LIMIT 1"
        frame, known = db.execute(query, (place,)).fetchone()
        words = sorted({*words, *json.loads(known or "[]")})
        db.execute("UPDATE frames SET words = ? WHERE place = ? AND frame = ?", (json.dumps(words), place, frame))


def assign_patients(db: sqlite3.Connection, keyer: Keyer) -> Assigned:
    """Fill `owners`, and `report_patients` with the patients of every report.

    Args:
        db: The database after `match_reports`.
        keyer: Makes the keys of patients and studies that nothing names.
    """
    db.executescript(_SCHEMA)
    owners = _Owners(db, keyer)
    owners.add_inputs()
    owners.add_reports()
    _merge_patient_keys(db)
    return Assigned(owners.text_labels, owners.contradicting_images)


class _Owners:
    """Adds rows to `owners`; the patient is still empty."""

    def __init__(self, db: sqlite3.Connection, keyer: Keyer) -> None:
        self._db, self._keyer = db, keyer
        self.text_labels: set[str] = set()
        self.contradicting_images = 0

    def add_inputs(self) -> None:
        """Add every input, with what its header, its path and the reports matched to it state."""
        inputs = self._db.execute(
            f"""SELECT i.place, h.sample, h.patient, h.patient_number, i.path_patient, h.study, i.path_study,
                       {_REPORT_COLUMNS}
                FROM inputs i JOIN headers h USING (place) LEFT JOIN matches m USING (place)
                LEFT JOIN reports r ON r.number = m.number ORDER BY i.place, r.rank, r.generation DESC, r.number"""
        )
        for (place, sample, *header), rows in groupby(inputs, lambda row: row[:7]):
            patient, patient_number, path_patient, study, path_study = (value or "" for value in header)
            stated = self._combined(row[7:] for row in rows if row[7] is not None)
            keys = {
                "place": place, "header_patient": patient, "header_patient_number": patient_number,
                "path_patient": path_patient, "header_study": study,
            }  # fmt: skip
            self._add(keys, stated, sample or self._keyer.key("text", place), study or path_study)

    def add_reports(self) -> None:
        """Add every report with a text that was matched to no input. Contradicting texts of one image are left out."""
        reports = self._db.execute(
            f"""SELECT coalesce(r.image, -r.number), r."table", r.number, r.image, r.text, r.words, {_REPORT_COLUMNS}
                FROM reports r WHERE r.number NOT IN (SELECT number FROM matches) AND r.rank != {SIDE_CAR_TEXT}
                ORDER BY r."table", 1, r.number"""
        )
        none = {"header_patient": "", "header_patient_number": "", "path_patient": "", "header_study": ""}
        for _, group in groupby(reports, lambda row: row[:2]):
            rows = list(group)
            by_text = {row[4]: row for row in rows if row[4]}
            self.contradicting_images += len(by_text) > 1
            if len(by_text) != 1:
                continue
            ((_, _, number, image, text, words, *_),) = by_text.values()
            stated = self._combined(row[6:] for row in rows)
            patient = stated.patient if stated else ""  # reports of different patients often have the same text
            scrubbed = scrub(text, json.loads(words or "[]"), self._keyer)
            self._add({"number": number, **none}, stated, self._keyer.key("text", str(image), patient, scrubbed))

    def _combined(self, rows: Iterable[tuple[Any, ...]]) -> Report | None:
        """What the reports of one image state together, without their texts.

        Reports of one rank and generation must agree: None where they contradict one another. What they leave open is
        filled by the next rank or generation.

        Args:
            rows: `_REPORT_COLUMNS`, sorted by rank and, the newest first, by generation.
        """
        combined = Report()
        for _, same_rank in groupby(rows, lambda row: row[:2]):
            stated: Report | None = Report()
            for _, _, patient, study, split, labels, line in same_rank:
                row = Report(patient=patient or "", study=study or "", split=split or "", labels=json.loads(labels))
                stated = stated and merge(replace(stated, line=stated.line or line or ""), row)
            if stated is None:
                return None
            self.text_labels |= {name for name, value in stated.labels.items() if isinstance(value, str)}
            filled = {name: value for name, value in combined.labels.items() if value is not None}
            combined = Report(
                patient=combined.patient or stated.patient,
                study=combined.study or stated.study,
                split=combined.split or stated.split,
                labels={**stated.labels, **filled},
                line=combined.line or stated.line,
            )
        return combined

    def _add(self, keys: dict[str, Any], stated: Report | None, sample: str, other_study: str = "") -> None:
        """Add one owner.

        Args:
            keys: Columns of `owners` that are known already.
            stated: What tables state; None where they contradict one another.
            sample: A key of the sample, from which the missing keys are made.
            other_study: Study of the header or the path; the table's takes precedence.
        """
        key, conflict = self._keyer.key, stated is None
        stated = stated or Report()
        study = stated.study or other_study
        row = keys | {
            "table_patient": stated.patient, "study": study or key("study of sample", sample), "split": stated.split,
            "line": stated.line, "labels": json.dumps(stated.labels), "conflict": conflict, "patient": "",
            "fallback_patient": key("patient of study", study) if study else key("patient of sample", sample),
        }  # fmt: skip
        insert(self._db, "owners", row)


def _merge_patient_keys(db: sqlite3.Connection) -> None:
    """Set `owners.patient`, and fill `report_patients`.

    One person may appear under several keys: the issuer of a patient number may be missing, a table may list only
    some of the images, and a file may have lost its PatientID. Keys are merged where they can refer to one patient
    only. Otherwise images of one study could come into two splits.
    """
    db.executescript(
        """
        CREATE TABLE numbers_of_one_issuer AS
            SELECT header_patient_number AS number, min(header_patient) AS patient FROM owners
            WHERE header_patient != header_patient_number
            GROUP BY header_patient_number HAVING count(DISTINCT header_patient) = 1;
        UPDATE owners SET header_patient = n.patient FROM numbers_of_one_issuer n
            WHERE owners.header_patient = n.number;
        CREATE TABLE table_patients AS SELECT header_patient, min(table_patient) AS patient FROM owners
            WHERE table_patient != '' AND header_patient != ''
            GROUP BY header_patient HAVING count(DISTINCT table_patient) = 1;
        CREATE UNIQUE INDEX table_patients_header ON table_patients (header_patient);
        UPDATE owners SET patient = coalesce(nullif(table_patient, ''),
            (SELECT patient FROM table_patients t WHERE t.header_patient = owners.header_patient),
            nullif(header_patient, ''), path_patient);
        CREATE TABLE study_patients AS SELECT study, min(patient) AS patient FROM
                (SELECT study, patient FROM owners UNION SELECT header_study, patient FROM owners)
            WHERE study != '' AND patient != '' GROUP BY study HAVING count(DISTINCT patient) = 1;
        CREATE UNIQUE INDEX study_patients_study ON study_patients (study);
        UPDATE owners SET patient = s.patient FROM study_patients s WHERE owners.patient = ''
            AND owners.study = s.study;
        UPDATE owners SET patient = fallback_patient, patient_known = 0 WHERE patient = '';
        CREATE UNIQUE INDEX owners_place ON owners (place);
        INSERT INTO report_patients SELECT m.number, o.patient FROM matches m JOIN owners o USING (place)
            UNION SELECT number, patient FROM owners WHERE number IS NOT NULL;
        CREATE INDEX report_patients_number ON report_patients (number);
        """
    )
