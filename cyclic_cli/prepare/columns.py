"""Recognises the columns of report tables by their names: images, patients, studies, splits, texts and labels.

A table's other columns are not read, except those that identify a person by their heading (`identity_headings.py`) or
by what their first cells hold (`identity_contents.py`). Their cells are held in memory to be cut out of the reports,
and are never written.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cyclic_cli.config import PrepareConfig
from cyclic_cli.errors import UsageError
from cyclic_cli.prepare.identity_contents import identifying_contents
from cyclic_cli.prepare.identity_headings import is_identifying
from cyclic_cli.storage.dataset import INDEX_COLUMNS

COLUMNS = {
    "image": (
        "path", "image", "image_path", "file", "file_name", "file_path", "dicom_path", "dicom", "image_id",
        "image_name", "dicom_id",
    ),
    "instance": ("sop_instance_uid", "instance_uid", "sop_uid"),
    "patient": ("patient", "patient_id", "subject_id", "subject", "case_id", "case"),
    "study": ("study", "study_id", "study_uid", "study_instance_uid"),
    "accession": ("accession", "accession_number", "accession_no"),
    "split": ("split", "subset"),
}  # fmt: skip
"""Role of a column → its usual names; the first that the table has counts. Case and separators do not matter."""
TEXT_COLUMNS = ("text", "report_text", "caption")
SECTION_COLUMNS = ("findings", "impression")  # their texts are joined in a table without a text column
REPORT_COLUMN = "report"  # the text of a table without the columns above; beside sections, the study's number
LABEL_COLUMNS = (
    # CheXpert (Irvin et al., AAAI 2019)
    "no_finding", "enlarged_cardiomediastinum", "cardiomegaly", "lung_opacity", "lung_lesion", "edema", "consolidation",
    "pneumonia", "atelectasis", "pneumothorax", "pleural_effusion", "pleural_other", "fracture", "support_devices",
    # the synthetic radiographs of `cyclic demo`
    "nodule", "pacemaker",
)  # fmt: skip

SHOWN_NAME = 40  # characters of a column's name that an error shows


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read. Columns have the names that the table gives them."""

    keys: dict[str, str]  # role (a key of `COLUMNS`) → column
    texts: tuple[str, ...]
    labels: dict[str, str]  # label → column
    identifying: tuple[str, ...]  # columns whose cells are cut out of the report
    dropped: int  # number of columns of which nothing is kept, including identifying columns without a role
    by_contents: tuple[str, ...] = ()  # those of `identifying` that are recognised by their cells alone

    @classmethod
    def find(cls, names: list[str], config: PrepareConfig, extra_names: dict[str, str]) -> "Columns":
        """Recognise the columns of a table.

        Args:
            names: All columns of the table.
            config: Settings, which may name columns; these take precedence over usual names.
            extra_names: Role of a column → one more usual name, as the table's layout uses it.
        """
        by_key = {_key(name): name for name in reversed(names)}  # of two spellings of a name the first counts

        def first_of(configured: str | None, usual: Iterable[str]) -> str | None:
            if configured in names:
                return configured
            return next((by_key[_key(name)] for name in usual if _key(name) in by_key), None)

        configured = {"image": config.image_column, "patient": config.patient_column}
        found = {role: first_of(configured.get(role), usual) for role, usual in COLUMNS.items()}
        found |= {role: first_of(configured.get(role), [name]) or found[role] for role, name in extra_names.items()}
        text = first_of(config.text_column, TEXT_COLUMNS)
        sections = tuple(by_key[name] for name in SECTION_COLUMNS if name in by_key)
        if not text and sections:
            found["study"] = found["study"] or by_key.get(REPORT_COLUMN)
        elif not text:
            text = by_key.get(REPORT_COLUMN)
        keys = {role: column for role, column in found.items() if column}
        texts = (text,) if text else sections
        known_labels = {_key(label): label for label in LABEL_COLUMNS}
        labels = {known_labels[_key(name)]: name for name in names if _key(name) in known_labels}
        labels |= {_label_name(label): label for label in config.label_columns if label in names}
        read = {*texts, *labels.values(), *keys.values()}
        identifying = [name for name in names if name not in read and is_identifying(name)]
        identifying += [keys[role] for role in ("patient", "study", "accession") if role in keys]
        return cls(keys, texts, labels, tuple(identifying), len(set(names) - read))

    def with_contents(self, names: list[str], rows: Iterable[dict[str, Any]]) -> "Columns":
        """The same, with columns that identify a person by their cells, whatever their heading.

        Args:
            names: All columns of the table.
            rows: The first rows of the table.
        """
        known = {*self.texts, *self.labels.values(), *self.keys.values(), *self.identifying}
        found = tuple(identifying_contents([name for name in names if name not in known], self.texts, rows))
        return replace(self, identifying=(*found, *self.identifying), by_contents=found)

    def check(self, table: str, names: list[str]) -> None:
        """Refuse a table of which nothing can be used, and labels that would store identities or texts.

        Args:
            table: The table's name, for the error.
            names: All columns of the table.

        Raises:
            UsageError: as above.
        """
        image_roles = {"image", "instance", "study", "accession"} & self.keys.keys()
        content = self.labels or {"patient", "split"} & self.keys.keys() or len(image_roles) > 1
        if not self.texts and not (image_roles and content):
            listed = ", ".join(shown(name) for name in sorted(names))
            raise UsageError(
                f"In {table} no column of images together with texts, patients or labels is recognised.",
                f"Name the columns with --image-column and similar options. Columns: {listed[:300] or 'none'}.",
            )
        not_labels = {*self.texts, *(column for role, column in self.keys.items() if role != "split")}
        for label in self.labels.values():
            if label in not_labels:
                raise UsageError(
                    f"Column {shown(label)!r} of {table} holds images, patients or texts, so it cannot be a label.",
                    "Name another column with --label-column.",
                )

    def described(self) -> str:
        """How the columns were understood, and how many are not read."""
        by_role = {"image": self.keys.get("image"), "text": " + ".join(self.texts), **self.keys}
        by_role["labels"] = ", ".join(self.labels.values())
        parts = [f"{role}: {column}" for role, column in by_role.items() if column]
        cut = sum(column not in self.keys.values() for column in self.identifying)
        rest = f"{self.dropped} other columns are not read"
        if cut:
            which = ", ".join(map(shown, self.by_contents))
            rest += f" (contents of {cut} are cut out of the reports"
            rest += f", recognised by their cells: {which})" if which else ")"
        return "; ".join([*parts, rest])


def shown(name: str) -> str:
    """A column's name for an error message: shortened, and without characters that control a terminal."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}…"


def _normal(name: str) -> str:
    """A column's name as lower-case words: `SOPInstanceUID` reads `sop_instance_uid`, `Prénom` reads `prenom`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip())
    plain = unicodedata.normalize("NFKD", parted).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")


def _key(name: str) -> str:
    """A form that all spellings of a name share: without case, accents and separators."""
    return _normal(name).replace("_", "")


def _label_name(column: str) -> str:
    """The name of a label in the index, which must differ from the index's own columns."""
    name = _normal(column)
    return f"label_{name}" if name in INDEX_COLUMNS else name
