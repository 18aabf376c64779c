"""Writes a dataset: first shards and their rows, in any order and by any number of processes, then the tables."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cyclic_cli.config import as_plain
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.dataset import (
    DATASET_FORMAT,
    INDEX_COLUMNS,
    INPUT_COLUMNS,
    REPORT_COLUMNS,
    DatasetFacts,
    StoredDataset,
    is_dataset,
    records_of_index,
    shard_name,
)
from cyclic_cli.storage.files import (
    holds_more_than_drafts,
    read_json,
    replacing,
    write_json_lines,
    write_parquet,
    write_text,
    write_yaml,
)
from cyclic_cli.storage.records import write_records


class DatasetDraft:
    """An unfinished dataset, which any number of processes may write at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unfinished = folder / ".unfinished"

    def begin(self, request: dict[str, Any]) -> None:
        """Begin, or continue what the same request began. Several processes may begin at the same time.

        Args:
            request: `settings`, `secret` (a checksum of it), the number of `inputs`, a `fingerprint` of these three,
                and a fingerprint of the `reports`, which alone may be corrected before the work is continued.

        Raises:
            CyclicError: the folder contains other files, or an unfinished dataset of other inputs or settings.
        """
        request_path = self.unfinished / "request.json"
        self.clear_finished()
        if not request_path.exists():
            foreign = self.folder.exists() and not is_dataset(self.folder) and holds_more_than_drafts(self.folder)
            if foreign or (self.folder.exists() and not self.folder.is_dir()):
                raise CyclicError(f"{self.folder} exists and contains other files.", "Name another --out.")
            write_text(request_path, json.dumps(request))
        begun = read_json(request_path)
        if begun | {"reports": ""} != request | {"reports": ""}:
            raise CyclicError(
                f"{self.folder} is an unfinished dataset of another request: {difference(begun, request)}.",
                f"Repeat the command that began it, remove {self.unfinished}, or name another --out.",
            )
        if begun != request:
            write_text(request_path, json.dumps(request))
        self.leases.mkdir(exist_ok=True)

    @property
    def leases(self) -> Path:
        """The folder with the leases of the processes that write this dataset."""
        return self.unfinished / "leases"

    def sweep(self) -> None:
        """Remove temporary files that killed processes left. No other process may be writing here."""
        for draft in [*self.folder.glob(".*.tmp"), *self.unfinished.glob(".*.tmp")]:
            draft.unlink(missing_ok=True)

    def discard(self, shards: range) -> None:
        """Remove an unfinished dataset, or unfinished additions to a finished one, when no input could be used."""
        for shard in shards:
            (self.folder / shard_name(shard)).unlink(missing_ok=True)
        self.sweep()
        self.clear()
        with suppress(OSError):  # not empty: it contains files of others, or a finished dataset
            self.folder.rmdir()

    def clear_finished(self) -> None:
        """Remove the unfinished folder if the process was killed after it had finished the dataset."""
        path = self.unfinished / "request.json"
        if path.exists() and is_dataset(self.folder) and StoredDataset(self.folder).facts.request == read_json(path):
            self.clear()

    def clear(self) -> None:
        """Remove the folder with the rows of shards, which a finished dataset does not need."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def is_done(self, shard: int) -> bool:
        """Whether a shard and its rows are complete."""
        return self._rows_path(shard).exists()

    def shard(self, number: int, image_shape: tuple[int, int, int], bits: int) -> "ShardDraft":
        """A shard to be written; one that a killed process began is continued."""
        return ShardDraft(self.folder / shard_name(number), self._rows_path(number), image_shape, bits)

    def rows(self, shard: int) -> Iterator[dict[str, Any]]:
        """The rows of the inputs of a complete shard, in order."""
        with self._rows_path(shard).open(encoding="utf-8") as lines:
            for line in lines:
                yield from json.loads(line)["rows"]

    def finish(self, facts: DatasetFacts, tables: Mapping[str, Iterable[dict[str, Any]]], texts: set[str]) -> None:
        """Write the tables and then the metadata, with which the dataset is finished.

        Args:
            facts: The metadata, written to `dataset.yaml`.
            tables: The rows of `index`, `inputs`, `reports` (Parquet), `rejected` and `duplicates` (JSON Lines).
            texts: The names of labels whose values are texts; all others are numbers.
        """
        labels = {label: "string" if label in texts else "float32" for label in facts.labels}
        index = self.folder / "index.parquet"
        write_parquet(index, INDEX_COLUMNS | labels, tables["index"])
        with replacing(self.folder / "records.npy") as draft_of_records:
            write_records(draft_of_records, records_of_index(index), facts.images)
        write_parquet(self.folder / "inputs.parquet", INPUT_COLUMNS, tables["inputs"])
        write_parquet(self.folder / "reports.parquet", REPORT_COLUMNS, tables["reports"])
        write_json_lines(self.folder / "rejected.jsonl", tables["rejected"])
        write_json_lines(self.folder / "duplicates.jsonl", tables["duplicates"])
        write_yaml(self.folder / "dataset.yaml", as_plain(facts))
        self.clear()

    def _rows_path(self, shard: int) -> Path:
        return self.unfinished / f"rows-{shard:05d}.jsonl"


class ShardDraft:
    """A shard while it is written, input by input. A killed process loses the input at hand only.

    Pixels and rows are appended to two files. An input is done when its line in the file of rows is complete. The file
    of pixels begins with space for a header, which is filled in at the end, so that pixels are written only once.
    """

    HEADER = 256  # bytes before the pixels: the length of the safetensors header, and the header itself

    def __init__(self, final: Path, rows: Path, image_shape: tuple[int, int, int], bits: int) -> None:
        self._final, self._final_rows = final, rows
        self._pixels, self._rows = rows.with_suffix(".pixels"), rows.with_suffix(".part")
        self._shape, self._bits = image_shape, bits
        self._image_bytes = int(np.prod(image_shape)) * bits // 8

    def __enter__(self) -> "ShardDraft":
        self._rows_file = self._locked()
        self._is_finished = self._final_rows.exists()  # by another process, while this one waited for the lock
        if not self._is_finished:
            if self._final.exists() and not self._pixels.exists():  # killed between the last two lines of `finish`
                os.replace(self._final, self._pixels)
            self._pixels_file = self._pixels.open("r+b" if self._pixels.exists() else "w+b")
        self.done, self.images = self._complete_inputs()
        return self

    def __exit__(self, *_: object) -> None:
        self._rows_file.close()
        if not self._is_finished:
            self._pixels_file.close()

    def _locked(self) -> BinaryIO:
        """The file of rows, locked against other processes.

        Another process may write the same shard: one that tries it again, or a decoder whose parent was killed.
        """
        while True:
            file = self._rows.open("a+b")
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if self._final_rows.exists() or os.path.samestat(os.fstat(file.fileno()), self._rows.stat()):
                    return file
            file.close()  # the file was renamed or removed meanwhile

    def _complete_inputs(self) -> tuple[set[int], int]:
        """The numbers of the inputs that are done, and the number of their images. Incomplete ones are cut off."""
        if self._is_finished:
            with self._final_rows.open("rb") as lines:
                inputs = [json.loads(line) for line in lines]
            return {one["input"] for one in inputs}, sum(one["images"] for one in inputs)
        done, images, end = set(), 0, 0
        stored = (os.fstat(self._pixels_file.fileno()).st_size - self.HEADER) // self._image_bytes
        self._rows_file.seek(0)
        for line in self._rows_file:
            try:
                inputs = json.loads(line)
                number, count = int(inputs["input"]), int(inputs["images"])
            except (ValueError, TypeError, KeyError):  # after a power failure the line may contain anything
                break
            if not line.endswith(b"\n") or images + count > max(0, stored):
                break
            done.add(number)
            images += count
            end += len(line)
        self._rows_file.truncate(end)
        self._pixels_file.truncate(self.HEADER + images * self._image_bytes)
        return done, images

    def append(self, number: int, rows: list[dict[str, Any]], images: list[np.ndarray]) -> None:
        """Add one input: its rows, and its images (C, H, W), which the rows number from 0. Raises OSError."""
        self._pixels_file.seek(0, os.SEEK_END)
        for image in images:
            self._pixels_file.write(np.ascontiguousarray(image).data)
        self._pixels_file.flush()
        placed = [{**row, "row": row["row"] + self.images} if "row" in row else row for row in rows]
        line = json.dumps({"input": number, "images": len(images), "rows": placed}, ensure_ascii=False) + "\n"
        self._rows_file.write(line.encode())
        self._rows_file.flush()
        self.done.add(number)
        self.images += len(images)

    def finish(self) -> None:
        """Write the header and rename both files, with which the shard is complete. Raises OSError."""
        if self._is_finished:
            return
        size = self.images * self._image_bytes
        entry = {"dtype": f"U{self._bits}", "shape": [self.images, *self._shape], "data_offsets": [0, size]}
        header = json.dumps({"__metadata__": {"format": str(DATASET_FORMAT)}, "images": entry}).encode()
        self._pixels_file.seek(0)
        self._pixels_file.write((self.HEADER - 8).to_bytes(8, "little") + header.ljust(self.HEADER - 8))
        self._pixels_file.flush()
        for file in (self._pixels_file, self._rows_file):
            os.fsync(file.fileno())
        if self.images:
            os.replace(self._pixels, self._final)
        else:
            self._pixels.unlink()
        os.replace(self._rows, self._final_rows)


def difference(earlier: dict[str, Any], present: dict[str, Any]) -> str:
    """The settings or inputs in which two requests differ, in words."""
    before, now = _flat(earlier.get("settings") or {}), _flat(present.get("settings") or {})
    changed = [
        f"{name} was {before.get(name)} and is now {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if earlier.get("secret") != present.get("secret"):
        changed.append("the patient keys were made with another secret or by another version")
    if earlier.get("inputs") != present.get("inputs"):
        changed.append(f"the number of inputs was {earlier.get('inputs')} and is now {present.get('inputs')}")
    elif earlier.get("fingerprint") != present.get("fingerprint") and not changed:
        changed.append(f"some of the {earlier.get('inputs')} inputs are different")
    return "; ".join(changed) or "the reports"


def differs_in_data_alone(earlier: dict[str, Any], present: dict[str, Any]) -> bool:
    """Whether two requests have the same settings and the same secret."""
    return all(earlier.get(name) == present.get(name) for name in ("settings", "secret"))


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in settings.items() if isinstance(value, dict)}
    return {name: value for table in (settings, *inner.values()) for name, value in table.items() if name not in inner}
