"""`cyclic embed`: images and texts → vectors, as they come.

    pieces    a few inputs or samples at a time: files are read by decoder processes as `prepare` reads them, samples of
              a dataset from its memory map, ahead of the network
    vectors   a piece through the model
    parts     a fixed run of pieces each; written whole, in any order, by one process or several
    merge     the parts in order become the output

A piece holds a fixed number of inputs, so that nothing grows with their number, and the vectors of a part do not depend
on who makes it or how often the work was stopped.
"""

import hashlib
import json
import os
import queue
import shutil
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli import registry
from cyclic_cli.config import local_processes, place_among_processes, threads_each
from cyclic_cli.errors import REASONS, CyclicError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.inference.reconstruct import check_fits
from cyclic_cli.prepare import sources
from cyclic_cli.prepare.shards import DECODERS, ShardJob, write_shard
from cyclic_cli.prepare.sources import Input
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.storage import embeddings
from cyclic_cli.storage.dataset import StoredDataset, shard_images
from cyclic_cli.storage.dataset_draft import DatasetDraft
from cyclic_cli.storage.embeddings import Draft, Facts, Rows
from cyclic_cli.storage.files import write_json_lines

if TYPE_CHECKING:
    from cyclic_cli.inference.reconstruct import Model

PIECE = 16  # inputs, or samples, that are read together
PART = 64  # pieces of a part
LULL = 0.2  # seconds without a further input, after which those at hand are not kept waiting
AHEAD = 3  # pieces that are read ahead, for each process that reads
TIME_LIMIT = 300.0  # seconds one frame may take
PATIENCE = 600.0  # seconds without a further part that the first process waits for the others
ROOMY = 2**30  # bytes free in shared memory from which pixels pass through it
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class EmbedSummary:
    """What `cyclic embed` did. inputs = used + skipped + rejected; a sample of a dataset, or a text, is an input."""

    output: str | None = None
    model: str = ""  # fingerprint
    dimensions: int = 0
    inputs: int = 0
    used: int = 0
    skipped: int = 0
    rejected: int = 0
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    vectors: int = 0
    images: int = 0
    texts: int = 0
    seconds: float = 0.0
    vectors_per_second: float = 0.0

    def count(self, piece: "Piece") -> None:
        """Take a piece into account."""
        self.inputs += piece.inputs
        self.skipped += piece.passed_over
        reasons = Counter(self.rejected_by_reason)
        for left_out in piece.left_out:
            self.skipped += left_out["status"] == "skipped"
            self.rejected += left_out["status"] == "rejected"
            reasons.update([left_out["reason"]] if left_out["status"] == "rejected" else [])
        self.rejected_by_reason = dict(sorted(reasons.items()))
        self.used = self.inputs - self.skipped - self.rejected
        self.images += sum(item.kind == "image" for item in piece.items)
        self.texts += sum(item.kind == "text" for item in piece.items)
        self.vectors = self.images + self.texts


@dataclass(frozen=True)
class Item:
    """One image or text to be embedded."""

    key: str
    kind: str  # image or text
    value: Any  # (C, S, S) uint8 or uint16; or a text
    source: str = ""
    patient: str = ""
    study: str = ""
    split: str = ""
    text: str | None = None  # the report, of an image too, where the dataset has it
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass
class Piece:
    """A few inputs, read."""

    inputs: int
    items: list[Item]
    left_out: list[dict[str, str]] = field(default_factory=list)  # source, status, reason, detail
    passed_over: int = 0  # inputs that the model has no side for


@dataclass(frozen=True, kw_only=True)
class Offered:
    """What is to be embedded: pieces that can be read, in order, each told from others by what it is made of."""

    pieces: Iterator[tuple[str, Callable[[], Piece]]]  # what it is made of, and how it is read
    total: int | None  # inputs; None: not known before the end
    readers: int  # pieces that are read at the same time
    facts: dict[str, Any]  # of the embedding file: secret, dataset, labels
    request: dict[str, Any] = field(default_factory=dict)  # what decides the rows beside these and the inputs
    kinds: dict[str, str] = field(default_factory=dict)  # columns that not every file has, and Arrow's types of theirs


# ---------------------------------------------------------------------------------------------------- what is offered


def of_dataset(folder: Path, model: "Model", with_text: bool, report: Report) -> Offered:
    """The samples of a dataset: images, and texts where the model has a side for them."""
    stored = StoredDataset(folder)
    check_fits(stored, model, report)
    columns = ["sample", "patient", "study", "split", "source", "has_image", "has_text", "shard", "row", "text"]
    labels = stored.facts.labels

    def read(rows: list[dict[str, Any]]) -> Piece:
        shown = [row for row in rows if row["has_image"]]
        places = (np.array([row[name] for row in shown], np.int64) for name in ("shard", "row"))
        pixels = dict(zip((row["sample"] for row in shown), stored.images(*places), strict=True))
        items = []
        for row in rows:
            text = row["text"] if row["has_text"] else None
            values = {"image": pixels.get(row["sample"]), "text": text}
            said = {name: row[name] or "" for name in ("source", "patient", "study", "split")}
            items += [
                Item(
                    row["sample"], kind, value, **said, text=text if with_text else None,
                    labels={name: row[name] for name in labels},
                )
                for kind, value in values.items() if value is not None and kind in model.modalities
            ]  # fmt: skip
        return Piece(len(rows), items, passed_over=len(rows) - len({item.key for item in items}))

    def pieces() -> Iterator[tuple[str, Callable[[], Piece]]]:
        samples = stored.samples([*columns, *labels])
        while rows := list(islice(samples, PIECE)):
            made_of = f"{stored.facts.fingerprint} {rows[0]['sample']}"
            yield made_of, lambda rows=rows: read(rows)  # type: ignore[misc]

    facts = {
        "secret": str(stored.facts.request.get("secret", "")), "dataset": stored.facts.fingerprint, "labels": labels,
    }  # fmt: skip
    return Offered(
        pieces=pieces(), total=stored.facts.counts["samples"], readers=1, facts=facts, kinds=stored.label_kinds()
    )


def of_files(
    paths: Iterable[Path],
    out: Path | None,
    model: "Model",
    keyer: Keyer,
    scratch: Path,
    named: bool = True,
    allow_burned_in: bool = False,
    workers: int = 1,
) -> Offered:
    """Files, one after another.

    Args:
        paths: Of files and folders.
        out: The file that is made, whose pieces are always the same; None: what comes is not kept waiting for more.
        model: Whose preprocessing they get.
        keyer: Makes their keys.
        scratch: A folder that the pixels of a piece pass through.
        named: Whether sources are called by their paths, or by running numbers.
        allow_burned_in: Whether images that say that text is burned into them are taken.
        workers: Pieces that are read at the same time.
    """

    def read(first: int, inputs: list[Input]) -> Piece:
        if not inputs:
            return Piece(0, [])
        folder = scratch / str(first)
        (folder / ".unfinished").mkdir(parents=True)
        job = ShardJob(
            folder=str(folder), shard=0,
            inputs=[(place, os.path.abspath(item.path), item.member) for place, item in enumerate(inputs)],
            preprocessing=model.preprocessing, allow_burned_in=allow_burned_in, secret=keyer.secret,
            time_limit=TIME_LIMIT,
        )  # fmt: skip
        write_shard(job)
        size = model.preprocessing.size
        rows = list(DatasetDraft(folder).rows(0))
        names = [item.given if named else str(first + place) for place, item in enumerate(inputs)]
        piece = Piece(len(inputs), [])
        pixels = shard_images(folder, 0, (1, size, size)) if any(row["status"] == "used" for row in rows) else None
        for row in rows:
            source = names[row["input"]]
            if row["status"] == "used":
                assert pixels is not None
                study = row["study"] and keyer.key("patient of study", row["study"])
                patient = row["patient"] or study or keyer.key("patient of sample", row["sample"])
                piece.items.append(
                    Item(row["sample"], "image", pixels[row["row"]].copy(), source, patient, row["study"])
                )
            else:
                piece.left_out.append({"source": source, **{name: row[name] for name in LEFT_OUT}})
        shutil.rmtree(folder)
        return piece

    def pieces() -> Iterator[tuple[str, Callable[[], Piece]]]:
        waiting, first = sources.stream(paths, out), 1
        for inputs in _as_they_come(waiting) if out is None else iter(lambda: list(islice(waiting, PIECE)), []):
            made_of = _digest([(item.given, _state(item)) for item in inputs])
            yield made_of, lambda first=first, inputs=inputs: read(first, inputs)  # type: ignore[misc]
            first += len(inputs)

    facts, request = {"secret": keyer.check()}, {"paths": named, "burned_in": allow_burned_in}
    return Offered(pieces=pieces(), total=None, readers=workers, facts=facts, request=request)


def _as_they_come(inputs: Iterator[Input]) -> Iterator[list[Input]]:
    """Inputs in groups of `PIECE`; when none comes for a while those at hand, and then none, which holds up nothing."""
    found = _queued(inputs, PIECE)
    group: list[Input] = []
    while True:
        try:
            item = found.get(timeout=LULL if group else None)
        except queue.Empty:
            yield from (group, [])
            group = []
            continue
        if isinstance(item, BaseException):
            raise item
        if item is not None:
            group.append(item)
        if len(group) == PIECE or (item is None and group):
            yield group
            group = []
        if item is None:
            return


LEFT_OUT = ("status", "reason", "detail")


def _state(item: Input) -> tuple[int, int]:
    """Size and time of a file, which tell it from another one of its name."""
    try:
        found = os.stat(item.path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def of_texts(texts: Iterable[tuple[str, str]], keyer: Keyer, with_text: bool) -> Offered:
    """Texts, each with the name of where it comes from."""

    def pieces() -> Iterator[tuple[str, Callable[[], Piece]]]:
        waiting = iter(texts)
        while some := list(islice(waiting, PIECE)):
            items = [
                Item(keyer.key("text", text), "text", text, source, text=text if with_text else None)
                for source, text in some
            ]
            made_of = _digest(some)
            yield made_of, lambda items=items: Piece(len(items), items)  # type: ignore[misc]

    return Offered(pieces=pieces(), total=None, readers=1, facts={"secret": keyer.check()})


def joined(offers: list[Offered]) -> Offered:
    """Several offers, one after another."""
    if len(offers) == 1:
        return offers[0]
    totals = [offer.total for offer in offers]
    return Offered(
        pieces=chain.from_iterable(offer.pieces for offer in offers),
        total=None if None in totals else sum(total or 0 for total in totals),
        readers=max(offer.readers for offer in offers),
        facts=offers[0].facts,
        request=offers[0].request,
        kinds=offers[0].kinds,
    )


# --------------------------------------------------------------------------------------------------------------- task


def embed(
    offered: Offered, model: "Model", summary: EmbedSummary, batch: int | None = None, report: Report = silent
) -> Iterator[dict[str, Any]]:
    """Embed what is offered: `source`, `key`, `kind`, `patient` and `vector` of each, as soon as it is known.

    Args:
        offered: See `of_dataset`, `of_files` and `of_texts`.
        model: What embeds.
        summary: Counts up as results come.
        batch: Images, or texts, that go through the model together; None: what suits the device, less if that is too
            much for its memory.
        report: Gets Progress and Note events.

    Raises:
        CyclicError: the model has no side for what is offered.
    """
    began = time.monotonic()
    summary.model = model.fingerprint
    with _read_ahead((read for _, read in offered.pieces), offered.readers) as pieces:
        for piece, vectors in _Batches(model, batch).embedded(pieces):
            _told(piece, vectors, summary, offered.total, began, report)
            for item, vector in zip(piece.items, vectors, strict=True):
                yield {
                    "source": item.source, "key": item.key, "kind": item.kind, "patient": item.patient,
                    "vector": vector.tolist(),
                }  # fmt: skip


def embed_to_file(
    offered: Offered,
    model: "Model",
    out: Path,
    summary: EmbedSummary,
    with_text: bool = False,
    overwrite: bool = False,
    batch: int | None = None,
    report: Report = silent,
) -> None:
    """Embed what is offered into a file; continues what the same call left unfinished, here or in other processes.

    Args:
        offered: See `of_dataset`, `of_files` and `of_texts`; the same in every process of a launcher.
        model: What embeds.
        out: `.parquet`, `.safetensors`, `.npy` or `.jsonl`.
        summary: Counts up.
        with_text: Whether reports get a column.
        overwrite: Whether a file of that name may be replaced.
        batch: As of `embed`.
        report: Gets Progress and Note events.

    Raises:
        UsageError: the suffix names no form.
        CyclicError: the file exists, or cannot be written; nothing could be used; another process did not do its part.
    """
    registry.check(out.suffix, embeddings.FORMS, "form of embeddings")
    rank, processes = place_among_processes()
    draft = Draft(out)
    if not overwrite and (taken := draft.taken()):
        if rank:
            return  # it was there before: the first process says so
        raise CyclicError(f"{taken[0]} exists.", "Add --overwrite, or name another --out.")
    request = {
        "model": model.fingerprint, "text": with_text, "piece": PIECE * PART, **offered.facts, **offered.request,
    }  # fmt: skip
    draft.begin(request)
    kinds = dict.fromkeys(embeddings.TEXTS, "string") | offered.kinds | ({"text": "string"} if with_text else {})
    began, summary.model, summary.output = time.monotonic(), model.fingerprint, str(out)
    known = _make_parts(offered, model, draft, request, kinds, summary, batch, report)
    if rank:
        draft.say_done(rank)
        return
    for other in range(1, processes):
        _await_process(draft, other)
    _merge(draft, known, model, offered, kinds, summary, report)
    summary.seconds = round(time.monotonic() - began, 3)
    summary.vectors_per_second = round(summary.vectors / max(summary.seconds, 1e-9), 1)


def _make_parts(
    offered: Offered, model: "Model", draft: Draft, request: dict[str, Any], kinds: dict[str, str],
    summary: EmbedSummary, batch: int | None, report: Report,
) -> list[str]:  # fmt: skip
    """Make the parts that fall to this process, and say of each part there is what it is made of."""
    rank, processes = place_among_processes()
    waiting: deque[tuple[int, int]] = deque()  # parts to be made, and how many pieces they have
    known: list[str] = []
    began = time.monotonic()

    def mine() -> Iterator[Callable[[], Piece]]:
        """The pieces of the parts to be made; after each part an empty one, so that no batch is of two parts."""
        for number in range(2**62):
            pieces = list(islice(offered.pieces, PART))
            if not pieces:
                return
            known.append(_digest(request, [made_of for made_of, _ in pieces]))
            if number % processes == rank and draft.made_of(number).get("digest") != known[-1]:
                waiting.append((number, len(pieces) + 1))
                yield from (read for _, read in pieces)
                yield lambda: Piece(0, [])

    with _read_ahead(mine(), offered.readers) as pieces:
        embedded = _Batches(model, batch).embedded(pieces)
        while (first := next(embedded, None)) is not None:
            number, count = waiting.popleft()
            rows, part = [], EmbedSummary()
            left_out: list[dict[str, str]] = []
            for piece, vectors in chain([first], islice(embedded, count - 1)):
                _told(piece, vectors, summary, offered.total, began, report)
                rows.append(_rows(piece, vectors, kinds))
                left_out += piece.left_out
                part.count(piece)
            counts = {"inputs": part.inputs, "skipped": part.skipped, "images": part.images}
            draft.write_part(number, rows, kinds, {"digest": known[number], "counts": counts, "left_out": left_out})
    return known


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _merge(
    draft: Draft, known: list[str], model: "Model", offered: Offered, kinds: dict[str, str],
    summary: EmbedSummary, report: Report,
) -> None:  # fmt: skip
    """Make the parts of all processes one file. Raises CyclicError when one is missing."""
    left_out: list[dict[str, str]] = []
    total = Counter[str]()
    for number, made_of in enumerate(known):
        found = draft.made_of(number)
        if found.get("digest") != made_of:
            raise CyclicError(f"Part {number + 1} of {draft.path} is missing.", "Repeat the command.")
        left_out += found["left_out"]
        total.update(found["counts"])
    reasons = Counter(one["reason"] for one in left_out if one["status"] == "rejected")
    summary.inputs, summary.skipped, summary.images = (total[name] for name in ("inputs", "skipped", "images"))
    summary.rejected, summary.rejected_by_reason = reasons.total(), dict(sorted(reasons.items()))
    summary.used = summary.inputs - summary.skipped - summary.rejected
    summary.vectors = summary.texts = 0
    first = next(draft.tables(len(known)), None)
    if first is None:
        draft.clear()
        return
    summary.dimensions = int(first.schema.field("vector").type.list_size)
    facts = Facts(
        model=model.fingerprint, architecture=model.architecture, preprocessing=model.preprocessing,
        dimensions=summary.dimensions, **offered.facts,
    )  # fmt: skip
    report(Note("putting the parts together"))
    ledger = draft.path.with_name(f"{draft.path.name}.rejected.jsonl")  # before the file, so that a kill loses none
    if left_out:
        write_json_lines(ledger, left_out)
    else:
        ledger.unlink(missing_ok=True)  # of what stood there before
    summary.vectors = embeddings.write(draft.path, lambda: draft.tables(len(known)), facts, kinds)
    summary.texts = summary.vectors - summary.images
    draft.clear()


def _await_process(draft: Draft, process: int) -> None:
    """Wait until another process has made its parts. Raises CyclicError when nothing happens any more."""
    parts, deadline = -1, 0.0
    while not draft.has_done(process):
        if (there := draft.count()) != parts:
            parts, deadline = there, time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            raise CyclicError(f"Process {process + 1} does not end.", "Look at the other processes, and repeat it.")
        time.sleep(0.1)


class _Batches:
    """Pieces through a model, as many together as make a batch."""

    def __init__(self, model: "Model", size: int | None) -> None:
        self.model, self.size, self._may_shrink = model, size or model.batch, size is None

    def embedded(self, pieces: Iterator[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
        """Each piece with its embeddings (N, D), in order; one without inputs says that more may be long in coming."""
        held: list[Piece] = []
        for piece in pieces:
            held.append(piece)
            if not piece.inputs or sum(len(one.items) for one in held) >= self.size:
                yield from self._together(held)
                held = []
        yield from self._together(held)

    def _together(self, pieces: list[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
        items = [item for piece in pieces for item in piece.items]
        found: dict[int, np.ndarray] = {}
        for kind in ("image", "text"):
            places = [place for place, item in enumerate(items) if item.kind == kind]
            vectors = self._vectors(kind, [items[place].value for place in places])
            found |= dict(zip(places, vectors, strict=True))
        first = 0
        for piece in pieces:
            some = [found[place] for place in range(first, first + len(piece.items))]
            yield piece, np.stack(some) if some else np.empty((0, 0), np.float32)
            first += len(piece.items)

    def _vectors(self, kind: str, values: list[Any]) -> list[np.ndarray]:
        vectors: list[np.ndarray] = []
        while len(vectors) < len(values):
            some = values[len(vectors) : len(vectors) + self.size]
            try:
                found = self.model.embed_images(np.stack(some)) if kind == "image" else self.model.embed_texts(some)
            except RuntimeError as error:
                if type(error).__name__ != "OutOfMemoryError" or not self._may_shrink or self.size == 1:
                    raise
                self.size //= 2
            else:
                vectors += list(found)
        return vectors


def _rows(piece: Piece, vectors: np.ndarray, kinds: dict[str, str]) -> Rows:
    columns = {
        name: [item.labels[name] if name in item.labels else getattr(item, name) for item in piece.items]
        for name in kinds
    }
    return Rows(columns, vectors)


def _told(
    piece: Piece, vectors: np.ndarray, summary: EmbedSummary, total: int | None, began: float, report: Report
) -> None:
    """Count a piece, name what was left out, and say how far it is."""
    for left_out in piece.left_out:
        reason = left_out["detail"] or REASONS.get(left_out["reason"], left_out["reason"])
        report(Note(f"{left_out['source']}: {reason}", warning=True))
    summary.count(piece)
    summary.dimensions = vectors.shape[1] or summary.dimensions
    summary.seconds = round(time.monotonic() - began, 3)
    summary.vectors_per_second = round(summary.vectors / max(summary.seconds, 1e-9), 1)
    report(Progress(summary.inputs, total, "inputs"))


def _queued(values: Iterator[Any], size: int) -> "queue.Queue[Any]":
    """Values as a thread of its own finds them, at most `size` ahead, then None; or the error that ended the search."""
    found: queue.Queue[Any] = queue.Queue(size)

    def find() -> None:
        try:
            for value in values:
                found.put(value)
            found.put(None)
        except BaseException as error:  # raised again where the values are asked for
            found.put(error)

    threading.Thread(target=find, daemon=True).start()
    return found


@contextmanager
def _read_ahead(reads: Iterator[Callable[[], Piece]], readers: int) -> Iterator[Iterator[Piece]]:
    """The pieces in order, several of them read at a time by threads, and a few ahead of what is asked for.

    What is to be read is found by a thread of its own: a list on stdin may come slowly, and what came already is read
    meanwhile.
    """
    over = threading.Event()

    def pieces() -> Iterator[Piece]:
        while (piece := found.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece.result()

    with ThreadPoolExecutor(readers) as pool, DECODERS.at_work():  # a reader that hangs ends before it is waited for
        found = _queued((pool.submit(read) for read in takewhile(lambda _: not over.is_set(), reads)), AHEAD * readers)
        try:
            yield pieces()
        finally:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            with suppress(queue.Empty):  # a place for what the thread has in its hands
                found.get_nowait()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that pixels pass through: in memory where there is room."""
    roomy = os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= ROOMY
    with tempfile.TemporaryDirectory(prefix="cyclic-", dir=SHARED_MEMORY if roomy else None) as folder:
        yield Path(folder)


def reading_processes() -> int:
    """How many processes read files, so that reading and the network share the cores."""
    return threads_each(max(1, local_processes()[0]))


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file, each with its place; empty ones are passed over. Raises CyclicError."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{sources.printable(path)}:{number}", line.strip()
    except OSError as error:
        raise CyclicError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise CyclicError(f"{path} is not UTF-8 text.", "Save it as UTF-8, a text a line.") from error
