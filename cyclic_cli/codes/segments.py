"""A segment: a file with the features of some items. The cache writes it once, under a new name, and never changes it.

It is a safetensors file, with the names of the outputs replaced by their numbers:

    digests    (n, 16) uint8, see `cache`
    0, 1, …    (n, F) float16 or float32, the features by output
    metadata   the CRC-32 of everything else

Names of segments begin with the time. Where several hold the same item, the first in the order of names counts, so that
all later readers get the same bits.
"""

import json
import mmap
import os
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.codes.contents import DIGEST
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.files import replacing

SUFFIX = ".safetensors"
FORMAT = 1  # enters the name of the folder: other formats are never looked at
DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
"""Number types by their names in safetensors."""
EXACT = 1e-3  # largest relative change of an item's features by float16
LONGEST_HEADER = 2**16  # bytes
BLOCK = 2**20  # bytes that are read or written together
SMALL = 2**27  # bytes; smaller segments are merged
FEW = 8  # small segments that may stay


@dataclass(frozen=True)
class Layout:
    """What all segments of an encoder have in common."""

    name: str  # of the encoder's folder; a segment of another folder is refused
    dims: tuple[int, ...]  # F of each output


@dataclass(frozen=True)
class Segment:
    """A complete and undamaged segment."""

    path: Path
    count: int  # n
    kinds: tuple[str, ...]  # number type of each output, as safetensors names it
    layout: Layout

    @property
    def size(self) -> int:
        """Bytes of the file."""
        header = len(_header(self.count, self.kinds, self.layout, 0))
        return header + sum(count * width * dtype.itemsize for count, width, dtype in self._shapes())

    def arrays(self) -> list[np.ndarray]:
        """The digests (n, 16), then the features (n, F) of each output, in one memory map of the file."""
        with self.path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays, offset = [], len(_header(self.count, self.kinds, self.layout, 0))
        for count, width, dtype in self._shapes():
            arrays.append(np.ndarray((count, width), dtype, content, offset))
            offset += count * width * dtype.itemsize
        return arrays

    def digests(self) -> np.ndarray:
        """The digests (n,) as one value each, which can be sorted and compared."""
        return np.ascontiguousarray(self.arrays()[0]).view(f"S{DIGEST}")[:, 0]

    def _shapes(self) -> Iterator[tuple[int, int, np.dtype[Any]]]:
        yield self.count, DIGEST, DTYPES["U8"]
        for width, kind in zip(self.layout.dims, self.kinds, strict=True):
            yield self.count, width, DTYPES[kind]


def new_path(folder: Path, at: int | None = None) -> Path:
    """A new name for a segment, of the time `at` in nanoseconds, or of now."""
    return folder / f"{time.time_ns() if at is None else at:020d}-{secrets.token_hex(8)}{SUFFIX}"


def write_features(folder: Path, layout: Layout, digests: bytes, outputs: Sequence[np.ndarray]) -> Path:
    """Write a segment.

    Args:
        folder: The folder of the encoder.
        layout: The layout of its segments.
        digests: n digests, one after the other.
        outputs: Finite features (n, F) float32 of each output.

    Returns:
        The path of the segment.

    Raises:
        CyclicError: the disk is full, or the folder cannot be written.
    """
    columns = [np.frombuffer(digests, np.uint8).reshape(-1, DIGEST), *outputs]
    kinds = kinds_of(outputs)
    path = new_path(folder)
    _write(path, layout, len(columns[0]), kinds, lambda column: _row_blocks(columns[column]))
    return path


def kinds_of(outputs: Sequence[np.ndarray]) -> tuple[str, ...]:
    """The number types in which a segment stores features (n, F) float32, by output."""
    return tuple("F16" if _survives_float16(output) else "F32" for output in outputs)


def as_stored(features: np.ndarray) -> np.ndarray:
    """Features (n, F) float32 as a segment gives them back: those of items that survive float16 are rounded to it."""
    with np.errstate(over="ignore"):
        rounded = features.astype(np.float16).astype(np.float32)
    return np.where(_rows_that_survive(features)[:, None], rounded, features)


def _survives_float16(features: np.ndarray) -> bool:
    """Whether all items survive float16, see `_rows_that_survive`."""
    return all(_rows_that_survive(block).all() for block in _row_blocks(features))


def _rows_that_survive(features: np.ndarray) -> np.ndarray:
    """Whether float16 changes an item's features (n, F) by no more than `EXACT` of their Euclidean norm: (n,) bool."""
    exact = features.astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = features.astype(np.float16).astype(np.float64)
    survives: np.ndarray = np.linalg.norm(rounded - exact, axis=1) <= EXACT * np.linalg.norm(exact, axis=1)
    return survives


def _row_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    rows = _rows_at_once(array)
    for first in range(0, len(array), rows):
        yield array[first : first + rows]


def _rows_at_once(array: np.ndarray) -> int:
    return max(1, BLOCK // max(1, array[:1].nbytes))


def _write(
    path: Path, layout: Layout, count: int, kinds: tuple[str, ...], blocks: Callable[[int], Iterator[np.ndarray]]
) -> None:
    """Write a segment whose columns (digests, then outputs) come in blocks of rows."""
    check = _first_checksum(count, kinds, layout)
    with replacing(path) as draft, open(draft, "xb", opener=private) as file:
        file.write(_header(count, kinds, layout, 0))
        for column, kind in enumerate(("U8", *kinds)):
            for block in blocks(column):
                content = np.ascontiguousarray(block, DTYPES[kind])
                check = zlib.crc32(content.data, check)
                file.write(content.data)
        file.seek(0)
        file.write(_header(count, kinds, layout, check))


def private(path: str, flags: int) -> int:
    """Open a new file that only its owner may read, whatever the umask."""
    number = os.open(path, flags | os.O_CLOEXEC, 0o600)
    os.fchmod(number, 0o600)
    return number


def _header(count: int, kinds: tuple[str, ...], layout: Layout, check: int) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"crc32": f"{check:08x}"}}
    begin = 0
    widths = (DIGEST, *layout.dims)
    names = ("digests", *map(str, range(len(layout.dims))))
    for name, width, kind in zip(names, widths, ("U8", *kinds), strict=True):
        end = begin + count * width * DTYPES[kind].itemsize
        entries[name] = {"dtype": kind, "shape": [count, width], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % DIGEST)
    return len(text).to_bytes(8, "little") + text


def _first_checksum(count: int, kinds: tuple[str, ...], layout: Layout) -> int:
    return zlib.crc32(layout.name.encode() + _header(count, kinds, layout, 0))


def read(path: Path, layout: Layout) -> Segment:
    """Check a whole segment.

    Raises:
        ValueError: it is damaged, cut short, or not of this layout.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError("the header is too long")
        text = file.read(length)
        size = os.fstat(file.fileno()).st_size
    try:
        entries = json.loads(text)
        count = int(entries["digests"]["shape"][0])
        kinds = tuple(str(entries[str(number)]["dtype"]) for number in range(len(layout.dims)))
        check = int(entries["__metadata__"]["crc32"], 16)
        expected = _header(count, kinds, layout, check)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError("the header is damaged") from error
    segment = Segment(path, count, kinds, layout)
    if count < 1 or "U8" in kinds or expected != length.to_bytes(8, "little") + text or size != segment.size:
        raise ValueError("the header does not fit the file")
    if check != _checksum(segment):
        raise ValueError("the checksum differs")
    return segment


def count_of(path: Path) -> int:
    """The number of items in a segment by its header alone; 0 if that is damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return int(json.loads(file.read(length))["digests"]["shape"][0]) if length <= LONGEST_HEADER else 0
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


def _checksum(segment: Segment) -> int:
    """The CRC-32 of a segment. Raises ValueError when a number is not finite."""
    check = _first_checksum(segment.count, segment.kinds, segment.layout)
    for array, kind in zip(segment.arrays(), ("U8", *segment.kinds), strict=True):
        for block in _row_blocks(array):
            check = zlib.crc32(block.data, check)
            if kind != "U8" and not _all_finite(block):
                raise ValueError("a number is not finite")
    return check


def _all_finite(block: np.ndarray) -> bool:
    """Whether all numbers (n, F) float16 or float32 are finite: not all bits of their exponents are set."""
    exponent = np.uint16(0x7C00) if block.itemsize == 2 else np.uint32(0x7F800000)
    return not bool(((block.view(exponent.dtype) & exponent) == exponent).any())


def first_rows(segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each distinct item of some segments is found first.

    Returns:
        Sorted digests (U,), the number of the segment (U,) int32, and the row in it (U,) int64.
    """
    if not segments:
        return np.empty(0, f"S{DIGEST}"), np.empty(0, np.int32), np.empty(0, np.int64)
    digests, place = np.unique(np.concatenate([one.digests() for one in segments]), return_index=True)
    starts = np.cumsum([0, *(one.count for one in segments[:-1])])
    number = np.searchsorted(starts, place, side="right") - 1
    return digests, number.astype(np.int32), place - starts[number]


def find(segments: Sequence[Segment], keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the segment (U,) and the row in it (U,) of items with these digests (U,); else -1."""
    digests, numbers, rows = first_rows(segments)
    if not len(digests):
        return np.full(len(keys), -1, np.int32), np.full(len(keys), -1, np.int64)
    at = np.minimum(np.searchsorted(digests, keys), len(digests) - 1)
    known = digests[at] == keys
    return np.where(known, numbers[at], -1), np.where(known, rows[at], -1)


def worth_merging(folder: Path, segments: Sequence[Segment]) -> bool:
    """Whether there are many small segments, or drafts that killed processes left behind."""
    return sum(one.size < SMALL for one in segments) > FEW or any(folder.glob(".*.tmp"))


def merge(segments: Sequence[Segment], keep: np.ndarray | None = None) -> None:
    """Merge small segments into larger ones. No other process may use them.

    Args:
        segments: All segments of a folder, in the order of their names.
        keep: Digests (U,), sorted: other items are removed. None keeps all.
    """
    digests, numbers, rows = first_rows(segments)
    if keep is not None:
        kept = np.isin(digests, keep)
        numbers, rows = numbers[kept], rows[kept]
    waiting: dict[tuple[str, ...], list[tuple[Segment, np.ndarray]]] = {}
    for number, segment in enumerate(segments):
        own = np.sort(rows[numbers == number])
        if len(own) == segment.count and segment.size >= SMALL:
            continue
        some = waiting.setdefault(segment.kinds, [])
        some.append((segment, own))
        if sum(one.size for one, _ in some) >= SMALL:
            _replace(waiting.pop(segment.kinds))
    for some in waiting.values():
        _replace(some)


def _replace(parts: list[tuple[Segment, np.ndarray]]) -> None:
    """Replace segments of the same number types by one with the given rows of each. Does nothing on a full disk."""
    first = parts[0][0]
    count = sum(len(rows) for _, rows in parts)
    if len(parts) == 1 and count == first.count:
        return

    def blocks(column: int) -> Iterator[np.ndarray]:
        for segment, rows in parts:
            array = segment.arrays()[column]
            at_once = _rows_at_once(array)
            for begin in range(0, len(rows), at_once):
                yield array[rows[begin : begin + at_once]]

    if count:
        at = int(first.path.name.partition("-")[0])  # duplicates in other segments keep their order
        try:
            _write(new_path(first.path.parent, at), first.layout, count, first.kinds, blocks)
        except CyclicError:
            return
    for segment, _ in parts:
        segment.path.unlink(missing_ok=True)
