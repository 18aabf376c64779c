"""Parts of an embedding file: written by one process or several, continued after a stop, and merged in order.

A part holds the rows of `CHUNKS_PER_PART` chunks. Its digest covers the request and the identities of the chunks, so
that a part is reused only when both are unchanged. Its rows depend neither on the process that wrote it nor on how
often the work was stopped.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclic_cli.environment import place_among_processes
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report
from cyclic_cli.inference.embed_batches import BatchEncoder
from cyclic_cli.inference.embed_inputs import Chunk, InputStream, digest_of
from cyclic_cli.inference.embed_summary import EmbedSummary, record_chunk
from cyclic_cli.inference.streaming import read_ahead
from cyclic_cli.storage import embeddings_writing
from cyclic_cli.storage.embeddings import Facts
from cyclic_cli.storage.embeddings_draft import Draft
from cyclic_cli.storage.embeddings_writing import Rows
from cyclic_cli.storage.files import write_json_lines

if TYPE_CHECKING:
    from cyclic_cli.inference.load import Model

CHUNKS_PER_PART = 64
PATIENCE = 600.0  # seconds without a new part, after which the first process gives up waiting for the others


def write_parts(
    stream: InputStream, encoder: BatchEncoder, draft: Draft, request: dict[str, Any], kinds: dict[str, str],
    summary: EmbedSummary, report: Report,
) -> list[str]:  # fmt: skip
    """Write the missing parts that fall to this process, and return the digest of every part of the file."""
    rank, processes = place_among_processes()
    pending: deque[tuple[int, int]] = deque()  # number of a part that is being read, and of its chunks
    digests: list[str] = []
    began = time.monotonic()

    def reads() -> Iterator[Callable[[], Chunk]]:
        """The chunks of the parts to be written; an empty chunk ends each part, so that no batch spans two parts."""
        for number in range(2**62):
            chunks = list(islice(stream.chunks, CHUNKS_PER_PART))
            if not chunks:
                return
            digests.append(digest_of(request, [chunk.identity for chunk in chunks]))
            if number % processes == rank and draft.made_of(number).get("digest") != digests[-1]:
                pending.append((number, len(chunks) + 1))
                yield from (chunk.read for chunk in chunks)
                yield lambda: Chunk(0, [])

    with read_ahead(reads(), stream.readers) as chunks:
        encoded = encoder.encode(chunks)
        while (first := next(encoded, None)) is not None:
            number, count = pending.popleft()
            rows, part = [], EmbedSummary()
            left_out: list[dict[str, str]] = []
            for chunk, vectors in chain([first], islice(encoded, count - 1)):
                record_chunk(chunk, vectors, summary, stream.total, began, report)
                rows.append(_rows(chunk, vectors, kinds))
                left_out += chunk.left_out
                part.count(chunk)
            counts = {name: getattr(part, name) for name in ("inputs", "skipped", "images", "unread_texts")}
            draft.write_part(number, rows, kinds, {"digest": digests[number], "counts": counts, "left_out": left_out})
    return digests


def _rows(chunk: Chunk, vectors: np.ndarray, kinds: dict[str, str]) -> Rows:
    """The rows of a chunk: a column is a label where the dataset has one of that name, else a field of the input."""
    columns = {
        name: [one.labels[name] if name in one.labels else getattr(one, name) for one in chunk.encoder_inputs]
        for name in kinds
    }
    return Rows(columns, vectors)


def await_process(draft: Draft, process: int) -> None:
    """Wait until another process has written its parts.

    Raises:
        CyclicError: no process wrote a part for `PATIENCE` seconds.
    """
    parts, deadline = -1, 0.0
    while not draft.has_done(process):
        if (written := draft.count()) != parts:
            parts, deadline = written, time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            raise CyclicError(
                f"Process {process + 1} does not finish.", "Check the other processes, then repeat the command."
            )
        time.sleep(0.1)


def merge_parts(
    draft: Draft, digests: list[str], model: "Model", stream: InputStream, kinds: dict[str, str],
    summary: EmbedSummary, report: Report,
) -> None:  # fmt: skip
    """Write the parts of all processes as one file, with a list of the inputs that were left out.

    Raises:
        CyclicError: a part is missing.
    """
    totals, left_out = _outcome(draft, digests)
    summary.replace_counts(totals, left_out)
    first = next(draft.tables(len(digests)), None)
    if first is None:
        draft.clear()
        return
    summary.dimensions = int(first.schema.field("vector").type.list_size)
    facts = Facts(
        model=model.fingerprint, architecture=model.architecture, preprocessing=model.preprocessing,
        dimensions=summary.dimensions, **stream.facts,
    )  # fmt: skip
    report(Note("merging the parts"))
    # The list is written before the file: if the process is killed in between, the repeated command writes both.
    rejected = draft.path.with_name(f"{draft.path.name}.rejected.jsonl")
    if left_out:
        write_json_lines(rejected, left_out)
    else:
        rejected.unlink(missing_ok=True)  # an earlier file of that name may have left one
    summary.vectors = embeddings_writing.write(draft.path, lambda: draft.tables(len(digests)), facts, kinds)
    summary.texts = summary.vectors - summary.images
    draft.clear()


def _outcome(draft: Draft, digests: list[str]) -> tuple[Counter[str], list[dict[str, str]]]:
    """The counts of all parts together, and the inputs that were left out."""
    totals = Counter[str]()
    left_out: list[dict[str, str]] = []
    for number, digest in enumerate(digests):
        part = draft.made_of(number)
        if part.get("digest") != digest:
            raise CyclicError(f"Part {number + 1} of {draft.path} is missing.", "Repeat the command.")
        left_out += part["left_out"]
        totals.update(part["counts"])
    return totals, left_out
