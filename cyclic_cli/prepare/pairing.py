"""Pairs images with reports, from the collected inputs and reports to the samples of the dataset.

    matching    each report is matched to the images it is about, by the strictest rule that finds one
    patients    every image and every unmatched text gets a patient and a study
    scrubbing   identities in a patient's headers and table rows are removed from the patient's reports
    strict      with `--strict-text`, reports in which a name could stand unseen are kept out (`strict_texts.py`)
    samples     equal images are kept once; texts without an image become samples
    splitting   every patient gets a split
    outputs     the rows of the dataset's files, and their counts

Each phase is a file of that name, whose functions read and fill tables of the inventory's database.
"""

import sqlite3
from dataclasses import dataclass

from cyclic_cli.prepare.inventory import Inventory
from cyclic_cli.prepare.matching import Matched, match_reports
from cyclic_cli.prepare.outputs import DatasetTables
from cyclic_cli.prepare.patients import Assigned, assign_patients
from cyclic_cli.prepare.samples import choose_samples
from cyclic_cli.prepare.scrubbing import scrub_reports
from cyclic_cli.prepare.splitting import assign_splits
from cyclic_cli.prepare.strict_texts import keep_out_unjudged


@dataclass(frozen=True)
class Paired:
    """The result of pairing."""

    tables: DatasetTables
    text_labels: set[str]  # label columns that hold text
    split_given: bool  # by a table
    warnings: list[str]


def pair(inventory: Inventory) -> Paired:
    """Pair the images and reports of an inventory whose frames are complete.

    Raises:
        CyclicError: a table assigns one patient to two splits.
    """
    db, keyer, config = inventory.db, inventory.keyer, inventory.config
    matched = match_reports(db)
    assigned = assign_patients(db, keyer)
    without_names = scrub_reports(db, keyer)
    if config.strict_text:
        keep_out_unjudged(db, keyer)
    choose_samples(db, keyer)
    split_given = assign_splits(db, config.split)
    return Paired(
        tables=DatasetTables(db, inventory.labels, assigned.text_labels, inventory.report_files),
        text_labels=assigned.text_labels,
        split_given=split_given,
        warnings=_warnings(db, matched, assigned, 0 if config.already_deidentified else without_names),
    )


def _warnings(db: sqlite3.Connection, matched: Matched, assigned: Assigned, without_names: int) -> list[str]:
    """What the user should know, each with its count."""
    with_image, unmatched = db.execute(
        """SELECT count(*), coalesce(sum(number NOT IN (SELECT number FROM matches)), 0) FROM reports
           WHERE image IS NOT NULL"""
    ).fetchone()
    (unknown,) = db.execute("SELECT count(*) FROM samples WHERE NOT patient_known").fetchone()
    (damaged,) = db.execute("SELECT count(*) FROM (SELECT DISTINCT place, line FROM unreadable_texts)").fetchone()
    counts = {
        "{} table rows were matched to an image by the file name alone": matched.by_file_name,
        "{} report.txt files lie beside images of several patients or studies, and were not used": (
            matched.dropped_side_cars
        ),
        "{} images that are not among the inputs have contradicting table rows, which were left out": (
            assigned.contradicting_images
        ),
        "{} reports have no name in a header or a table column: only what can be told by its form was removed": (
            without_names
        ),
        "{} table rows name an image that is not among the inputs": unmatched,
        "{} texts are damaged or in an unknown encoding, and were not used; rejected.jsonl lists them": damaged,
        "{} samples have no patient ID: each study, or sample without a study, counts as a separate patient": unknown,
    }
    warnings = [text.format(count) for text, count in counts.items() if count]
    if 0 < with_image == unmatched:
        warnings.insert(0, "no table row was matched to an image: give the folder in which the tables' paths begin")
    return warnings
