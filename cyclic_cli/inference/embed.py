"""`cyclic embed`: embeddings of images and texts, as a stream of results or as a file.

The phases, and the files that hold them:

    inputs    `embed_inputs.py`: files are read by decoder processes as `prepare` reads them, samples of a dataset from
              its memory map; either way in chunks of a fixed number of inputs, ahead of the model (`streaming.py`)
    batches   `embed_batches.py`: chunks go through the model in batches; of a dataset, features of frozen encoders
              come from the cache that training filled, and new ones go there
    parts     `embed_parts.py`: of a file, the rows of a fixed number of chunks; each part is written whole, by one
              process or several, and the parts are merged in order
    totals    `embed_summary.py`
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclic_cli import registry
from cyclic_cli.environment import place_among_processes
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Report, silent
from cyclic_cli.inference.embed_batches import BatchEncoder
from cyclic_cli.inference.embed_inputs import CHUNK_SIZE, InputStream
from cyclic_cli.inference.embed_parts import CHUNKS_PER_PART, await_process, merge_parts, write_parts
from cyclic_cli.inference.embed_summary import EmbedSummary, record_chunk
from cyclic_cli.inference.load import using_cache
from cyclic_cli.inference.streaming import read_ahead
from cyclic_cli.storage.embeddings import TEXTS
from cyclic_cli.storage.embeddings_draft import Draft
from cyclic_cli.storage.embeddings_writing import FORMS

if TYPE_CHECKING:
    from cyclic_cli.inference.load import Model


def embed_stream(
    stream: InputStream, model: "Model", summary: EmbedSummary, batch: int | None = None, report: Report = silent
) -> Iterator[dict[str, Any]]:
    """Embed a stream, and yield `source`, `key`, `kind`, `patient` and `vector` of each image or text at once.

    Args:
        stream: See `from_dataset`, `from_files` and `from_texts`.
        model: The model that embeds.
        summary: Its totals grow with the results.
        batch: Images, or texts, per batch. None: a size that suits the device, which is halved when memory runs out.
        report: Gets Progress and Note events.

    Raises:
        CyclicError: the model has no encoder for a modality of the stream.
    """
    began = time.monotonic()
    summary.model = model.fingerprint
    reads = (chunk.read for chunk in stream.chunks)
    with _cache_of(stream, model, report), read_ahead(reads, stream.readers) as chunks:
        for chunk, vectors in BatchEncoder(model, batch).encode(chunks):
            record_chunk(chunk, vectors, summary, stream.total, began, report)
            for encoder_input, vector in zip(chunk.encoder_inputs, vectors, strict=True):
                yield {
                    "source": encoder_input.source, "key": encoder_input.key, "kind": encoder_input.kind,
                    "patient": encoder_input.patient, "vector": vector.tolist(),
                }  # fmt: skip
    summary.warn(report)


def embed_to_file(
    stream: InputStream,
    model: "Model",
    out: Path,
    summary: EmbedSummary,
    with_text: bool = False,
    overwrite: bool = False,
    batch: int | None = None,
    report: Report = silent,
) -> None:
    """Embed a stream into a file; work that the same call left unfinished is continued.

    Under a launcher the processes share the parts, and the first of them writes the file.

    Args:
        stream: See `from_dataset`, `from_files` and `from_texts`; the same in every process of a launcher.
        model: The model that embeds.
        out: A `.parquet`, `.safetensors`, `.npy` or `.jsonl` file.
        summary: Gets the totals.
        with_text: Whether the file gets a column of reports.
        overwrite: Whether a file of that name may be replaced.
        batch: As in `embed_stream`.
        report: Gets Progress and Note events.

    Raises:
        UsageError: the suffix names no file format.
        CyclicError: the file exists, or cannot be written; another process did not write its parts.
    """
    registry.check(out.suffix, FORMS, "file format of embeddings")
    rank, processes = place_among_processes()
    draft = Draft(out)
    if not overwrite and (taken := draft.taken()):
        if rank:
            return  # the first process raises the error
        raise CyclicError(f"{taken[0]} exists.", "Add --overwrite, or name another --out.")
    request = {
        "model": model.fingerprint, "text": with_text, "piece": CHUNK_SIZE * CHUNKS_PER_PART,
        **stream.facts, **stream.request,
    }  # fmt: skip
    draft.begin(request)
    kinds = dict.fromkeys(TEXTS, "string") | stream.kinds | ({"text": "string"} if with_text else {})
    began, summary.model, summary.output = time.monotonic(), model.fingerprint, str(out)
    with _cache_of(stream, model, report):
        digests = write_parts(stream, BatchEncoder(model, batch), draft, request, kinds, summary, report)
    if rank:
        draft.mark_done(rank)
        return
    for other in range(1, processes):
        await_process(draft, other)
    merge_parts(draft, digests, model, stream, kinds, summary, report)
    summary.warn(report)
    summary.measure_time(began)


def _cache_of(stream: InputStream, model: "Model", report: Report) -> AbstractContextManager[object]:
    """The cache of features while a dataset is embedded; files and typed texts do not use it."""
    return using_cache(model, report) if stream.cached else nullcontext()
