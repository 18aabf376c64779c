"""Files, whole or not at all: written under a temporary name and renamed, so nobody reads half a file.

Tensors are safetensors, facts are JSON or YAML beside them or in their header; there is no pickle.
"""

import errno
import glob
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cyclic_cli.errors import CyclicError

ROW_GROUP = 8192  # rows of a Parquet table that are written together
ROWS_AT_ONCE = 512  # of them as Python objects, which need ten times the memory
LEASE = ".running"  # the file of the process that works on a run
UNFINISHED = ".unfinished"  # the folder of the shards of a dataset that is being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends well it takes the name, else it is removed.

    Raises:
        CyclicError: the disk is full or the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def remove_drafts(path: Path) -> None:
    """Remove what `replacing` of processes that were killed left beside a file that nobody else writes."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what writing raises into a CyclicError about a path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = re.search(r"\(os error (\d+)\)", str(error))  # of safetensors
        number = getattr(error, "errno", None) or (int(said[1]) if said else 0)
        cause = "no space is left" if number == errno.ENOSPC else os.strerror(number) if number else "writing failed"
        raise CyclicError(f"{path} cannot be written: {cause}.", "Mend that, or name another file.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CyclicError(f"{path} is damaged.", "Remove the folder it lies in, and begin again.") from error


def write_parquet(path: Path, columns: dict[str, str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a Parquet table, a row group at a time; `columns` names Arrow's types."""
    import pyarrow as pa
    import pyarrow.parquet

    schema = pa.schema([pa.field(name, _arrow_type(kind)) for name, kind in columns.items()])
    waiting = iter(rows)
    with replacing(path) as draft, pa.parquet.ParquetWriter(draft, schema, compression="zstd") as writer:
        batches = iter(lambda: pa.RecordBatch.from_pylist(list(islice(waiting, ROWS_AT_ONCE)), schema), None)
        filled = takewhile(lambda batch: batch.num_rows, batches)
        while group := list(islice(filled, ROW_GROUP // ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_batches(group))


def read_parquet(path: Path, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a table that `write_parquet` wrote. Raises CyclicError when it is damaged or has other columns."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise CyclicError(f"{path} is damaged.", "Make the dataset again.") from error


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    inner = kind.removeprefix("list of ")
    value = pa.bool_() if inner == "bool" else getattr(pa, inner)()
    return value if inner == kind else pa.list_(value)


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write a table of plain values in the order given."""
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as `.npy`, without pickle."""
    with replacing(path) as draft, draft.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], header: dict[str, str]) -> None:
    """Write a safetensors file; `header` values are text."""
    with replacing(path) as draft:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, draft, header)
        os.chmod(draft, 0o666 & ~_umask())


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: tensors by name, and its header. Raises CyclicError when it is not one."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise CyclicError(f"There is no file {path}.", "Check the path.") from None
    except PermissionError:
        raise CyclicError(f"{path} may not be read.", "Check its permissions.") from None
    except (SafetensorError, OSError) as error:
        raise CyclicError(f"{path} is not a whole safetensors file.", "Copy or make it again.") from error
    except TypeError as error:  # a kind of number that numpy lacks
        raise CyclicError(
            f"{path} is no checkpoint of cyclic.", "Give a run folder or its model.safetensors."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def holds_more_than_drafts(folder: Path) -> bool:
    """Whether anything but what a kill leaves behind lies in a folder."""
    return any(path.name not in (UNFINISHED, LEASE) and not path.match(".*.tmp") for path in folder.iterdir())


def refuse_newer(version: int, known: int, path: Path) -> None:
    """Raise CyclicError when a file's format is one that this program does not know yet."""
    if version > known:
        raise CyclicError(f"{path} has format {version}; this program knows up to {known}.", "Update cyclic.")


def checksum(values: Any) -> str:
    """A checksum of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
