"""Assigns every patient to train, val or test: sets `split` and `position` of the table `samples`."""

import sqlite3

from cyclic_cli.errors import CyclicError
from cyclic_cli.privacy.keys import place, split_of


def assign_splits(db: sqlite3.Connection, shares: tuple[float, float, float]) -> bool:
    """Set the split of every sample: the one that a table gives its patient, else one from a hash of the patient key.

    Args:
        db: The database after `choose_samples`.
        shares: Of the patients in train, val and test; they sum to 1.

    Returns:
        Whether a table gave a split.

    Raises:
        CyclicError: a table assigns one patient to two splits.
    """
    given = _find_given_splits(db)
    db.create_function("place", 1, place, deterministic=True)
    db.create_function("hashed_split", 1, lambda where: split_of(where, shares)[0], deterministic=True)
    db.create_function("position", 1, lambda where: split_of(where, shares)[1], deterministic=True)
    db.execute(
        """UPDATE samples SET position = CASE WHEN patient IN (SELECT patient FROM given_splits) THEN place(patient)
               ELSE position(place(patient)) END,
           split = coalesce((SELECT split FROM given_splits g WHERE g.patient = samples.patient),
               hashed_split(place(patient)))"""
    )
    return given


def _find_given_splits(db: sqlite3.Connection) -> bool:
    """Fill `given_splits` with the patients that a table gives a split; whether there is any."""
    db.execute("CREATE TABLE given_splits (patient PRIMARY KEY, split) WITHOUT ROWID")
    # From `owners`, because a split holds for the patient even where the image of its row became no sample.
    patients = db.execute("SELECT patient, min(split), max(split) FROM owners WHERE split != '' GROUP BY patient")
    given = False
    for patient, first, last in patients:
        if first != last:
            query = "SELECT min(line) FROM owners WHERE patient = ? AND split IN (?, ?) GROUP BY split"
            lines = sorted(line for (line,) in db.execute(query, (patient, first, last)) if line)
            raise CyclicError(
                "A table assigns one patient to two splits.",
                f"Fix the table: {' and '.join(lines)}." if lines else f"Patient key {patient}: fix the table.",
            )
        given = True
        db.execute("INSERT INTO given_splits VALUES (?, ?)", (patient, first))
    return given
