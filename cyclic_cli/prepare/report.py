"""Defines a report: what one row of a table, one document or one side-car text says about an image or a study."""

from dataclasses import dataclass, field, replace
from typing import Any

from cyclic_cli.privacy.scrub import Identifying

Label = float | str | None


@dataclass(frozen=True)
class Report:
    """What a row of a table, a text or a side-car says about an image, about a study, or without naming either."""

    image: str = ""  # path or name of the image, as the table writes it
    instance: str = ""  # SOP Instance UID
    study: str = ""  # a UID or a number
    accession: str = ""
    patient: str = ""
    text: str = ""
    split: str = ""  # empty, train, val or test
    labels: dict[str, Label] = field(default_factory=dict)
    line: str = ""  # position for messages: "reports.csv, line 7"
    table: str = ""  # absolute path of the report's file; `image` is relative to its folder
    identifying: Identifying = field(default_factory=Identifying)

    def __repr__(self) -> str:
        return "Report(hidden)"


def merge(known: Report, new: Report) -> Report | None:
    """Combine two rows about the same image; None when they contradict each other."""
    merged: dict[str, Any] = {}
    for name in ("text", "patient", "study", "accession", "instance", "split"):
        first, second = getattr(known, name), getattr(new, name)
        if first and second and first != second:
            return None
        merged[name] = first or second
    for label, value in new.labels.items():
        first_value = known.labels.get(label)
        if first_value is not None and value is not None and first_value != value:
            return None
    filled = {label: value for label, value in new.labels.items() if value is not None}
    merged["labels"] = {**new.labels, **known.labels, **filled}
    merged["identifying"] = Identifying(
        known.identifying.names + new.identifying.names, known.identifying.remarks + new.identifying.remarks
    )
    return replace(known, **merged)
