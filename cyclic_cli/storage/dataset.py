"""A finished dataset on disk: a folder, whose `dataset.yaml` is written last.

    dataset.yaml               facts: format, preprocessing, split, counts, fingerprint
    index.parquet              a row per sample, sorted by split and subset position
    records.npy                what training reads of it, see `records.py`
    images-00000.safetensors   `images` (N, C, H, W) uint8 or uint16, read through a memory map
    rejected.jsonl             one line per input that was skipped or rejected
    duplicates.jsonl           one line per input that is another's duplicate, and per pair of near duplicates
    inputs.parquet             what became of every input, in keys: what `--update` starts from
    reports.parquet            every report, in keys and with identities cut out: likewise
    .unfinished/               the shards done so far and those begun; gone when the dataset is whole

A dataset of a newer format is refused, one of an older format is upgraded where it is read.
"""

import json
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from cyclic_cli.config import Preprocessing, as_plain, build
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.files import read_parquet, refuse_newer
from cyclic_cli.storage.records import RECORD, chosen, map_records, records_of

if TYPE_CHECKING:
    import pyarrow

DATASET_FORMAT = 4  # 2 had no records.npy, 3 other names of columns


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
    "perceptual_hash": "string",
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


def shard_name(shard: int) -> str:
    """The file of a shard."""
    return f"images-{shard:05d}.safetensors"


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a whole dataset; one that may not be looked into holds none."""
    with suppress(PermissionError):
        return (folder / "dataset.yaml").is_file()
    return False


RENAMED_COLUMNS = {"perceptual_hash": "look"}
"""Columns of `inputs.parquet`, and their names before format 4."""


class StoredDataset:
    """A finished dataset, opened without reading its images or index.

    Raises:
        CyclicError: there is none, it is unfinished, newer than this program, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not is_dataset(folder):
            unfinished = (folder / ".unfinished").exists()
            raise CyclicError(
                f"{folder} holds no {'finished ' if unfinished else ''}dataset.",
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
            raise CyclicError(f"{path} is damaged.", "Make the dataset again.") from error
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
            raise CyclicError(f"{self.folder / 'index.parquet'} is damaged.", "Make the dataset again.") from error

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
        stored = {RENAMED_COLUMNS.get(name, name) if self.facts.format < 4 else name: name for name in INPUT_COLUMNS}
        for row in read_parquet(self.folder / "inputs.parquet", stored):
            yield {stored[name]: value for name, value in row.items()}

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
            return np.fromiter(records_of_index(self.folder / "index.parquet"), RECORD)
        except (ValueError, TypeError, OverflowError) as error:
            raise CyclicError(f"{self.folder / 'index.parquet'} is damaged.", "Make the dataset again.") from error

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


def records_of_index(index: Path) -> Iterator[tuple[int | float, ...]]:
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
        raise CyclicError(f"{path} is missing or damaged.", "Make the dataset again.") from error


def describe(path: Path) -> dict[str, Any]:
    """What `cyclic info` shows of a dataset. Raises CyclicError when it is damaged."""
    stored = StoredDataset(path)
    stored.check()
    return {"kind": "dataset", "path": str(path), **as_plain(stored.facts)}
