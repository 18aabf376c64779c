"""Search past a million vectors: an inverted file of faiss beside the embeddings, which looks at a part of them.

Vectors are sorted into cells around centres (k-means); a search looks into the `PROBED` cells whose centres are nearest
to the query. That misses few: recall@10 on a million clustered vectors is measured in `tests/benchmarks/search.py`.
The index is made once, in `NAME.faiss`, and made again when the embeddings are others.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.storage.embeddings import EmbeddingFile
from cyclic_cli.storage.files import replacing, write_text

PROBED = 32  # cells that a search looks into
LEARNED = 64  # vectors a cell that the centres are learned from
SEED = 0


class Approximate:
    """The index of an embedding file, read or made.

    Raises:
        CyclicError: the extra `faiss` is not installed, or the index cannot be written.
    """

    def __init__(self, file: EmbeddingFile, report: Report = silent) -> None:
        try:
            import faiss
        except ImportError:
            raise CyclicError("--index faiss needs faiss.", "pip install 'cyclic-cli[faiss]'") from None
        self._faiss: Any = faiss
        path = file.path.with_name(f"{file.path.name}.faiss")
        mark = path.with_name(f"{path.name}.of")
        state = _state(file.path)
        self._index: Any = self._read(path) if _said(mark) == f"{state} {_size(path)}" else None
        if self._index is None or (self._index.ntotal, self._index.d) != (len(file), file.facts.dimensions):
            report(Note(f"making the index {path}, once"))
            made = self._made(file)
            with replacing(path) as draft:
                try:
                    faiss.write_index(made, str(draft))
                except RuntimeError as error:  # faiss has no other
                    raise CyclicError(f"{path} cannot be written.", "Check the folder and the disk.") from error
            write_text(mark, f"{state} {_size(path)}")
            self._index = made

    def _read(self, path: Path) -> Any:
        """The index, mapped into memory; None of a file that is none."""
        try:
            return self._faiss.read_index(str(path), self._faiss.IO_FLAG_MMAP)
        except RuntimeError:  # faiss has no other
            return None

    def _made(self, file: EmbeddingFile) -> Any:
        faiss, size = self._faiss, file.facts.dimensions
        cells = max(1, min(4096, round(4 * math.sqrt(len(file))), len(file) // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.niter = SEED, 10
        generator = np.random.default_rng(SEED)
        some = np.sort(generator.permutation(len(file))[: LEARNED * cells])
        index.train(np.ascontiguousarray(file.vectors(some)))
        for block in file.blocks():
            index.add(np.ascontiguousarray(block))
        return index

    def nearest(
        self, query: np.ndarray, count: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `neighbours.nearest`, but of the rows in the cells that are looked into."""
        faiss = self._faiss
        settings = {"nprobe": min(PROBED, self._index.nlist)}
        if allowed is not None:
            settings["sel"] = faiss.IDSelectorBatch(np.flatnonzero(allowed))
        products, numbers = self._index.search(query[None], count, params=faiss.SearchParametersIVF(**settings))
        found = numbers[0] >= 0
        return products[0][found], numbers[0][found]


def _said(mark: Path) -> str:
    """What stands in the file beside an index: of which embeddings it is, and its size."""
    try:
        return mark.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _size(path: Path) -> int:
    """Bytes of a file, -1 of none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _state(path: Path) -> str:
    """What tells a file from another one of its name."""
    known = path.stat()
    return f"{known.st_size} {known.st_mtime_ns} {PROBED}"
