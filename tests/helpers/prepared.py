"""What `prepare` made, as tests compare it."""

from pathlib import Path

import pyarrow.parquet as pq

PUBLIC = "--already-deidentified"


def index(folder: Path) -> list[dict[str, object]]:
    return pq.read_table(folder / "index.parquet").to_pylist()


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
