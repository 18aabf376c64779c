"""Reads a finished dataset: a folder with these files, of which `dataset.yaml` is written last.

    dataset.yaml               metadata: format, preprocessing, split, counts, fingerprint
    index.parquet              one row per sample, sorted by split and by position in the split
    records.npy                the part of the index that training needs, see `records.py`
    images-00000.safetensors   `images` (N, C, H, W) uint8 or uint16, read through a memory map
    rejected.jsonl             one line per input that was skipped or rejected
    duplicates.jsonl           one line per duplicate of another input, and per pair of near duplicates
    inputs.parquet             the outcome of every input, without identities; `--update` starts from it
    reports.parquet            every report with identities cut out; `--update` starts from it
    .unfinished/               rows of shards; removed when the dataset is finished

A dataset of a newer format is refused. One of an older format is upgraded while it is read.
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

DATASET_FORMAT = 4  # formats before 3 had no records.npy, format 3 had other column names


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """The content of `dataset.yaml`."""

    format: int = DATASET_FORMAT
    tool: str = ""  # name and version of the program that made the dataset
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    channels: int = 1
    split: dict[str, Any] = field(default_factory=dict)  # rule and fractions
    labels: list[str] = field(default_factory=list)  # label columns of the index
    counts: dict[str, Any] = field(default_factory=dict)  # inputs, used, duplicates, ...
    shards: int = 0
    request: dict[str, Any] = field(default_factory=dict)  # see `DatasetDraft.begin`; repeating it does nothing
    fingerprint: str = ""  # of all samples

    @property
    def images(self) -> int:
        """The number of samples with an image."""
        return int(self.counts["paired"]) + int(self.counts["image_only"])


INDEX_COLUMNS = {
    "sample": "string",
    "patient": "string",
    "study": "string",
    "split": "string",
    "position": "float64",  # of the patient in its split, 0–1, ascending: a fraction of the patients is a prefix
    "text": "string",
    "has_image": "bool",
    "has_text": "bool",
    "shard": "int32",  # -1 without an image
    "row": "int32",
    "height": "int32",  # of the original image, in pixels
    "width": "int32",
    "modality": "string",
    "body_part": "string",
    "view": "string",
    "sex": "string",
    "age": "string",
    "photometric": "string",
    "bits": "int16",
    "pixel_spacing": "float32",  # mm
    "source": "string",  # path relative to the source folder
    "content": "string",  # hash of the stored pixels
    "frame": "int32",  # number of the frame in its file, from 0
}
FRAME_COLUMNS = {
    "frame": "int32",
    "status": "string",  # used, skipped, rejected
    "reason": "string",  # a key of `errors.REASONS`, or the kind of a skipped input
    "detail": "string",
    "guesses": "list of string",  # keys of `guesses.GUESSES`
    "patient": "string",  # key of the patient ID in the header; the next four are keys as well
    "patient_number": "string",  # patient ID without its issuer
    "study": "string",
    "instance": "string",
    "accession": "string",
    "words": "list of string",  # fingerprints of identifying words in the header
    "perceptual_hash": "string",
    **{name: INDEX_COLUMNS[name] for name in ("sample", "shard", "row", "height", "width", "modality", "body_part")},
    **{name: INDEX_COLUMNS[name] for name in ("view", "sex", "age", "photometric", "bits", "pixel_spacing", "content")},
}
"""The outcome of each frame of an input. An input that could not be opened counts as one frame."""
INPUT_COLUMNS = {
    "place": "string",  # key of the input, computed from its relative path
    "number": "int64",  # of the input in sorted order
    "source": "string",  # relative path; None with --no-paths
    "ends": "string",  # hash of the size, the first and the last bytes: finds inputs that changed
    "names": "list of int64",  # hashes of the names that tables may use: path, file name, endings of the path
    "path_patient": "string",  # key of the patient in the path
    "path_study": "string",  # key of the study in the path
    **FRAME_COLUMNS,
}
REPORT_COLUMNS = {
    "digest": "int64",  # hash of the row; repeated rows are read once
    "generation": "int32",  # number of the update that added it; of contradicting rows the newest counts
    "table": "int32",  # number of the table; None for a text file
    "rank": "int8",  # kind of source, numbered in `prepare.database`
    "image": "int64",  # hash of the image path as written in the table
    "within": "int64",  # hash of the image path within the source folder
    "stem": "int64",  # hash of the image's file name without suffix
    "depth": "int16",  # number of parts of the image path
    "place": "string",  # key of the input beside it, or of the input whose exact path it names
    "shared": "int64",  # hash of the folder, if it is the only report there
    "instance": "string",  # key, like the next three
    "study": "string",
    "accession": "string",
    "patient": "string",
    "split": "string",  # as given in the table
    "labels": "string",  # JSON
    "words": "list of string",  # fingerprints of identifying words in its row
    "text": "string",  # with identities removed
}


def shard_name(shard: int) -> str:
    """The file name of a shard."""
    return f"images-{shard:05d}.safetensors"


def is_dataset(folder: Path) -> bool:
    """Whether a folder contains a finished dataset. A folder without read permission does not."""
    with suppress(PermissionError):
        return (folder / "dataset.yaml").is_file()
    return False


class StoredDataset:
    """A finished dataset, opened without reading its images or index.

    Raises:
        CyclicError: the folder has no dataset, or one that is unfinished, newer than this program, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not is_dataset(folder):
            unfinished = (folder / ".unfinished").exists()
            raise CyclicError(
                f"{folder} does not contain a {'finished ' if unfinished else ''}dataset.",
                "Repeat the `cyclic prepare` that began it." if unfinished else "Make one with `cyclic prepare`.",
            )
        self.facts = self._read_facts(folder / "dataset.yaml")
        self._maps: dict[int, np.ndarray] = {}
        self._most_maps = _open_files() // 2  # each map keeps a file open

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
        """The index, or some of its columns. Raises CyclicError when it is damaged."""
        import pyarrow as pa
        import pyarrow.parquet

        path = self.folder / "index.parquet"
        try:
            return pa.parquet.read_table(path, columns=columns)
        except PermissionError:
            raise CyclicError(f"{path} cannot be read: permission denied.", "Check its permissions.") from None
        except (OSError, pa.ArrowException) as error:
            raise CyclicError(f"{path} is damaged.", "Make the dataset again.") from error

    def rows(self, columns: Iterable[str], split: str, fraction: float = 1.0) -> dict[str, np.ndarray]:
        """Columns (N,) of the index for the samples of the first `fraction` of the patients of a split.

        The samples are in the order of the index. Texts and keys are arrays of str; missing numbers are NaN.

        Raises:
            CyclicError: a column does not exist, or the index is damaged.
        """
        table = self.index(list(dict.fromkeys([*columns, "split", "position"])))
        position = table["position"].to_numpy()
        chosen = (table["split"].to_numpy(zero_copy_only=False) == split) & (position < fraction)
        table = table.filter(chosen)
        return {name: table[name].to_numpy(zero_copy_only=False) for name in columns}

    def samples(self, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The rows of the index in order, read in small batches. Raises CyclicError when the index is damaged."""
        return read_parquet(self.folder / "index.parquet", dict.fromkeys(columns, ""))

    def samples_of(self, keys: Iterable[str], columns: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of some samples by their keys; keys that the index lacks are left out."""
        wanted = set(keys)
        return {row["sample"]: row for row in self.samples(["sample", *columns]) if row["sample"] in wanted}

    def label_kinds(self) -> dict[str, str]:
        """The types of the label columns by name: string or float32."""
        schema = self.index(self.facts.labels).schema if self.facts.labels else []
        return {field.name: str(field.type).replace("float", "float32") for field in schema}

    @property
    def can_be_updated(self) -> bool:
        """Whether the files that `--update` starts from exist; datasets of the first formats lack them."""
        return (self.folder / "inputs.parquet").exists() and (self.folder / "reports.parquet").exists()

    def inputs(self) -> Iterator[dict[str, Any]]:
        """The outcome of every frame of every input: rows of `INPUT_COLUMNS`."""
        yield from read_parquet(self.folder / "inputs.parquet", INPUT_COLUMNS)

    def reports(self) -> Iterator[dict[str, Any]]:
        """Every report: rows of `REPORT_COLUMNS`."""
        return read_parquet(self.folder / "reports.parquet", REPORT_COLUMNS)

    def records(self, split: str, fraction: float = 1.0) -> np.ndarray:
        """The records (N,) of type `records.RECORD` for the images of the first `fraction` of a split's patients."""
        return chosen(self._records, split, fraction)

    @cached_property
    def _records(self) -> np.ndarray:
        path = self.folder / "records.npy"
        try:
            if path.exists():
                return map_records(path, self.facts.images)
        except (OSError, ValueError) as error:
            raise CyclicError(f"{path} is damaged.", "Remove it: the index is then read instead.") from error
        try:
            return np.fromiter(records_of_index(self.folder / "index.parquet"), RECORD)
        except (ValueError, TypeError, OverflowError) as error:
            raise CyclicError(f"{self.folder / 'index.parquet'} is damaged.", "Make the dataset again.") from error

    def images(self, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Copy images out of the memory maps.

        Args:
            shards: (N,) integers.
            rows: (N,) integers, the rows within the shards.

        Returns:
            (N, C, H, W), uint8 or uint16.

        Raises:
            CyclicError: a shard is missing, damaged or too short.
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
        """Raise CyclicError when the index, the records, or a shard that they name is missing or cut short."""
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
    """The records of an index file."""
    names = ("sample", "patient", "split", "position", "has_image", "shard", "row", "height", "width")
    return records_of(read_parquet(index, {name: INDEX_COLUMNS[name] for name in names}))


def _upgraded(values: dict[str, Any], version: int) -> dict[str, Any]:
    """The metadata of an older format, converted to the present format."""
    if version == 1:  # the request was only its fingerprint
        values = {**values, "request": {"fingerprint": values.get("request", "")}}
    return {**values, "preprocessing": {"rendering": 1} | values.get("preprocessing", {})}


def _open_files() -> int:
    """The number of files this process may hold open, after raising the limit as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_530  # the default limit of Linux for the memory maps of a process
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def shard_images(folder: Path, shard: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The images (N, C, H, W) of a shard, as a memory map. Raises CyclicError when it is missing or damaged."""
    return _map_images(folder / shard_name(shard), image_shape)


def _map_images(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The `images` of a shard as a memory map (N, C, H, W). Its header is checked before the file is mapped."""
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
    """The output of `cyclic info` for a dataset. Raises CyclicError when it is damaged."""
    stored = StoredDataset(path)
    stored.check()
    return {"kind": "dataset", "path": str(path), **as_plain(stored.facts)}
