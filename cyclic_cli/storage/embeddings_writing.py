"""Writes embedding files in four forms, which the suffix of the file names.

    .parquet       the form that `embeddings` reads, see there
    .safetensors   `vector` (N, D) float32, and each text column as bytes
    .npy           the vectors (N, D) float32, with the other columns in a CSV file beside it
    .jsonl         one JSON object per row, the vector as a list of numbers

All forms hold the same rows. Only one table of rows is held in memory at a time.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cyclic_cli.config import as_plain
from cyclic_cli.storage.embeddings import KEY, Facts, vectors_of
from cyclic_cli.storage.files import replacing, write_json_lines

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP = 16_384  # rows of a Parquet file that are written together


@dataclass(frozen=True)
class Rows:
    """Some rows of an embedding file: columns by name, and vectors (N, D) float32."""

    columns: dict[str, list[Any]]
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)


def table_of(rows: Rows, kinds: dict[str, str]) -> "pyarrow.Table":
    """Rows as an Arrow table; `kinds` gives the Arrow type of each column by name."""
    import pyarrow as pa

    arrays = {name: pa.array(rows.columns[name], getattr(pa, kind)()) for name, kind in kinds.items()}
    flat = pa.array(np.ascontiguousarray(rows.vectors, np.float32).ravel())
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, rows.vectors.shape[1])
    return pa.table(arrays)


def files_of(path: Path) -> list[Path]:
    """The files that `write` makes for a path: the file itself and, for .npy, the CSV file beside it."""
    return [path, path.with_suffix(".csv")] if path.suffix == ".npy" else [path]


def write(path: Path, tables: Callable[[], Iterator["pyarrow.Table"]], facts: Facts, kinds: dict[str, str]) -> int:
    """Write tables one after another in the form that the suffix names.

    Args:
        path: The file, with a suffix of `FORMS`.
        tables: Iterates over the tables. Forms that begin with a length call it twice, the first time to count rows.
        facts: The metadata of the file.
        kinds: Arrow types of the columns, without the vectors.

    Returns:
        The number of rows.
    """
    return FORMS[path.suffix](path, tables, facts, kinds)


def _write_parquet(
    path: Path, tables: Callable[[], Iterator["pyarrow.Table"]], facts: Facts, kinds: dict[str, str]
) -> int:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    fields = [pa.field(name, getattr(pa, kind)()) for name, kind in kinds.items()]
    schema = pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), facts.dimensions))])
    schema = schema.with_metadata({KEY: json.dumps(as_plain(facts)).encode()})
    compression = dict.fromkeys(kinds, "zstd") | {"vector.list.element": "NONE"}
    rows = 0
    with (
        replacing(path) as draft,
        parquet.ParquetWriter(
            draft,
            schema,
            compression=compression,
            use_dictionary=list(kinds),
            write_page_checksum=True,
        ) as file,
    ):
        waiting: list[pa.Table] = []
        for table in tables():
            waiting.append(table.replace_schema_metadata(schema.metadata))
            rows += table.num_rows
            if sum(one.num_rows for one in waiting) >= ROW_GROUP:
                file.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        if waiting:
            file.write_table(pa.concat_tables(waiting).combine_chunks())
    return rows


def _write_npy(path: Path, tables: Callable[[], Iterator["pyarrow.Table"]], facts: Facts, kinds: dict[str, str]) -> int:
    rows = sum(table.num_rows for table in tables())
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, facts.dimensions)}
    with replacing(files_of(path)[1]) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(kinds))
        writer.writeheader()
        for table in tables():
            writer.writerows(table.select(list(kinds)).to_pylist())
    with replacing(path) as draft, draft.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        _append_vectors(file, tables)
    return rows


def _write_safetensors(
    path: Path, tables: Callable[[], Iterator["pyarrow.Table"]], facts: Facts, kinds: dict[str, str]
) -> int:
    """`vector` (N, D) float32, and each text column as `NAME` (N, B) uint8: UTF-8 bytes, padded with zeros."""
    names = [name for name, kind in kinds.items() if kind == "string"]
    rows, widths = 0, dict.fromkeys(names, 1)
    for table in tables():
        rows += table.num_rows
        for name in names:
            widths[name] = max(widths[name], *(len(_bytes(value)) for value in table[name].to_pylist()))
    entries, end = {}, 0
    for name, width, kind, size in [("vector", facts.dimensions, "F32", 4), *((n, widths[n], "U8", 1) for n in names)]:
        begin, end = end, end + rows * width * size
        entries[name] = {"dtype": kind, "shape": [rows, width], "data_offsets": [begin, end]}
    header = json.dumps({"__metadata__": {KEY.decode(): json.dumps(as_plain(facts))}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        _append_vectors(file, tables)
        for name in names:
            for table in tables():
                file.write(b"".join(_bytes(value).ljust(widths[name], b"\0") for value in table[name].to_pylist()))
    return rows


def _bytes(value: str | None) -> bytes:
    return (value or "").encode()


def _append_vectors(file: BinaryIO, tables: Callable[[], Iterator["pyarrow.Table"]]) -> None:
    for table in tables():
        file.write(vectors_of(table).tobytes())


def _write_json_lines(
    path: Path, tables: Callable[[], Iterator["pyarrow.Table"]], facts: Facts, kinds: dict[str, str]
) -> int:
    rows = 0

    def lines() -> Iterator[dict[str, Any]]:
        nonlocal rows
        for table in tables():
            rows += table.num_rows
            yield from table.to_pylist()

    write_json_lines(path, lines())
    return rows


FORMS = {
    ".parquet": _write_parquet, ".safetensors": _write_safetensors, ".npy": _write_npy, ".jsonl": _write_json_lines,
}  # fmt: skip
