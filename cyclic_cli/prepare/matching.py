"""Matches reports to images: fills the table `matches` with pairs of an input (`place`) and a report (`number`).

A report without its image costs one pair; a report with the wrong image corrupts the training data. Ambiguous matches
are therefore left out. The result depends on the set of inputs and reports alone, never on their order. All work is
done by SQL in the database, so that memory does not grow.
"""

import sqlite3
from dataclasses import dataclass

from cyclic_cli.prepare.database import (
    ENDING,
    LONGEST_ENDING,
    NAME,
    RELATIVE,
    SIDE_CAR_TEXT,
    STEM,
    STUDY_ROW,
)

_SCHEMA = """
CREATE TABLE headers AS SELECT place, min(frame) AS frame, status, patient, patient_number, study,
    accession, instance, sample, words FROM frames GROUP BY place;
CREATE UNIQUE INDEX headers_place ON headers (place);
CREATE INDEX headers_instance ON headers (instance);
CREATE INDEX headers_accession ON headers (accession);
CREATE TABLE matches (place, number INTEGER, PRIMARY KEY (place, number)) WITHOUT ROWID;
"""
_BY_IMAGE = """
INSERT OR IGNORE INTO matches SELECT i.place, r.number FROM reports r JOIN table_images i
    ON i."table" = r."table" AND i.image = r.image WHERE i.place IS NOT NULL;
INSERT OR IGNORE INTO matches SELECT h.place, r.number FROM reports r JOIN headers h
    ON h.instance = r.instance WHERE r.instance != '';
"""
_BY_FOLDER = f"""
INSERT OR IGNORE INTO matches SELECT i.place, r.number FROM reports r JOIN inputs i
    ON i.place = r.place WHERE r.rank = {SIDE_CAR_TEXT};
"""
_BY_STUDY = f"""
CREATE TABLE input_studies AS
    SELECT place, study FROM headers WHERE study != ''
    UNION SELECT place, path_study FROM inputs WHERE path_study != ''
    UNION SELECT m.place, r.study FROM matches m JOIN reports r USING (number) WHERE r.study != '';
CREATE INDEX input_studies_study ON input_studies (study);
INSERT OR IGNORE INTO matches SELECT s.place, r.number FROM reports r JOIN input_studies s
    ON s.study = r.study WHERE r.rank >= {STUDY_ROW} AND r.study != '';
"""
_BY_ACCESSION = f"""
-- Hospitals assign accession numbers independently: two hospitals may use one number for different patients.
CREATE TABLE unique_accessions AS SELECT accession FROM headers WHERE accession != ''
    GROUP BY accession HAVING count(DISTINCT patient) = 1 AND count(DISTINCT study) = 1;
INSERT OR IGNORE INTO matches SELECT h.place, r.number FROM reports r JOIN unique_accessions a USING (accession)
    JOIN headers h USING (accession) WHERE r.rank >= {STUDY_ROW}
    AND (r.patient = '' OR h.patient = '' OR r.patient IN (h.patient, h.patient_number));
"""


@dataclass(frozen=True)
class Matched:
    """Counts of matching that the user is warned about."""

    by_file_name: int  # table images that were matched by their file name alone
    dropped_side_cars: int  # `report.txt` files beside images of several patients or studies


def match_reports(db: sqlite3.Connection) -> Matched:
    """Fill `matches` from `inputs`, `frames` and `reports`, and create `headers`, one row per input.

    A report is matched by the image in its table row, by its SOP Instance UID, by its folder, by its study, and by its
    accession number where that number is unique. Sets `reports.place` where a table row names an image of the inputs.
    Deletes `report.txt` texts of folders with several patients or studies.
    """
    db.executescript(_SCHEMA)
    by_file_name = _find_table_images(db)
    db.executescript(_BY_IMAGE)
    dropped = _drop_shared_side_cars(db)
    db.executescript(_BY_FOLDER + _BY_STUDY + _BY_ACCESSION)
    db.execute("CREATE INDEX matches_number ON matches (number)")
    return Matched(by_file_name, dropped)


def _find_table_images(db: sqlite3.Connection) -> int:
    """Create `table_images`: every image that a table names, with the place of at most one input.

    The rules, the strictest first: the path is relative to the table's folder; relative to a source; the end of the
    absolute path of exactly one input; a file name, with or without suffix, that is unique among inputs and rows.

    Returns:
        How many images were found by the last rule.
    """
    db.executescript(
        """
        CREATE TABLE table_images AS SELECT DISTINCT "table", image, stem, within, depth, expected_path, place
            FROM reports WHERE image IS NOT NULL;
        CREATE INDEX table_images_image ON table_images ("table", image);
        CREATE TABLE assigned ("table", place, PRIMARY KEY ("table", place)) WITHOUT ROWID;
        INSERT INTO assigned SELECT DISTINCT "table", place FROM table_images WHERE place IS NOT NULL;
        CREATE TABLE input_names AS SELECT place, j.key AS kind, j.value AS name FROM inputs, json_each(names) j
            WHERE EXISTS (SELECT 1 FROM table_images);
        CREATE INDEX input_names_name ON input_names (kind, name);
        CREATE INDEX inputs_absolute ON inputs (absolute);
        """
    )
    _assign(db, _candidates("JOIN inputs u ON u.absolute = i.expected_path"))
    _assign(db, _candidates(_inputs_with_unique_name("within", RELATIVE)))
    _assign(db, _candidates(_inputs_with_unique_name("image", RELATIVE)))
    (deepest,) = db.execute("SELECT coalesce(max(depth), 0) FROM table_images").fetchone()
    # Endings of all lengths are one rule: no length takes precedence over another.
    endings = [
        f"{_candidates(_inputs_with_unique_name('image', ENDING + depth - 2))} WHERE depth = {depth}"
        for depth in range(2, min(deepest, LONGEST_ENDING) + 1)
    ]
    if endings:
        _assign(db, " UNION ALL ".join(endings))
    by_name = _candidates(f"{_inputs_with_unique_name('image', NAME)} AND i.depth = 1")
    by_stem = _candidates(f"{_inputs_with_unique_name('stem', STEM)} AND i.depth = 1")
    by_file_name = _assign(db, by_name) + _assign(db, by_stem, unique=True)
    # Stored with the report, so that files of the same names in a later update do not change the match.
    db.execute(
        """UPDATE reports SET place = i.place FROM table_images i
           WHERE i."table" = reports."table" AND i.image = reports.image AND i.place IS NOT NULL"""
    )
    return by_file_name


def _candidates(join: str) -> str:
    """A query of row, place and table of images and inputs that a rule brings together."""
    return f'SELECT i.rowid AS row, u.place, i."table" FROM table_images i {join}'


def _inputs_with_unique_name(column: str, kind: int) -> str:
    """A join of table images with inputs whose name of a kind equals the column, and which no other input has."""
    unique = f"SELECT name, min(place) AS place FROM input_names WHERE kind = {kind} GROUP BY name HAVING count(*) = 1"
    return f"JOIN ({unique}) u ON u.name = i.{column}"


def _assign(db: sqlite3.Connection, candidates: str, unique: bool = False) -> int:
    """Set the place of table images that have none yet.

    Args:
        db: The database.
        candidates: A query of row, place and table. Inputs that a stricter rule gave to the same table are left out.
        unique: Leave out inputs that two images of one table would get.

    Returns:
        How many table images got a place.
    """
    db.execute(
        f"""CREATE TABLE candidates AS SELECT c.row, c.place, c."table" FROM ({candidates}) c
            JOIN table_images i ON i.rowid = c.row WHERE i.place IS NULL
              AND NOT EXISTS (SELECT 1 FROM assigned a WHERE a."table" = c."table" AND a.place = c.place)"""
    )
    if unique:
        db.execute('CREATE INDEX candidates_place ON candidates ("table", place)')
        other = """SELECT 1 FROM candidates c WHERE c."table" = candidates."table" AND c.place = candidates.place
                   AND c.row != candidates.row"""
        db.execute(f"DELETE FROM candidates WHERE EXISTS ({other})")
    assigned = db.execute(
        "UPDATE table_images SET place = c.place FROM candidates c WHERE table_images.rowid = c.row"
    ).rowcount
    db.execute('INSERT OR IGNORE INTO assigned SELECT "table", place FROM candidates')
    db.execute("DROP TABLE candidates")
    return assigned


def _drop_shared_side_cars(db: sqlite3.Connection) -> int:
    """Delete every `report.txt` whose folder holds images of several studies, or of several patients.

    Where an image has no study, its patient is compared instead. Tables take precedence over headers, and headers over
    paths.

    Returns:
        How many were deleted.
    """
    shared = db.execute(
        """WITH stated AS (SELECT m.place, max(r.study) AS study, max(r.patient) AS patient
               FROM matches m JOIN reports r USING (number) GROUP BY m.place)
           SELECT r.shared FROM reports r JOIN inputs i USING (place) JOIN headers h USING (place)
               LEFT JOIN stated s USING (place) WHERE r.shared IS NOT NULL AND h.status = 'used'
           GROUP BY r.shared HAVING count(DISTINCT coalesce(nullif(s.study, ''), nullif(h.study, ''),
               nullif(i.path_study, ''), nullif(s.patient, ''), nullif(h.patient, ''), i.path_patient)) > 1"""
    ).fetchall()
    db.executemany("DELETE FROM reports WHERE shared = ?", shared)
    return len(shared)
