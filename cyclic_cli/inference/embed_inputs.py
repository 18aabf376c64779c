"""Inputs of `cyclic embed`: a dataset, image files or texts, as a stream of chunks of encoder inputs.

A chunk holds at most `CHUNK_SIZE` inputs, so that memory use does not grow with their number. Its identity is known
before it is read: chunks that an earlier call embedded already are not read again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.config import Preprocessing
from cyclic_cli.environment import local_processes, threads_each
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Report
from cyclic_cli.inference.load import check_fits
from cyclic_cli.inference.streaming import grouped_as_they_arrive
from cyclic_cli.prepare import sources
from cyclic_cli.prepare.shards import ShardJob, write_shard
from cyclic_cli.prepare.sources import Input
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.storage.dataset import StoredDataset, shard_images
from cyclic_cli.storage.dataset_draft import DatasetDraft

if TYPE_CHECKING:
    from cyclic_cli.inference.load import Model

CHUNK_SIZE = 16  # inputs (files, texts or samples of a dataset) that are read together
TIME_LIMIT = 300.0  # seconds that reading one frame may take
FREE_SHARED_MEMORY = 2**30  # bytes that must be free in shared memory for the scratch folder to lie there
SHARED_MEMORY = Path("/dev/shm")
LEFT_OUT = ("status", "reason", "detail")  # columns of the index about an input that is not used


@dataclass(frozen=True)
class EncoderInput:
    """One image or one text, with the columns of its row in the embedding file."""

    key: str
    kind: str  # image or text
    value: Any  # an image (C, S, S) uint8 or uint16; or a text
    source: str = ""
    patient: str = ""
    study: str = ""
    split: str = ""
    text: str | None = None  # the report; an image has the report of its sample
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass
class Chunk:
    """Some inputs that were read together. An empty chunk flushes the current batch."""

    input_count: int
    encoder_inputs: list[EncoderInput]
    left_out: list[dict[str, str]] = field(default_factory=list)  # source, status, reason, detail
    without_encoder: int = 0  # inputs of modalities that the model does not encode
    guesses: list[str] = field(default_factory=list)  # keys of `guesses.GUESSES`, one for each image and assumption
    unread_texts: int = 0  # texts of which the model knows no word; set when the chunk is embedded


@dataclass(frozen=True)
class PendingChunk:
    """A chunk that was not read yet."""

    identity: str  # changes when the inputs change
    read: Callable[[], Chunk]


@dataclass(frozen=True, kw_only=True)
class InputStream:
    """What is to be embedded, as chunks in a fixed order."""

    chunks: Iterator[PendingChunk]
    total: int | None  # number of inputs; None: not known in advance
    readers: int  # chunks that are read at the same time
    facts: dict[str, Any]  # of the embedding file: secret, dataset, labels
    request: dict[str, Any] = field(default_factory=dict)  # further options that the rows depend on
    kinds: dict[str, str] = field(default_factory=dict)  # Arrow types of the columns beyond those of every file
    cached: bool = False  # whether features come from the cache that training filled


def from_dataset(folder: Path, model: "Model", with_text: bool, report: Report) -> InputStream:
    """The samples of a dataset: their images, and their texts where the model has a text encoder.

    Raises:
        UsageError: the model takes images of another size.
    """
    stored = StoredDataset(folder)
    check_fits(stored, model, report)
    labels = stored.facts.labels
    columns = ["sample", "patient", "study", "split", "source", "has_image", "has_text", "shard", "row", "text"]

    def chunks() -> Iterator[PendingChunk]:
        samples = stored.samples([*columns, *labels])
        while rows := list(islice(samples, CHUNK_SIZE)):
            identity = f"{stored.facts.fingerprint} {rows[0]['sample']}"
            yield PendingChunk(identity, partial(_read_samples, stored, model.modalities, with_text, rows))

    facts = {
        "secret": str(stored.facts.request.get("secret", "")), "dataset": stored.facts.fingerprint, "labels": labels,
    }  # fmt: skip
    return InputStream(
        chunks=chunks(), total=stored.facts.counts["samples"], readers=1, facts=facts, kinds=stored.label_kinds(),
        cached=True,
    )  # fmt: skip


def _read_samples(stored: StoredDataset, modalities: list[str], with_text: bool, rows: list[dict[str, Any]]) -> Chunk:
    """The images and texts of some samples, given as rows of the dataset's index."""
    with_image = [row for row in rows if row["has_image"]]
    places = (np.array([row[name] for row in with_image], np.int64) for name in ("shard", "row"))
    pixels = dict(zip((row["sample"] for row in with_image), stored.images(*places), strict=True))
    encoder_inputs = []
    for row in rows:
        text = row["text"] if row["has_text"] else None
        values = {"image": pixels.get(row["sample"]), "text": text}
        origin = {name: row[name] or "" for name in ("source", "patient", "study", "split")}
        encoder_inputs += [
            EncoderInput(
                row["sample"], kind, value, **origin, text=text if with_text else None,
                labels={name: row[name] for name in stored.facts.labels},
            )
            for kind, value in values.items() if value is not None and kind in modalities
        ]  # fmt: skip
    used = {encoder_input.key for encoder_input in encoder_inputs}
    return Chunk(len(rows), encoder_inputs, without_encoder=len(rows) - len(used))


def from_files(
    paths: Iterable[Path],
    out: Path | None,
    model: "Model",
    keyer: Keyer,
    scratch: Path,
    named: bool = True,
    allow_burned_in: bool = False,
    workers: int = 1,
) -> InputStream:
    """Image files, read as `prepare` reads them.

    Args:
        paths: Files and folders.
        out: The output file, for which chunks always have the same size. None: results are streamed, and a chunk
            does not wait for inputs that arrive late.
        model: Its preprocessing is applied.
        keyer: Makes the keys.
        scratch: A folder for the pixels of the chunks that are being read.
        named: Whether `source` is the path of a file; else it is a running number.
        allow_burned_in: Whether images are used whose header says that text is burned into them.
        workers: Chunks that are read at the same time.
    """
    reader = _FileReader(model.preprocessing, keyer, scratch, named, allow_burned_in)

    def chunks() -> Iterator[PendingChunk]:
        found, first = sources.stream(paths, out), 1
        whole_chunks = iter(lambda: list(islice(found, CHUNK_SIZE)), [])
        for inputs in grouped_as_they_arrive(found, CHUNK_SIZE) if out is None else whole_chunks:
            identity = digest_of([(item.given, _size_and_time(item)) for item in inputs])
            yield PendingChunk(identity, partial(reader.read, first, inputs))
            first += len(inputs)

    facts, request = {"secret": keyer.check()}, {"paths": named, "burned_in": allow_burned_in}
    return InputStream(chunks=chunks(), total=None, readers=workers, facts=facts, request=request)


@dataclass(frozen=True)
class _FileReader:
    """Reads image files in decoder processes, which write the pixels as a shard into a scratch folder."""

    preprocessing: Preprocessing
    keyer: Keyer
    scratch: Path
    named: bool
    allow_burned_in: bool

    def read(self, first: int, inputs: list[Input]) -> Chunk:
        """The images of some files; `first` is the running number of the first of them."""
        if not inputs:
            return Chunk(0, [])
        folder = self.scratch / str(first)
        (folder / ".unfinished").mkdir(parents=True)
        job = ShardJob(
            folder=str(folder), shard=0,
            inputs=[(place, os.path.abspath(item.path), item.member) for place, item in enumerate(inputs)],
            preprocessing=self.preprocessing, allow_burned_in=self.allow_burned_in, secret=self.keyer.secret,
            time_limit=TIME_LIMIT,
        )  # fmt: skip
        write_shard(job)
        size = self.preprocessing.size
        rows = list(DatasetDraft(folder).rows(0))
        names = [item.given if self.named else str(first + place) for place, item in enumerate(inputs)]
        chunk = Chunk(len(inputs), [])
        pixels = shard_images(folder, 0, (1, size, size)) if any(row["status"] == "used" for row in rows) else None
        for row in rows:
            source = names[row["input"]]
            chunk.guesses += row.get("guesses") or []
            if row["status"] == "used":
                assert pixels is not None
                # a copy, because the shard is a memory map of a file that is removed below
                chunk.encoder_inputs.append(self._encoder_input(row, pixels[row["row"]].copy(), source))
            else:
                chunk.left_out.append({"source": source, **{name: row[name] for name in LEFT_OUT}})
        shutil.rmtree(folder)
        return chunk

    def _encoder_input(self, row: dict[str, Any], pixels: np.ndarray, source: str) -> EncoderInput:
        """An image with its keys: without a patient the study stands for the patient, without a study the sample."""
        study = row["study"] and self.keyer.key("patient of study", row["study"])
        patient = row["patient"] or study or self.keyer.key("patient of sample", row["sample"])
        return EncoderInput(row["sample"], "image", pixels, source, patient, row["study"])


def _size_and_time(item: Input) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file, which change when another file takes its name."""
    try:
        found = os.stat(item.path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def from_texts(texts: Iterable[tuple[str, str]], keyer: Keyer, with_text: bool) -> InputStream:
    """Texts, given as pairs of source and text; their keys are made from the text."""

    def chunks() -> Iterator[PendingChunk]:
        remaining = iter(texts)
        while some := list(islice(remaining, CHUNK_SIZE)):
            encoder_inputs = [
                EncoderInput(keyer.key("text", text), "text", text, source, text=text if with_text else None)
                for source, text in some
            ]
            yield PendingChunk(digest_of(some), partial(Chunk, len(some), encoder_inputs))

    return InputStream(chunks=chunks(), total=None, readers=1, facts={"secret": keyer.check()})


def concatenated(streams: list[InputStream]) -> InputStream:
    """Several streams, one after another; the facts are those of the first."""
    if len(streams) == 1:
        return streams[0]
    totals = [stream.total for stream in streams]
    return InputStream(
        chunks=chain.from_iterable(stream.chunks for stream in streams),
        total=None if None in totals else sum(total or 0 for total in totals),
        readers=max(stream.readers for stream in streams),
        facts=streams[0].facts,
        request=streams[0].request,
        kinds=streams[0].kinds,
    )


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file, each with `path:line` as its source; empty lines are left out.

    Raises:
        CyclicError: the file cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{sources.printable(path)}:{number}", line.strip()
    except OSError as error:
        raise CyclicError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise CyclicError(f"{path} is not UTF-8 text.", "Save it as UTF-8, with one text per line.") from error


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for pixels, in shared memory where enough of it is free."""
    enough = os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= FREE_SHARED_MEMORY
    with tempfile.TemporaryDirectory(prefix="cyclic-", dir=SHARED_MEMORY if enough else None) as folder:
        yield Path(folder)


def reading_processes() -> int:
    """How many processes read files: this process's share of the cores, which the network uses too."""
    return threads_each(max(1, local_processes()[0]))


def digest_of(*values: Any) -> str:
    """The SHA-256 of values that JSON can hold, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
