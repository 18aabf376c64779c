"""Reads and writes files around `cyclic prepare`."""

from pathlib import Path

import pyarrow.parquet as pq

PUBLIC = "--already-deidentified"


def index(folder: Path) -> list[dict[str, object]]:
    """The rows of the index of a dataset."""
    return pq.read_table(folder / "index.parquet").to_pylist()


def table(path: Path, text: str) -> Path:
    """Write a table of reports."""
    path.write_text(text)
    return path
