"""Writes files atomically: under a temporary name that is then renamed, so that nobody reads half a file.

Tensors are stored as safetensors, metadata as JSON or YAML. Nothing is stored as pickle, which could run code.
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

ROW_GROUP = 8192  # rows of a Parquet file that are written together
ROWS_AT_ONCE = 512  # rows that are Python objects at a time; as such they need ten times the memory
LEASE = ".running"  # the lease of the process that trains a run
UNFINISHED = ".unfinished"  # the folder with the rows of an unfinished dataset


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. It is renamed to `path` if the block succeeds, and removed if it fails.

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
    """Remove temporary files that killed processes left beside a file. No other process may be writing the file."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a CyclicError that names a path when the block fails to write."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has no errno
        number = getattr(error, "errno", None) or (int(found[1]) if found else 0)
        cause = "no space is left" if number == errno.ENOSPC else os.strerror(number) if number else "writing failed"
        raise CyclicError(f"{path} cannot be written: {cause}.", "Fix that, or name another place.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CyclicError when the file is missing or damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CyclicError(f"{path} is damaged.", "Remove its folder, and begin again.") from error


def write_parquet(path: Path, columns: dict[str, str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a Parquet file one row group at a time; `columns` gives the type of each column.

    A type is the name of an Arrow type such as "string", or a list such as "list of string".
    """
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
    """The rows of a file of `write_parquet`. Raises CyclicError when it is damaged or lacks one of the `columns`."""
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
    """Write a table of plain values, in its order, as YAML."""
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as `.npy`, without pickle."""
    with replacing(path) as draft, draft.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], header: dict[str, str]) -> None:
    """Write a safetensors file; the values of `header` are texts."""
    with replacing(path) as draft:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, draft, header)
        os.chmod(draft, 0o666 & ~_umask())


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors by name, and the header, of a safetensors file. Raises CyclicError when it is not one."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise CyclicError(f"There is no file {path}.", "Check the path.") from None
    except PermissionError:
        raise CyclicError(f"{path} cannot be read: permission denied.", "Check its permissions.") from None
    except (SafetensorError, OSError) as error:
        raise CyclicError(f"{path} is not a complete safetensors file.", "Copy or make it again.") from error
    except TypeError as error:  # a number type that numpy lacks, such as bfloat16
        raise CyclicError(
            f"{path} is not a checkpoint of cyclic.", "Give a run folder or its model.safetensors."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def holds_more_than_drafts(folder: Path) -> bool:
    """Whether a folder contains anything but the files that a killed process leaves."""
    return any(path.name not in (UNFINISHED, LEASE) and not path.match(".*.tmp") for path in folder.iterdir())


def refuse_newer(version: int, known: int, path: Path) -> None:
    """Raise CyclicError when the format of a file is newer than the newest known one."""
    if version > known:
        raise CyclicError(f"{path} has format {version}; this program reads formats up to {known}.", "Update cyclic.")


def checksum(values: Any) -> str:
    """The SHA-256 of plain values, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
