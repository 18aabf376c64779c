"""Embedding files: what `cyclic embed` writes, and `cyclic search` and other programs read.

Parquet: a row a sample and kind, `vector` a list of float32 of fixed length and unit norm, uncompressed, so that a
reader maps it as one array. What made it stands as JSON under `cyclic` in the schema's metadata. While it is made, its
parts lie as files of the same kind in `.NAME.unfinished/`, each written whole, so that a kill costs a part. The other
forms hold the same rows: safetensors (`vector`, and each column of text as bytes), NPY (vectors, with a CSV of the rest
beside it), JSON Lines.
"""

import ast
import csv
import functools
import json
import operator
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cyclic_cli.config import Preprocessing, as_plain, build, launch
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.registry import check
from cyclic_cli.storage.files import refuse_newer, remove_drafts, replacing, write_json_lines, write_text

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
    dataset: str = ""  # fingerprint of the dataset, where it is of one
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

    def taken(self) -> list[Path]:
        """Files of before in the place of those that will be made; a table beside NPY may be of a stopped work."""
        return [
            file for file in files_of(self.path) if file.exists() and (file == self.path or not self._mark.exists())
        ]

    @property
    def _mark(self) -> Path:
        return self.folder / "request.json"

    def begin(self, request: dict[str, Any]) -> None:
        """Start, or continue what the same request left. Raises CyclicError when another one left something there."""
        mark = self._mark
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

    def say_done(self, process: int) -> None:
        """Let the first process know that another one of the same launch has made its parts."""
        write_text(self.folder / f"done-{process}", launch())

    def has_done(self, process: int) -> bool:
        """Whether a process of this launch said so."""
        try:
            return (self.folder / f"done-{process}").read_text(encoding="utf-8") == launch()
        except (OSError, UnicodeDecodeError):
            return False

    def part(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def write_part(self, number: int, rows: list[Rows], kinds: dict[str, str], made_of: dict[str, Any]) -> None:
        """Write a part; `made_of` holds the `digest` of its inputs, and what became of them."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        tables = [table_of(some, kinds) for some in rows if len(some)]
        table = pa.concat_tables(tables) if tables else pa.table({})
        table = table.replace_schema_metadata({COUNTS: json.dumps(made_of).encode()})
        with replacing(self.part(number)) as draft:
            parquet.write_table(table, draft, compression="NONE")

    def made_of(self, number: int) -> dict[str, Any]:
        """What a part was made of, and what became of it; nothing where there is none, or it is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            return dict(json.loads(parquet.read_schema(self.part(number)).metadata[COUNTS]))
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            return {}

    def count(self) -> int:
        """How many parts there are."""
        return sum(1 for _ in self.folder.glob("part-*.parquet"))

    def tables(self, parts: int) -> Iterator["pyarrow.Table"]:
        """The parts in order, without those that hold nothing."""
        import pyarrow.parquet as parquet

        for number in range(parts):
            table = parquet.read_table(self.part(number))
            if table.num_rows:
                yield table

    def clear(self) -> None:
        """Remove the parts, and what work that was killed left of the file itself."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for file in files_of(self.path):
            remove_drafts(file)


def files_of(path: Path) -> list[Path]:
    """The files that `write` makes for a path: of the form NPY a table beside it too."""
    return [path, path.with_suffix(".csv")] if path.suffix == ".npy" else [path]


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
    parts = [chunk.flatten().to_numpy().reshape(len(chunk), column.type.list_size) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, column.type.list_size), np.float32), *parts])


# ------------------------------------------------------------------------------------------------------------ reading

NAMES_OF_KINDS = {"bool": "true or false", "string": "text", "float": "a number", "double": "a number"}


class EmbeddingFile:
    """A Parquet file of embeddings, opened; vectors are read a row group at a time.

    Raises:
        CyclicError: there is none, it is damaged, newer than this program, or none of `cyclic`.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        self.path = path
        try:
            self._file = parquet.ParquetFile(path, page_checksum_verification=True)
            self.schema = self._file.schema_arrow
            values = dict(json.loads((self.schema.metadata or {})[KEY]))
            refuse_newer(int(values["format"]), FORMAT, path)
            values["preprocessing"] = build(Preprocessing, dict(values["preprocessing"]), str(path))
            self.facts = build(Facts, values, str(path))
            texts = {*TEXTS, *({"text"} & set(self.schema.names))}
            if any(self.schema.field(name).type != pa.string() for name in texts):
                raise ValueError("not the columns")
            if not set(self.facts.labels) <= set(self.schema.names) or self.facts.dimensions < 1:
                raise ValueError("not the columns it says")
            if self.schema.field("vector").type != pa.list_(pa.float32(), self.facts.dimensions):
                raise ValueError("other vectors than it says")
        except FileNotFoundError:
            raise CyclicError(f"There is no file {path}.", "Check the path.") from None
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CyclicError(f"{path} is no Parquet file of embeddings.", FOREIGN) from error
        self._names = [name for name in self.schema.names if name != "vector"]

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def blocks(self) -> Iterator[np.ndarray]:
        """The vectors, (n, D) float32 at a time, in order. Raises CyclicError when they are damaged."""
        for group in range(self._file.num_row_groups):
            yield self._vectors(self._read(["vector"], group))

    def equal(self, name: str, values: list[str]) -> np.ndarray:
        """Which rows (N,) bool have one of some values in a column of text."""
        import pyarrow as pa
        import pyarrow.compute as compute

        try:
            wanted = pa.array(values, pa.string())
        except UnicodeEncodeError:  # a name of any bytes, which no text is equal to
            return np.zeros(len(self), bool)
        found: np.ndarray = compute.is_in(self._read([name])[name], wanted).to_numpy()
        return found

    def keys_that_begin(self, start: str) -> list[str]:
        """The keys that begin with some characters, each once."""
        import pyarrow.compute as compute

        keys = self._read(["key"])["key"]
        found: list[str] = compute.unique(keys.filter(compute.starts_with(keys, start))).to_pylist()
        return found

    def rows(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """The rows of some numbers (M,), in their order, without vectors."""
        return self._taken(numbers, self._names).to_pylist()

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """The vectors (M, D) of some numbers (M,), in their order."""
        return self._vectors(self._taken(numbers, ["vector"]))

    def _vectors(self, table: "pyarrow.Table") -> np.ndarray:
        chunks = table["vector"].chunks
        if any(chunk.null_count or chunk.flatten().null_count for chunk in chunks):
            raise CyclicError(f"{self.path} has rows without a vector.", "Make it again with `cyclic embed`.")
        return vectors_of(table)

    def chosen(self, where: str) -> np.ndarray:
        """Which rows (N,) bool a condition holds for, such as `split == 'test' and nodule > 0`.

        Raises:
            UsageError: it is no condition, or names a column that the file does not have.
        """
        import pyarrow as pa

        expression, names = condition(where, self._names)
        table = self._read(names)
        try:
            mask = table.append_column("chosen", pa.array(np.arange(len(table)))).filter(expression)["chosen"]
        except pa.ArrowException as error:
            kinds = ", ".join(f"{name} is {NAMES_OF_KINDS.get(str(table.schema.field(name).type), 'a number')}"
                              for name in names)  # fmt: skip
            raise UsageError(f"--where compares columns with what they are not: {kinds}.", EXAMPLE) from error
        found = np.zeros(len(self), bool)
        found[mask.to_numpy()] = True
        return found

    def _taken(self, numbers: np.ndarray, names: list[str]) -> "pyarrow.Table":
        """Rows by number: only the row groups that they lie in are read."""
        import pyarrow as pa

        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        groups = np.searchsorted(ends, numbers, side="right") - 1
        parts = []
        for group in np.unique(groups).tolist():
            within = pa.array(numbers[groups == group] - ends[group])
            parts.append(self._read(names, group).take(within))
        order = np.argsort(np.argsort(groups, kind="stable"), kind="stable")
        whole = pa.concat_tables(parts) if parts else self.schema.empty_table().select(names)
        return whole.take(pa.array(order)).combine_chunks()

    def _read(self, names: list[str], group: int | None = None) -> "pyarrow.Table":
        """Columns, of all rows or those of one row group."""
        import pyarrow as pa

        try:
            return self._file.read(names) if group is None else self._file.read_row_group(group, names)
        except (OSError, pa.ArrowException) as error:
            raise CyclicError(f"{self.path} is damaged.", "Make it again with `cyclic embed`.") from error


def describe(path: Path) -> dict[str, Any]:
    """What `cyclic info` shows of a file of embeddings. Raises CyclicError as `EmbeddingFile` does."""
    file = EmbeddingFile(path)
    columns = [name for name in file.schema.names if name != "vector"]
    return {"kind": "embeddings", "path": str(path), "rows": len(file), "columns": columns, **as_plain(file.facts)}


COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda column, values: column.isin(values),
    ast.NotIn: lambda column, values: ~column.isin(values),
}  # fmt: skip
EXAMPLE = "Write it like \"split == 'test' and kind in ['image', 'text']\", the column first."


def condition(text: str, columns: list[str]) -> tuple[Any, list[str]]:
    """A condition in Python's words as an expression of Arrow, and the columns it names; nothing of it is run.

    Raises:
        UsageError: it is anything but comparisons of columns with values, joined by and, or, not and brackets.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    names: dict[str, None] = {}
    wrong = UsageError(f"--where {text!r} is no condition.", EXAMPLE)

    def is_scalar(node: ast.expr) -> bool:
        return not isinstance(node, ast.List | ast.Tuple)

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=str() | int() | float() | bool()):
                return node.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.List(elts=several) | ast.Tuple(elts=several) if all(map(is_scalar, several)):
                return [value(one) for one in several]
        raise UsageError(f"--where {text!r} compares with something that is no value.", EXAMPLE)

    def expression(node: ast.expr) -> Any:
        match node:
            case ast.BoolOp(op=ast.And(), values=several):
                return functools.reduce(operator.and_, map(expression, several))
            case ast.BoolOp(op=ast.Or(), values=several):
                return functools.reduce(operator.or_, map(expression, several))
            case ast.UnaryOp(op=ast.Not(), operand=one):
                return ~expression(one)
            case ast.Compare(left=ast.Name(id=name), ops=[kind], comparators=[other]) if type(kind) in COMPARISONS:
                check(name, columns, "column of the file")
                names[name] = None
                wanted = value(other)
                if isinstance(wanted, list) != isinstance(kind, ast.In | ast.NotIn):
                    raise wrong
                return COMPARISONS[type(kind)](compute.field(name), wanted)
        raise wrong

    try:
        tree = ast.parse(text.strip(), mode="eval")
        return expression(tree.body), list(names)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError, pa.ArrowException):
        raise wrong from None
