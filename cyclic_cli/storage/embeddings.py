"""Reads embedding files: Parquet files that `cyclic embed` writes, and `cyclic search` and other programs read.

Such a file has one row per sample and kind (image or text). The column `vector` is a list of float32 of fixed length.
The vectors are L2-normalised and stored without compression, so that a reader maps them as one array. The schema's
metadata holds the `Facts` of the file as JSON under the key `cyclic`.

`embeddings_writing` writes such files and the other forms, `embeddings_draft` the parts of an unfinished file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.config import Preprocessing, as_plain, build, stored_preprocessing
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.storage.conditions import EXAMPLE, parse_condition
from cyclic_cli.storage.files import refuse_newer

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
KEY = b"cyclic"  # of the metadata
TEXTS = ("key", "patient", "study", "split", "kind", "source")  # text columns that every file has
NAMES_OF_TYPES = {"bool": "true or false", "string": "text", "float": "a number", "double": "a number"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The metadata of an embedding file."""

    format: int = FORMAT
    model: str  # fingerprint of the model
    architecture: str
    preprocessing: Preprocessing
    dimensions: int
    secret: str  # checksum of the secret behind the keys, see `privacy.keys.Keyer.check`
    dataset: str = ""  # fingerprint of the dataset, if the samples come from one
    labels: list[str] = field(default_factory=list)  # label columns


def vectors_of(table: "pyarrow.Table | pyarrow.RecordBatch") -> np.ndarray:
    """The vectors (N, D) float32 of a table; not copied if the table has a single chunk."""
    column = table["vector"]
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    parts = [chunk.flatten().to_numpy().reshape(len(chunk), column.type.list_size) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, column.type.list_size), np.float32), *parts])


class EmbeddingFile:
    """An open Parquet file of embeddings; vectors are read one row group at a time.

    Raises:
        CyclicError: the file does not exist, is damaged, is newer than this program, or was not made by `cyclic`.
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
            values["preprocessing"] = stored_preprocessing(dict(values["preprocessing"]), str(path))
            self.facts = build(Facts, values, str(path))
            texts = {*TEXTS, *({"text"} & set(self.schema.names))}
            if any(self.schema.field(name).type != pa.string() for name in texts):
                raise ValueError("a text column has another type")
            if not set(self.facts.labels) <= set(self.schema.names) or self.facts.dimensions < 1:
                raise ValueError("the columns do not match the metadata")
            if self.schema.field("vector").type != pa.list_(pa.float32(), self.facts.dimensions):
                raise ValueError("the vectors do not match the metadata")
        except FileNotFoundError:
            raise CyclicError(f"There is no file {path}.", "Check the path.") from None
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CyclicError(
                f"{path} is not a Parquet file of embeddings.", "Make one with `cyclic embed … --out FILE.parquet`."
            ) from error
        self._names = [name for name in self.schema.names if name != "vector"]

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def blocks(self) -> Iterator[np.ndarray]:
        """All vectors in order, as arrays (n, D) float32. Raises CyclicError when they are damaged."""
        for group in range(self._file.num_row_groups):
            yield self._vectors(self._read(["vector"], group))

    def equal(self, name: str, values: list[str]) -> np.ndarray:
        """A mask (N,) bool of the rows whose text in column `name` is one of `values`."""
        import pyarrow as pa
        import pyarrow.compute as compute

        try:
            wanted = pa.array(values, pa.string())
        except UnicodeEncodeError:  # a value that is not valid Unicode, such as a file name, equals no stored text
            return np.zeros(len(self), bool)
        mask: np.ndarray = compute.is_in(self._read([name])[name], wanted).to_numpy()
        return mask

    def keys_that_begin(self, start: str) -> list[str]:
        """The distinct keys that begin with some characters."""
        import pyarrow.compute as compute

        keys = self._read(["key"])["key"]
        found: list[str] = compute.unique(keys.filter(compute.starts_with(keys, start))).to_pylist()
        return found

    def rows(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """The rows with some numbers (M,), in the given order, without vectors."""
        return self._taken(numbers, self._names).to_pylist()

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """The vectors (M, D) of the rows with some numbers (M,), in the given order."""
        return self._vectors(self._taken(numbers, ["vector"]))

    def _vectors(self, table: "pyarrow.Table") -> np.ndarray:
        chunks = table["vector"].chunks
        if any(chunk.null_count or chunk.flatten().null_count for chunk in chunks):
            raise CyclicError(f"{self.path} has rows without a vector.", "Make it again with `cyclic embed`.")
        return vectors_of(table)

    def chosen(self, where: str) -> np.ndarray:
        """A mask (N,) bool of the rows that fulfil a condition, such as `split == 'test' and nodule > 0`.

        Raises:
            UsageError: the text is not a condition, or names a column that the file does not have.
        """
        import pyarrow as pa

        expression, names = parse_condition(where, self._names)
        table = self._read(names)
        try:
            numbered = table.append_column("chosen", pa.array(np.arange(len(table))))
            numbers = numbered.filter(expression)["chosen"]
        except pa.ArrowException as error:
            types = ", ".join(f"{name} is {NAMES_OF_TYPES.get(str(table.schema.field(name).type), 'a number')}"
                              for name in names)  # fmt: skip
            raise UsageError(f"--where compares columns with values of another type: {types}.", EXAMPLE) from error
        mask = np.zeros(len(self), bool)
        mask[numbers.to_numpy()] = True
        return mask

    def _taken(self, numbers: np.ndarray, names: list[str]) -> "pyarrow.Table":
        """Rows by number, in the given order. Only the row groups that contain them are read."""
        import pyarrow as pa

        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        groups = np.searchsorted(ends, numbers, side="right") - 1
        parts = []
        for group in np.unique(groups).tolist():
            within = pa.array(numbers[groups == group] - ends[group])
            parts.append(self._read(names, group).take(within))
        order = np.argsort(np.argsort(groups, kind="stable"), kind="stable")
        grouped = pa.concat_tables(parts) if parts else self.schema.empty_table().select(names)
        return grouped.take(pa.array(order)).combine_chunks()

    def _read(self, names: list[str], group: int | None = None) -> "pyarrow.Table":
        """Columns of all rows, or of the rows of one row group."""
        import pyarrow as pa

        try:
            return self._file.read(names) if group is None else self._file.read_row_group(group, names)
        except (OSError, pa.ArrowException) as error:
            raise CyclicError(f"{self.path} is damaged.", "Make it again with `cyclic embed`.") from error


def describe(path: Path) -> dict[str, Any]:
    """The output of `cyclic info` for an embedding file. Raises CyclicError as `EmbeddingFile` does."""
    file = EmbeddingFile(path)
    columns = [name for name in file.schema.names if name != "vector"]
    return {"kind": "embeddings", "path": str(path), "rows": len(file), "columns": columns, **as_plain(file.facts)}
