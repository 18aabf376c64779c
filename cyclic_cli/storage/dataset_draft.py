"""A dataset being written: shards and their rows, in any order, by any number of processes."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cyclic_cli.config import as_plain, renamed
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.dataset import (
    DATASET_FORMAT,
    INDEX_COLUMNS,
    INPUT_COLUMNS,
    RENAMED_COLUMNS,
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

INPUT_NAMES = {old: new for new, old in RENAMED_COLUMNS.items()}  # of work that an earlier version left unfinished


class DatasetDraft:
    """A dataset being written: shards and their rows, in any order, by any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unfinished = folder / ".unfinished"

    def begin(self, request: dict[str, Any]) -> None:
        """Start, or continue what the same request left unfinished. Several processes may begin at once.

        Args:
            request: `settings`, `secret` (a check of it), number of `inputs`, a `fingerprint` of all that, and one of
                the `reports`, which may be mended while the work goes on.

        Raises:
            CyclicError: the folder holds something else, or the unfinished work of other inputs or settings.
        """
        mark = self.unfinished / "request.json"
        self.clear_finished()
        if not mark.exists():
            foreign = self.folder.exists() and not is_dataset(self.folder) and holds_more_than_drafts(self.folder)
            if foreign or (self.folder.exists() and not self.folder.is_dir()):
                raise CyclicError(f"{self.folder} exists and holds something else.", "Name another --out.")
            write_text(mark, json.dumps(request))
        known = read_json(mark)
        if known | {"reports": ""} != request | {"reports": ""}:
            raise CyclicError(
                f"{self.folder} holds an unfinished dataset of another request: {difference(known, request)}.",
                f"Repeat the command that began it, remove {self.unfinished}, or name another --out.",
            )
        if known != request:
            write_text(mark, json.dumps(request))
        self.leases.mkdir(exist_ok=True)

    @property
    def leases(self) -> Path:
        """The folder of the leases of processes that write here."""
        return self.unfinished / "leases"

    def sweep(self) -> None:
        """Remove what kills left behind; only for who is alone."""
        for draft in [*self.folder.glob(".*.tmp"), *self.unfinished.glob(".*.tmp")]:
            draft.unlink(missing_ok=True)

    def discard(self, shards: range) -> None:
        """Take back an unfinished dataset, or unfinished additions to one, that no input could be used for."""
        for shard in shards:
            (self.folder / shard_name(shard)).unlink(missing_ok=True)
        self.sweep()
        self.clear()
        with suppress(OSError):  # not empty: it holds something that is not ours, or a finished dataset
            self.folder.rmdir()

    def clear_finished(self) -> None:
        """Remove what a kill left between the last file of a dataset and the end."""
        mark = self.unfinished / "request.json"
        if mark.exists() and is_dataset(self.folder) and StoredDataset(self.folder).facts.request == read_json(mark):
            self.clear()

    def clear(self) -> None:
        """Remove the rows of shards, which a whole dataset no longer needs."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def is_done(self, shard: int) -> bool:
        """Whether a shard and its rows are whole."""
        return self._rows_path(shard).exists()

    def shard(self, number: int, image_shape: tuple[int, int, int], bits: int) -> "ShardDraft":
        """A shard to be written, continued where a kill left it."""
        return ShardDraft(self.folder / shard_name(number), self._rows_path(number), image_shape, bits)

    def rows(self, shard: int) -> Iterator[dict[str, Any]]:
        """The rows of a shard's inputs, in order."""
        with self._rows_path(shard).open(encoding="utf-8") as lines:
            for line in lines:
                for row in json.loads(line)["rows"]:
                    yield renamed(row, INPUT_NAMES)

    def finish(self, facts: DatasetFacts, tables: Mapping[str, Iterable[dict[str, Any]]], texts: set[str]) -> None:
        """Write the tables and, last, the facts; the dataset is whole from then on.

        Args:
            facts: The content of `dataset.yaml`.
            tables: Rows of `index`, `inputs`, `reports` (Parquet), `rejected` and `duplicates` (JSON Lines).
            texts: The labels that hold text; the others are numbers.
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
    """A shard being written, input by input, so that a kill costs no more than the input at hand.

    Pixels and rows go to the end of two files; an input is done when its line of rows is whole. Pixels stand behind
    room for the header, which is filled in at the end, so that they are written once.
    """

    HEADER = 256  # bytes of the safetensors file before the pixels

    def __init__(self, final: Path, rows: Path, image_shape: tuple[int, int, int], bits: int) -> None:
        self._final, self._final_rows = final, rows
        self._pixels, self._rows = rows.with_suffix(".pixels"), rows.with_suffix(".part")
        self._shape, self._bits = image_shape, bits
        self._image_bytes = int(np.prod(image_shape)) * bits // 8

    def __enter__(self) -> "ShardDraft":
        self._rows_file = self._locked()
        self._is_finished = self._final_rows.exists()  # by another, while this one waited for the lock
        if not self._is_finished:
            if self._final.exists() and not self._pixels.exists():  # killed between the last two steps of `finish`
                os.replace(self._final, self._pixels)
            self._pixels_file = self._pixels.open("r+b" if self._pixels.exists() else "w+b")
        self.done, self.images = self._whole()
        return self

    def __exit__(self, *_: object) -> None:
        self._rows_file.close()
        if not self._is_finished:
            self._pixels_file.close()

    def _locked(self) -> BinaryIO:
        """The file of rows, held against other processes: a retry, or a decoder that outlived its watcher."""
        while True:
            file = self._rows.open("a+b")
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if self._final_rows.exists() or os.path.samestat(os.fstat(file.fileno()), self._rows.stat()):
                    return file
            file.close()  # it was renamed or removed meanwhile

    def _whole(self) -> tuple[set[int], int]:
        """The numbers of the inputs that are done, and how many images they gave; what is not whole is cut off."""
        if self._is_finished:
            with self._final_rows.open("rb") as lines:
                inputs = [json.loads(line) for line in lines]
            return {known["input"] for known in inputs}, sum(known["images"] for known in inputs)
        done, images, end = set(), 0, 0
        stored = (os.fstat(self._pixels_file.fileno()).st_size - self.HEADER) // self._image_bytes
        self._rows_file.seek(0)
        for line in self._rows_file:
            try:
                inputs = json.loads(line)
                number, count = int(inputs["input"]), int(inputs["images"])
            except (ValueError, TypeError, KeyError):  # a lost power supply may leave anything
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
        """Add one input: its rows, and the images (C, H, W) that they count from 0. Raises OSError."""
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
        """Give both files their names; the shard is whole from then on."""
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


def difference(known: dict[str, Any], asked: dict[str, Any]) -> str:
    """In which settings or inputs two requests differ, in words."""
    before, now = _flat(known.get("settings") or {}), _flat(asked.get("settings") or {})
    changed = [
        f"{name} {before.get(name)} there, {now.get(name)} here"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if known.get("secret") != asked.get("secret"):
        changed.append("another secret behind the patient keys, or keys of another version")
    if known.get("inputs") != asked.get("inputs"):
        changed.append(f"{known.get('inputs')} inputs there, {asked.get('inputs')} here")
    elif known.get("fingerprint") != asked.get("fingerprint") and not changed:
        changed.append(f"{known.get('inputs')} inputs there, other ones here")
    return "; ".join(changed) or "the reports"


def differs_in_data_alone(known: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether two requests have the same settings and the same secret."""
    return all(known.get(name) == asked.get(name) for name in ("settings", "secret"))


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in settings.items() if isinstance(value, dict)}
    return {name: value for table in (settings, *inner.values()) for name, value in table.items() if name not in inner}
