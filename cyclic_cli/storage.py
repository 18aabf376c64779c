"""Everything on disk: data sets, checkpoints, runs. The only module that knows their formats.

Three habits hold for all of it. Every file is written under a temporary name and renamed, so nobody reads half a
file. Data sets and checkpoints carry the version of their format; a newer one is refused, an older one is upgraded
where it is read. Tensors are safetensors, facts are JSON or YAML beside them or in their header; there is no pickle.

Data set (a folder; `dataset.yaml` is written last, so a folder without it is unfinished):

    dataset.yaml               facts: format, preprocessing, split, counts, fingerprint
    index.parquet              a row per sample, sorted by split and subset position
    records.npy                what training reads of it, see `records.py`
    images-00000.safetensors   `images` (N, C, H, W) uint8 or uint16, read through a memory map
    rejected.jsonl             one line per input that was skipped or rejected
    duplicates.jsonl           one line per input that is another's duplicate, and per pair of near duplicates
    inputs.parquet             what every input was worth, in keys: what `--update` starts from
    reports.parquet            every report, in keys and with identities cut out: likewise
    .unfinished/               the shards done so far and those begun; gone when the data set is whole

Run (a folder):

    model.safetensors          the best checkpoint by validation
    config.yaml                every setting, filled in
    metrics.jsonl              a line every few steps and every epoch
    summary.json               the figures of a finished run
    state/step-00000120/       model.safetensors (the last weights), optimizer.safetensors, progress.json
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import resource
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cyclic_cli.config import Preprocessing, as_plain, build, train_command
from cyclic_cli.errors import CyclicError
from cyclic_cli.lease import SILENCE, hold
from cyclic_cli.records import RECORD, chosen, map_records, records_of, write_records

if TYPE_CHECKING:
    import pyarrow

DATASET_FORMAT = 3
CHECKPOINT_FORMAT = 3  # 2 knew no joint models
ROW_GROUP = 8192  # rows of a Parquet table that are written together
ROWS_AT_ONCE = 512  # of them as Python objects, which need ten times the memory
STATES_KEPT = 2  # the newest saved state and the one before it
LEASE = ".running"  # the file of the process that works on a run

# ---------------------------------------------------------------------------------------------- whole files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends well it takes the name, else it is removed.

    Raises:
        CyclicError: the disk is full or the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with _written(path):
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
def _written(path: Path) -> Iterator[None]:
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


def _read_json(path: Path) -> dict[str, Any]:
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
        raise CyclicError(f"{path} is damaged.", "Make the data set again.") from error


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


# ------------------------------------------------------------------------------------------------- data sets


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """The content of `dataset.yaml`."""

    format: int = DATASET_FORMAT
    tool: str = ""  # name and version of what made it
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    channels: int = 1
    split: dict[str, Any] = field(default_factory=dict)  # rule and shares
    labels: list[str] = field(default_factory=list)  # columns of the index
    counts: dict[str, Any] = field(default_factory=dict)  # inputs, used, duplicates, ...
    shards: int = 0
    request: dict[str, Any] = field(default_factory=dict)  # as of `DatasetDraft.begin`: the same one finds it finished
    fingerprint: str = ""  # of the samples

    @property
    def images(self) -> int:
        """Samples with an image."""
        return int(self.counts["paired"]) + int(self.counts["image_only"])


INDEX_COLUMNS = {
    "sample": "string",
    "patient": "string",
    "study": "string",
    "split": "string",
    "position": "float64",  # in its split, 0–1: a fraction is a prefix
    "text": "string",
    "has_image": "bool",
    "has_text": "bool",
    "shard": "int32",  # -1 without an image
    "row": "int32",
    "height": "int32",  # pixels of the original
    "width": "int32",
    "modality": "string",
    "body_part": "string",
    "view": "string",
    "sex": "string",
    "age": "string",
    "photometric": "string",
    "bits": "int16",
    "pixel_spacing": "float32",  # mm
    "source": "string",  # relative to the source root
    "content": "string",  # hash of the stored pixels
    "frame": "int32",  # of a file of several, from 0
}
FRAME_COLUMNS = {
    "frame": "int32",
    "status": "string",  # used, skipped, rejected
    "reason": "string",  # of `errors.REASONS`, or what a skipped input is
    "detail": "string",
    "patient": "string",  # keys of whom the header names
    "patient_number": "string",  # the same without the number's issuer
    "study": "string",
    "instance": "string",
    "accession": "string",
    "words": "list of string",  # fingerprints of the identities in the header
    "look": "string",  # perceptual hash
    **{name: INDEX_COLUMNS[name] for name in ("sample", "shard", "row", "height", "width", "modality", "body_part")},
    **{name: INDEX_COLUMNS[name] for name in ("view", "sex", "age", "photometric", "bits", "pixel_spacing", "content")},
}
"""What a frame of an input was worth; an input that could not be opened counts as one frame."""
INPUT_COLUMNS = {
    "place": "string",  # key of the input
    "number": "int64",  # among the sorted inputs
    "source": "string",  # None with --no-paths
    "ends": "string",  # hash of size, head and tail
    "names": "list of int64",  # hashes of its path, its name and the ends of its path: what tables may call it
    "path_patient": "string",  # keys of whom the path names
    "path_study": "string",
    **FRAME_COLUMNS,
}
REPORT_COLUMNS = {
    "digest": "int64",  # hash of the row: the same row is read once
    "generation": "int32",  # number of the update it came with: of rows that contradict one another the newest counts
    "table": "int32",  # number of the table, None for a text that is a file
    "rank": "int8",  # where it comes from: `offer.TABLE` …
    "image": "int64",  # hash of the image's path as the table writes it, and of that in the source
    "within": "int64",
    "stem": "int64",  # hash of the image's name without a suffix
    "depth": "int16",  # parts of that path
    "place": "string",  # of the input it lies beside, or whose exact path it gives
    "shared": "int64",  # hash of the folder whose one report it is
    "instance": "string",  # keys
    "study": "string",
    "accession": "string",
    "patient": "string",
    "split": "string",  # as the table gives it
    "labels": "string",  # JSON
    "words": "list of string",  # fingerprints of identities in its row
    "text": "string",  # with identities cut out
}


class DatasetDraft:
    """A data set being written: shards and their rows, in any order, by any number of processes."""

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
            foreign = self.folder.exists() and not is_dataset(self.folder) and _holds_more_than_drafts(self.folder)
            if foreign or (self.folder.exists() and not self.folder.is_dir()):
                raise CyclicError(f"{self.folder} exists and holds something else.", "Name another --out.")
            write_text(mark, json.dumps(request))
        known = _read_json(mark)
        if known | {"reports": ""} != request | {"reports": ""}:
            raise CyclicError(
                f"{self.folder} holds an unfinished data set of another request: {difference(known, request)}.",
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
        """Take back an unfinished data set, or unfinished additions to one, that no input could be used for."""
        for shard in shards:
            (self.folder / shard_name(shard)).unlink(missing_ok=True)
        self.sweep()
        self.clear()
        with suppress(OSError):  # not empty: it holds something that is not ours, or a finished data set
            self.folder.rmdir()

    def clear_finished(self) -> None:
        """Remove what a kill left between the last file of a data set and the end."""
        mark = self.unfinished / "request.json"
        if mark.exists() and is_dataset(self.folder) and StoredDataset(self.folder).facts.request == _read_json(mark):
            self.clear()

    def clear(self) -> None:
        """Remove the rows of shards, which a whole data set no longer needs."""
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
                yield from json.loads(line)["rows"]

    def finish(self, facts: DatasetFacts, tables: Mapping[str, Iterable[dict[str, Any]]], texts: set[str]) -> None:
        """Write the tables and, last, the facts; the data set is whole from then on.

        Args:
            facts: The content of `dataset.yaml`.
            tables: Rows of `index`, `inputs`, `reports` (Parquet), `rejected` and `duplicates` (JSON Lines).
            texts: The labels that hold text; the others are numbers.
        """
        labels = {label: "string" if label in texts else "float32" for label in facts.labels}
        index = self.folder / "index.parquet"
        write_parquet(index, INDEX_COLUMNS | labels, tables["index"])
        with replacing(self.folder / "records.npy") as draft_of_records:
            write_records(draft_of_records, _records(index), facts.images)
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


def _holds_more_than_drafts(folder: Path) -> bool:
    """Whether anything but what a kill leaves behind lies in a folder."""
    return any(path.name not in (".unfinished", LEASE) and not path.match(".*.tmp") for path in folder.iterdir())


def shard_name(shard: int) -> str:
    """The file of a shard."""
    return f"images-{shard:05d}.safetensors"


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a whole data set; one that may not be looked into holds none."""
    with suppress(PermissionError):
        return (folder / "dataset.yaml").is_file()
    return False


class StoredDataset:
    """A finished data set, opened without reading its images or index.

    Raises:
        CyclicError: there is none, it is unfinished, newer than this program, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not is_dataset(folder):
            unfinished = (folder / ".unfinished").exists()
            raise CyclicError(
                f"{folder} holds no {'finished ' if unfinished else ''}data set.",
                "Repeat the `cyclic prepare` that began it." if unfinished else "Make one with `cyclic prepare`.",
            )
        self.facts = self._read_facts(folder / "dataset.yaml")
        self._maps: dict[int, np.ndarray] = {}
        self._most_maps = _open_files() // 2  # each holds a file open

    @staticmethod
    def _read_facts(path: Path) -> DatasetFacts:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            version = int(values["format"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise CyclicError(f"{path} is damaged.", "Make the data set again.") from error
        refuse_newer(version, DATASET_FORMAT, path)
        return build(DatasetFacts, _upgraded(values, version), str(path))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        size = self.facts.preprocessing.size
        return self.facts.channels, size, size

    def index(self, columns: list[str] | None = None) -> "pyarrow.Table":
        """The index, or some columns of it."""
        import pyarrow as pa
        import pyarrow.parquet

        try:
            return pa.parquet.read_table(self.folder / "index.parquet", columns=columns)
        except PermissionError:
            raise CyclicError(f"{self.folder / 'index.parquet'} may not be read.", "Check its permissions.") from None
        except (OSError, pa.ArrowException) as error:
            raise CyclicError(f"{self.folder / 'index.parquet'} is damaged.", "Make the data set again.") from error

    def rows(self, columns: Iterable[str], split: str, fraction: float = 1.0) -> dict[str, np.ndarray]:
        """Columns (N,) of the index, of the samples of a split's first `fraction` of patients, in its order.

        Texts and keys are arrays of str, missing numbers NaN.

        Raises:
            CyclicError: there is no such column, or the index is damaged.
        """
        table = self.index(list(dict.fromkeys([*columns, "split", "position"])))
        position = table["position"].to_numpy()
        chosen = (table["split"].to_numpy(zero_copy_only=False) == split) & (position < fraction)
        table = table.filter(chosen)
        return {name: table[name].to_numpy(zero_copy_only=False) for name in columns}

    def samples(self, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows of the index, in its order, a few at a time. Raises CyclicError when it is damaged."""
        return read_parquet(self.folder / "index.parquet", dict.fromkeys(columns, ""))

    def samples_of(self, keys: Iterable[str], columns: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of some samples, by their keys; without those that there are none of."""
        wanted = set(keys)
        return {row["sample"]: row for row in self.samples(["sample", *columns]) if row["sample"] in wanted}

    def label_kinds(self) -> dict[str, str]:
        """The label columns, string or float32."""
        schema = self.index(self.facts.labels).schema if self.facts.labels else []
        return {field.name: str(field.type).replace("float", "float32") for field in schema}

    @property
    def can_be_updated(self) -> bool:
        """Whether it says of every input and report what an update needs."""
        return (self.folder / "inputs.parquet").exists() and (self.folder / "reports.parquet").exists()

    def inputs(self) -> Iterator[dict[str, Any]]:
        """What every frame of every input was worth: rows of `INPUT_COLUMNS`."""
        return read_parquet(self.folder / "inputs.parquet", INPUT_COLUMNS)

    def reports(self) -> Iterator[dict[str, Any]]:
        """Every report: rows of `REPORT_COLUMNS`."""
        return read_parquet(self.folder / "reports.parquet", REPORT_COLUMNS)

    def records(self, split: str, fraction: float = 1.0) -> np.ndarray:
        """The records (N,) of `records.RECORD` of a split's images, of the first `fraction` of its patients."""
        return chosen(self._records, split, fraction)

    @cached_property
    def _records(self) -> np.ndarray:
        path = self.folder / "records.npy"
        try:
            if path.exists():
                return map_records(path, self.facts.images)
        except (OSError, ValueError) as error:
            raise CyclicError(f"{path} is damaged.", "Remove it: the index then serves in its place.") from error
        try:
            return np.fromiter(_records(self.folder / "index.parquet"), RECORD)
        except (ValueError, TypeError, OverflowError) as error:
            raise CyclicError(f"{self.folder / 'index.parquet'} is damaged.", "Make the data set again.") from error

    def images(self, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Copy images out of the memory map.

        Args:
            shards: (N,) integers.
            rows: (N,) integers, within their shard.

        Returns:
            (N, C, H, W), uint8 or uint16.
        """
        kind = np.uint8 if self.facts.preprocessing.bits == 8 else np.uint16
        out = np.empty((len(shards), *self.image_shape), dtype=kind)
        for position, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            images = self._map(shard)
            if row >= len(images):
                raise CyclicError(f"{self.folder} is damaged: {shard_name(shard)} is too short.", "Make it again.")
            out[position] = images[row]
        return out

    def check(self) -> None:
        """Raise CyclicError when the index, its records or a shard that they name are missing or cut short."""
        self.index(["shard"])
        for shard in np.unique(self._records["shard"]).tolist():
            self._map(shard)

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            if len(self._maps) >= self._most_maps:
                del self._maps[next(iter(self._maps))]  # the oldest
            self._maps[shard] = _map_images(self.folder / shard_name(shard), self.image_shape)
        return self._maps[shard]


def _records(index: Path) -> Iterator[tuple[int | float, ...]]:
    """The records of an index."""
    names = ("sample", "patient", "split", "position", "has_image", "shard", "row", "height", "width")
    return records_of(read_parquet(index, {name: INDEX_COLUMNS[name] for name in names}))


def _upgraded(values: dict[str, Any], version: int) -> dict[str, Any]:
    """The facts of an older format as those of this one."""
    if version == 1:  # the request was its fingerprint alone; there were no inputs.parquet and reports.parquet
        values = {**values, "request": {"fingerprint": values.get("request", "")}}
    return values


def _open_files() -> int:
    """How many files this process may hold open, raised as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_530 if hard == resource.RLIM_INFINITY else min(hard, 65_530)  # Linux allows no more maps
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def shard_images(folder: Path, shard: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The images (N, C, H, W) of a shard, as a memory map. Raises CyclicError when it is missing or damaged."""
    return _map_images(folder / shard_name(shard), image_shape)


def _map_images(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The `images` of a shard as a memory map (N, C, H, W). The header is checked before anything is mapped."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 2**20:
                raise ValueError("the header is too long")
            entry = json.loads(file.read(length))["images"]
            begin, end = entry["data_offsets"]
            kind = {"U8": np.uint8, "U16": np.uint16}[entry["dtype"]]
            shape = tuple(int(number) for number in entry["shape"])
            fits = 0 <= begin <= end <= os.fstat(file.fileno()).st_size - 8 - length
            if not fits or shape[1:] != image_shape or end - begin != np.prod(shape) * np.dtype(kind).itemsize:
                raise ValueError("the header does not fit the file")
            return np.memmap(path, kind, "r", 8 + length + begin, shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CyclicError(f"{path} is missing or damaged.", "Make the data set again.") from error


def refuse_newer(version: int, known: int, path: Path) -> None:
    """Raise CyclicError when a file's format is one that this program does not know yet."""
    if version > known:
        raise CyclicError(f"{path} has format {version}; this program knows up to {known}.", "Update cyclic.")


# ----------------------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model in one file: what rebuilds it stands in the header, as JSON."""

    weights: dict[str, np.ndarray]
    architecture: dict[str, Any]  # name, config, image_shape
    preprocessing: Preprocessing
    provenance: dict[str, Any]  # settings without paths, data set by fingerprint, versions, step, validation
    fingerprint: str = ""  # of weights and architecture; filled in by `write_checkpoint`


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a self-describing `.safetensors` file. The same checkpoint gives the same bytes."""
    description = {
        "format": CHECKPOINT_FORMAT,
        "architecture": checkpoint.architecture,
        "preprocessing": as_plain(checkpoint.preprocessing),
        "provenance": checkpoint.provenance,
        "fingerprint": _fingerprint(checkpoint.architecture, checkpoint.weights),
    }
    description["checksum"] = checksum(description)
    # One entry of the header holds it all: safetensors writes several in any order.
    write_tensors(path, checkpoint.weights, {"cyclic": json.dumps(description, sort_keys=True)})


def _fingerprint(architecture: dict[str, Any], weights: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.hexdigest()[:32]


def checksum(values: Any) -> str:
    """A checksum of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CyclicError when the file is damaged, newer, or no checkpoint of this program."""
    weights, header = read_tensors(path)
    try:
        description = json.loads(header["cyclic"])
        version, architecture = int(description["format"]), description["architecture"]
        shape = [int(number) for number in architecture["image_shape"]]
        if not isinstance(architecture["name"], str) or not isinstance(architecture["config"], dict) or len(shape) != 3:
            raise ValueError("not an architecture")
        refuse_newer(version, CHECKPOINT_FORMAT, path)
        if version == 1 and architecture["name"] != "linear":
            raise CyclicError(f"{path} is of version 0.1.0, whose networks were others.", "Train it again.")
        said = description.pop("checksum", None)  # files of earlier versions have none
        whole = said in (None, checksum(description))
        if not whole or description["fingerprint"] != _fingerprint(architecture, weights):
            raise CyclicError(f"{path} is damaged: its checksum is another.", "Copy or make it again.")
        if not all(np.isfinite(value).all() for value in weights.values() if value.dtype.kind == "f"):
            raise CyclicError(f"{path} holds weights that are not finite.", "Train it again, with a lower --lr.")
        return Checkpoint(
            weights=weights,
            architecture=architecture,
            preprocessing=build(Preprocessing, description["preprocessing"], str(path)),
            provenance=dict(description["provenance"]),
            fingerprint=str(description["fingerprint"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise CyclicError(
            f"{path} is no checkpoint of cyclic.", "Give a run folder or its model.safetensors."
        ) from error


# ------------------------------------------------------------------------------------------------------ runs


class RunFolder:
    """A training run on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = folder / "model.safetensors"
        self.config = folder / "config.yaml"
        self.metrics = folder / "metrics.jsonl"
        self.summary = folder / "summary.json"

    def exists(self) -> bool:
        """Whether there is anything at all under the run's name."""
        return self.folder.exists() and (
            not self.folder.is_dir() or any(path.name != LEASE for path in self.folder.iterdir())
        )

    def states(self) -> list[Path]:
        """The saved states, oldest first."""
        return sorted((self.folder / "state").glob("step-*"))

    def save_state(
        self, step: int, checkpoint: Checkpoint, optimizer: dict[str, np.ndarray], progress: dict[str, Any]
    ) -> None:
        """Save all that resuming needs as one folder that appears whole; older ones but the last are removed."""
        final = self.folder / "state" / f"step-{step:08d}"
        draft, past = (final.with_name(f".{final.name}.{os.getpid()}{part}.tmp") for part in ("", ".past"))
        shutil.rmtree(draft, ignore_errors=True)
        try:
            write_checkpoint(draft / "model.safetensors", checkpoint)
            header = {"format": CHECKPOINT_FORMAT, "fingerprint": _fingerprint({}, optimizer)}
            write_tensors(draft / "optimizer.safetensors", optimizer, {"cyclic": json.dumps(header)})
            write_text(draft / "progress.json", json.dumps({"progress": progress, "checksum": checksum(progress)}))
            if final.exists():  # the same step, saved again after the validation that follows it
                os.replace(final, past)
            os.replace(draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(past, ignore_errors=True)
        states = self.states()
        earlier = [state for state in states if state.name <= final.name]
        for old in set(states) - set(earlier[-STATES_KEPT:]):  # later ones were damaged, and passed over
            shutil.rmtree(old)

    def load_state(self, state: Path) -> tuple[Checkpoint, dict[str, np.ndarray], dict[str, Any]]:
        """A saved state: checkpoint, optimizer tensors, progress. Raises CyclicError when any of them is damaged."""
        try:
            saved = json.loads((state / "progress.json").read_text(encoding="utf-8"))
            optimizer, header = read_tensors(state / "optimizer.safetensors")
            fingerprint = json.loads(header["cyclic"])["fingerprint"]
            if saved["checksum"] != checksum(saved["progress"]) or fingerprint != _fingerprint({}, optimizer):
                raise ValueError("another checksum")
            checkpoint = read_checkpoint(state / "model.safetensors")
        except (OSError, ValueError, KeyError, TypeError, CyclicError) as error:
            raise CyclicError(f"The saved state {state} is damaged.", "The one before it can be used.") from error
        return checkpoint, optimizer, saved["progress"]

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the run's folder alone, for as long as the block runs. Raises CyclicError while another process does.

        A process of another host may have been ended a moment ago, and this be its successor: it is waited for.
        """
        with ExitStack() as held:
            with _written(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                work = f"The run {self.folder} is being trained"
                held.enter_context(hold(self.folder / LEASE, work, patience=1.5 * SILENCE))
                self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove what kills left behind; only for who is alone."""
        for draft in self.folder.glob(".*.tmp"):
            draft.unlink(missing_ok=True)
        for draft in (self.folder / "state").glob(".*.tmp"):
            shutil.rmtree(draft, ignore_errors=True)

    def is_foreign(self) -> bool:
        """Whether the folder holds something, and that is no run."""
        return (
            self.exists()
            and not self.config.exists()
            and (not self.folder.is_dir() or _holds_more_than_drafts(self.folder))
        )

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        write_text(self.summary, json.dumps(summary))

    def read_summary(self) -> dict[str, Any]:
        """The summary of a finished run. Raises CyclicError when it, or the model it speaks of, is damaged or gone."""
        read_checkpoint(self.best)
        try:
            return dict(json.loads(self.summary.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CyclicError(
                f"{self.summary} is damaged.", "Remove it; the run then ends again from its state."
            ) from error

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`. Raises CyclicError when the disk is full or the file cannot be written."""
        with _written(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def metrics_size(self) -> int:
        """Bytes of `metrics.jsonl`, the place to cut it back to when a state is resumed."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Drop what an attempt wrote after the state that is resumed was saved."""
        if self.metrics_size() > size:
            os.truncate(self.metrics, size)

    def point_latest(self) -> None:
        """Let `runs/latest` name this run; only in a folder called `runs`, so that no other folder gets a link."""
        if self.folder.absolute().parent.name != "runs":
            return
        link = self.folder.absolute().parent / "latest"
        if link.exists() and not link.is_symlink():
            return  # somebody's own folder
        draft = link.with_name(f".latest.{os.getpid()}.tmp")
        draft.unlink(missing_ok=True)
        draft.symlink_to(self.folder.name)
        os.replace(draft, link)


def find_checkpoint(path: Path) -> Path:
    """What `--model` names: a run folder's best checkpoint, a folder with exported parts, or the file itself."""
    if path.is_dir():
        if (path / "model.safetensors").is_file():
            return path / "model.safetensors"
        if not any(path.glob("*.onnx")):
            raise CyclicError(f"{path} holds no model.", "Give a run folder, a .safetensors or an .onnx file.")
        return path
    if not path.exists():
        raise CyclicError(f"There is no model {path}.", "Give a run folder, a .safetensors or an .onnx file.")
    return path


# ------------------------------------------------------------------------------------------------------ info


def describe(path: Path) -> dict[str, Any]:
    """What `cyclic info` shows of a data set, a run or a checkpoint. Raises CyclicError when it is none of them."""
    if is_dataset(path):
        stored = StoredDataset(path)
        stored.check()
        facts = stored.facts
        return {"kind": "data set", "path": str(path), **as_plain(facts)}
    if path.is_dir() and (path / "config.yaml").exists():
        return _describe_run(path)
    if (path / ".unfinished").is_dir():
        raise CyclicError(f"{path} is an unfinished data set.", "Repeat the `cyclic prepare` that began it.")
    if path.is_dir() and not (path / "model.safetensors").exists():
        raise CyclicError(
            f"{path} is neither a data set nor a run.",
            "Give a data set, a run folder or a .safetensors file.",
        )
    return {"kind": "checkpoint", "path": str(path), **_describe_checkpoint(find_checkpoint(path))}


def _describe_run(path: Path) -> dict[str, Any]:
    run = RunFolder(path)
    states = [state.name for state in run.states()]
    checkpoint = _describe_checkpoint(run.best) if run.best.exists() else None
    return {
        "kind": "run",
        "path": str(path),
        "finished": run.summary.exists(),
        "states": states,
        "checkpoint": checkpoint,
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    parameters = sum(int(value.size) for value in checkpoint.weights.values())
    again = _again(checkpoint.provenance)
    architecture = {name: value for name, value in checkpoint.architecture.items() if name != "facts"}  # vocabularies
    return {
        "architecture": architecture,
        "parameters": parameters,
        "bytes": path.stat().st_size,
        "preprocessing": as_plain(checkpoint.preprocessing),
        "fingerprint": checkpoint.fingerprint,
        "provenance": checkpoint.provenance,
        "again": again,
        "again_bit_for_bit": again is not None and not checkpoint.provenance.get("environment_changed", False),
    }


def _again(provenance: dict[str, Any]) -> str | None:
    """The command that would make a checkpoint again, with its data set and environment; earlier versions lack some."""
    settings, environment = provenance.get("settings"), provenance.get("environment")
    if not isinstance(settings, dict) or not isinstance(environment, dict):
        return None
    threads, processes = (environment.get(name) for name in ("threads", "processes"))
    if not isinstance(threads, int) or not isinstance(processes, int):
        return None
    command = train_command(settings, threads, processes, str(environment.get("strategy", "auto")))
    further = ["--also DATASET" for _ in provenance.get("also", ())]
    return " ".join([command, *further, *(["--start-from MODEL"] if "start_from" in provenance else [])])
