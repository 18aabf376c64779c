"""Approximate nearest-neighbour search for more than a million vectors, with an inverted file index of faiss.

Vectors are assigned to cells around k-means centres. A search compares the query with the vectors of the `PROBED` cells
whose centres are nearest to it. `tests/benchmarks/search.py` measures the recall@10 on a million clustered vectors. The
index is stored as `NAME.faiss` beside the embeddings, and is built again when they change.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.storage.embeddings import EmbeddingFile
from cyclic_cli.storage.files import replacing, write_text

PROBED = 32  # cells that are searched
TRAINED = 64  # vectors per cell that the centres are fitted to
SEED = 0


class Approximate:
    """The faiss index of an embedding file, which is read, or built if there is none.

    Raises:
        CyclicError: faiss is not installed, or the index cannot be written.
    """

    def __init__(self, file: EmbeddingFile, report: Report = silent) -> None:
        try:
            import faiss
        except ImportError:
            raise CyclicError("--index faiss needs faiss.", "pip install 'cyclic-cli[faiss]'") from None
        self._faiss: Any = faiss
        path = file.path.with_name(f"{file.path.name}.faiss")
        stamp = path.with_name(f"{path.name}.of")
        state = _state(file.path)
        self._index: Any = self._read(path) if _content(stamp) == f"{state} {_size(path)}" else None
        if self._index is None or (self._index.ntotal, self._index.d) != (len(file), file.facts.dimensions):
            report(Note(f"building the index {path}"))
            built = self._build(file)
            with replacing(path) as draft:
                try:
                    faiss.write_index(built, str(draft))
                except RuntimeError as error:  # the only error that faiss raises
                    raise CyclicError(f"{path} cannot be written.", "Check the folder and the disk.") from error
            write_text(stamp, f"{state} {_size(path)}")
            self._index = built

    def _read(self, path: Path) -> Any:
        """The index, memory-mapped; None if the file is not an index."""
        try:
            return self._faiss.read_index(str(path), self._faiss.IO_FLAG_MMAP)
        except RuntimeError:  # the only error that faiss raises
            return None

    def _build(self, file: EmbeddingFile) -> Any:
        faiss, size = self._faiss, file.facts.dimensions
        cells = max(1, min(4096, round(4 * math.sqrt(len(file))), len(file) // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.niter = SEED, 10
        generator = np.random.default_rng(SEED)
        chosen = np.sort(generator.permutation(len(file))[: TRAINED * cells])
        index.train(np.ascontiguousarray(file.vectors(chosen)))
        for block in file.blocks():
            index.add(np.ascontiguousarray(block))
        return index

    def nearest(
        self, query: np.ndarray, count: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like `neighbours.nearest`, but among the rows of the searched cells."""
        faiss = self._faiss
        settings = {"nprobe": min(PROBED, self._index.nlist)}
        if allowed is not None:
            settings["sel"] = faiss.IDSelectorBatch(np.flatnonzero(allowed))
        products, numbers = self._index.search(query[None], count, params=faiss.SearchParametersIVF(**settings))
        found = numbers[0] >= 0
        return products[0][found], numbers[0][found]


def _content(stamp: Path) -> str:
    """The file beside an index, which holds the state of its embeddings and its own size; empty if there is none."""
    try:
        return stamp.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _size(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _state(path: Path) -> str:
    """Changes when the embeddings change: size in bytes, modification time in ns, and `PROBED`."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns} {PROBED}"
