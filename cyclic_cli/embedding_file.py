"""Embedding files: what `cyclic embed` writes, and `cyclic search` and other programs read.

Parquet: a row a sample and kind, `vector` a list of float32 of fixed length and unit norm, uncompressed, so that a
reader maps it as one array. What made it stands as JSON under `cyclic` in the schema's metadata. While it is made, its
parts lie as files of the same kind in `.NAME.unfinished/`, each written whole, so that a kill costs a part. The other
forms hold the same rows: safetensors (`vector`, and each column of text as bytes), NPY (vectors, with a CSV of the rest
beside it), JSON Lines.
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cyclic_cli.config import Preprocessing, as_plain
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage import replacing, write_json_lines, write_text

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
KEY = b"cyclic"  # of the metadata
COUNTS = b"cyclic part"  # likewise, of a part: what it was made of
ROW_GROUP = 16_384
TEXTS = ("key", "patient", "study", "split", "kind", "source")  # columns of text that every file has
FOREIGN = "Make one with `cyclic embed … --out FILE.parquet`."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an embedding file says of itself."""

    format: int = FORMAT
    model: str  # fingerprint
    architecture: str
    preprocessing: Preprocessing
    dimensions: int
    secret: str  # a check of the secret behind its keys, see `identity.Keyer.check`
    dataset: str = ""  # fingerprint of the data set, where it is of one
    labels: list[str] = field(default_factory=list)  # columns


@dataclass(frozen=True)
class Rows:
    """Some rows: columns by name, and vectors (N, D) float32."""

    columns: dict[str, list[Any]]
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)


def table_of(rows: Rows, kinds: dict[str, str]) -> "pyarrow.Table":
    """Rows as an Arrow table; `kinds` names Arrow's types of the columns."""
    import pyarrow as pa

    arrays = {name: pa.array(rows.columns[name], getattr(pa, kind)()) for name, kind in kinds.items()}
    flat = pa.array(np.ascontiguousarray(rows.vectors, np.float32).ravel())
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, rows.vectors.shape[1])
    return pa.table(arrays)


class Draft:
    """An embedding file that is being made, part by part, by one process or several."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(f".{path.name}.unfinished")

    def begin(self, request: dict[str, Any]) -> None:
        """Start, or continue what the same request left. Raises CyclicError when another one left something there."""
        mark = self.folder / "request.json"
        if not mark.exists():
            write_text(mark, json.dumps(request))
        try:
            known = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CyclicError(f"{mark} is damaged.", f"Remove {self.folder}.") from error
        differing = [name for name in request if known.get(name) != request[name]]
        if differing:
            raise CyclicError(
                f"{self.path} is half made, with another {' and '.join(differing)}.",
                f"Repeat the command that began it, remove {self.folder}, or name another --out.",
            )

    def part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def write_part(self, number: int, rows: list[Rows], kinds: dict[str, str], made_of: dict[str, Any]) -> None:
        """Write a part; `made_of` tells it from one of other inputs, and what became of them."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        tables = [table_of(some, kinds) for some in rows if len(some)]
        table = pa.concat_tables(tables) if tables else pa.table({})
        table = table.replace_schema_metadata({COUNTS: json.dumps(made_of).encode()})
        with replacing(self.part(number)) as draft:
            parquet.write_table(table, draft, compression="NONE")

    def made_of(self, number: int) -> dict[str, Any] | None:
        """What a part was made of; None where there is none, or it is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            found: dict[str, Any] = json.loads(parquet.read_schema(self.part(number)).metadata[COUNTS])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            return None
        return found

    def tables(self, parts: int) -> Iterator["pyarrow.Table"]:
        """The parts in order, without those that hold nothing."""
        import pyarrow.parquet as parquet

        for number in range(parts):
            table = parquet.read_table(self.part(number))
            if table.num_rows:
                yield table

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def write(path: Path, tables: Callable[[], Iterator["pyarrow.Table"]], facts: Facts, kinds: dict[str, str]) -> int:
    """Write tables one after another in the form that the suffix names; how many rows that were.

    `tables` may be asked for twice: forms that begin with a length need to count first. One table is held at a time.
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
        parquet.ParquetWriter(draft, schema, compression=compression, use_dictionary=list(kinds)) as file,
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
    with replacing(path.with_suffix(".csv")) as beside, beside.open("w", encoding="utf-8", newline="") as file:
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
    """`vector` (N, D) float32, and each column of text as `NAME` (N, B) uint8: UTF-8, filled up with zeros."""
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


def vectors_of(table: "pyarrow.Table | pyarrow.RecordBatch") -> np.ndarray:
    """The vectors (N, D) float32 of a table, without a copy where they lie in one piece."""
    column = table["vector"]
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    parts = [chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
