"""The cache of features for batches that come one after another, as `embed` and `evaluate` read them.

`FeatureCache` looks at all segments in each call. Here they are looked at once, and a table in memory says where an
item is. New features wait in memory until a segment of `cache.ITEMS` items, or of `cache.PATIENCE` seconds, can be
written.

Work never fails because features cannot be kept: they are then computed, and one warning says so.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from cyclic_cli.codes import cache, cache_lock, cache_size, segments
from cyclic_cli.codes.cache import Compute, FeatureCache, Tick, Wanted, checked_features, layout_of, no_tick, undamaged
from cyclic_cli.codes.cached_features import CachedFeatures, InMemory, Maps, Places
from cyclic_cli.codes.contents import DIGEST
from cyclic_cli.codes.segments import Layout, Segment
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.storage.files import writing


class OpenCache(FeatureCache):
    """Computes features of small batches, or reads those that were computed before. The last are written at its end."""

    def __init__(self, report: Report = silent, folder: Path | None = None, limit: int | None = None) -> None:
        """
        Args:
            report: Gets a warning, once, when features cannot be kept.
            folder: As in `FeatureCache`.
            limit: As in `FeatureCache`.

        Raises:
            UsageError: `$CYCLIC_CACHE_LIMIT` is no size.
        """
        super().__init__(folder, limit)
        self._report = report
        if limit is None:
            with suppress(OSError):  # `_opened` warns
                cache_size.limit_of(self._root)
        self._folders: dict[str, _Folder] = {}
        self._is_warned = False

    def __enter__(self) -> "OpenCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        folders, self._folders = self._folders, {}
        for folder in folders.values():
            try:
                folder.close()
            except CyclicError as failed:
                self._warn(failed)

    def features(
        self,
        encoder_key: str,
        dims: Mapping[str, int],
        contents: Sequence[bytes],
        compute: Compute,
        batch: int,
        tick: Tick = no_tick,
        report: Report = silent,
        about: Mapping[str, str] | None = None,
    ) -> dict[str, CachedFeatures]:
        """As `FeatureCache.features`, with two differences: `compute` is asked once for all items that are missing, and
        the result lies in memory.

        Numbers are rounded as the cache would give them back, so that the first call gives the same as later ones.

        Raises:
            CyclicError: the encoder gives numbers that are not finite, or of another shape.
        """
        layout, wanted = layout_of(encoder_key, dims), Wanted.of(contents, encoder_key)
        if layout.name not in self._folders:
            self._folders[layout.name] = self._opened(layout, about or {})
        folder = self._folders[layout.name]
        outputs, missing = folder.read(wanted.keys)
        tick(len(wanted.keys) - len(missing), len(wanted.keys))
        if len(missing):
            found = checked_features(compute(wanted.first[missing]), tuple(dims), layout, len(missing))
            new = [segments.as_stored(one) for one in found]
            for output, some in zip(outputs, new, strict=True):
                output[missing] = some
            try:
                folder.add(wanted.keys[missing], new)
            except CyclicError as error:
                self._warn(error)
            tick(len(wanted.keys), len(wanted.keys))
        places = Places(np.zeros(len(wanted.key_of), np.int64), wanted.key_of)
        maps = InMemory(outputs, layout)
        return {name: CachedFeatures(maps, number, places) for number, name in enumerate(dims)}

    def _opened(self, layout: Layout, about: Mapping[str, str]) -> "_Folder":
        path = self._root / layout.name
        try:
            with writing(path):
                use = cache_lock.use(path)
                cache_size.write_about(path, about)
                return _Folder(path, layout, self._limit, use, undamaged(path, layout, self._checked))
        except CyclicError as error:
            self._warn(error)
            return _Folder(path, layout, self._limit, None, [])

    def _warn(self, error: CyclicError) -> None:
        if not self._is_warned:
            self._report(Note(f"{error.message} Features are computed and not kept. {error.hint}", warning=True))
        self._is_warned = True


class _Folder:
    """The folder of an encoder while batches come."""

    def __init__(
        self, path: Path, layout: Layout, limit: int | None, use: cache_lock.Use | None, found: list[Segment]
    ) -> None:
        """`use` is None where nothing can be kept; `found` are the segments."""
        self._path, self._layout, self._limit, self._use = path, layout, limit, use
        self._segments = found
        self._maps = Maps(found, layout, use)  # the list grows
        self._tables = [_Table(*segments.first_rows(found))]
        self._waiting: dict[bytes, list[np.ndarray]] = {}  # new features by key and output, each (F,)
        self._since = time.monotonic()

    def read(self, keys: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The features (U, F) float32 of items by output, and the places (M,) of those that are not known."""
        outputs = [np.zeros((len(keys), width), np.float32) for width in self._layout.dims]
        numbers, rows = np.full(len(keys), -1), np.full(len(keys), -1)
        for table in self._tables:
            open_places = np.flatnonzero(numbers < 0)
            numbers[open_places], rows[open_places] = table.find(keys[open_places])
        for number in np.unique(numbers[numbers >= 0]).tolist():
            here = numbers == number
            for output, array in zip(outputs, self._maps.arrays(number)[1:], strict=True):
                output[here] = array[rows[here]]
        missing = []
        for place in np.flatnonzero(numbers < 0).tolist():
            if waiting := self._waiting.get(keys[place]):
                for output, one in zip(outputs, waiting, strict=True):
                    output[place] = one
            else:
                missing.append(place)
        return outputs, np.array(missing, np.int64)

    def add(self, keys: np.ndarray, outputs: list[np.ndarray]) -> None:
        """Take new features, and write a segment if it is time. Raises CyclicError, once, when that is impossible."""
        self._waiting |= dict(zip(keys.tolist(), map(list, zip(*outputs, strict=True)), strict=True))
        if len(self._waiting) >= cache.ITEMS or time.monotonic() - self._since >= cache.PATIENCE:
            self._write()

    def close(self) -> None:
        """Write what waits, and merge small segments where no other process maps them.

        Raises CyclicError when it cannot be written.
        """
        self._write()
        if self._use is None:
            return
        worth_merging = segments.worth_merging(self._path, self._segments)
        self._use.end()
        if worth_merging:
            with cache_lock.alone(self._path) as is_alone:
                if is_alone:
                    cache_size.remove_drafts(self._path)
                    segments.merge(undamaged(self._path, self._layout, {}))

    def _write(self) -> None:
        waiting, self._waiting, self._since = self._waiting, {}, time.monotonic()
        if not waiting or self._use is None:
            return
        keys = b"".join(key.ljust(DIGEST, b"\0") for key in waiting)  # numpy cuts zeros at the end
        outputs = [np.stack(some) for some in zip(*waiting.values(), strict=True)]
        try:
            with writing(self._path):
                self._check_room(len(keys) + sum(2 * output.size for output in outputs))
            path = segments.write_features(self._path, self._layout, keys, outputs)
        except CyclicError:
            self._use = None  # `_maps` still holds it, so that nobody removes what is mapped
            raise
        digests = np.frombuffer(keys, f"S{DIGEST}")
        kinds = segments.kinds_of(outputs)
        number, order = len(self._segments), np.argsort(digests)
        self._segments.append(Segment(path, len(digests), kinds, self._layout))
        self._tables.append(_Table(digests[order], np.full(len(order), number, np.int32), order))
        while len(self._tables) > 1 and len(self._tables[-2].keys) < 2 * len(self._tables[-1].keys):
            last = self._tables.pop()
            self._tables[-1] = self._tables[-1].joined(last)

    def _check_room(self, needed: int) -> None:
        root = self._path.parent
        limit = cache_size.limit_of(root) if self._limit is None else self._limit
        if cache_size.room(root, limit, needed) < needed:
            raise CyclicError(f"The cache {root} is full.", f"Raise its limit: export {cache_size.LIMIT}=SIZE")


@dataclass(frozen=True)
class _Table:
    """Where items are. A folder has several tables, each less than half as long as the one before it."""

    keys: np.ndarray  # (U,) sorted
    numbers: np.ndarray  # (U,) of the segment
    rows: np.ndarray  # (U,) in the segment

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of the segment (M,) and the row in it (M,) of items by their keys (M,); else -1."""
        if not len(self.keys):
            return np.full(len(keys), -1), np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[at] == keys
        return np.where(known, self.numbers[at], -1), np.where(known, self.rows[at], -1)

    def joined(self, other: "_Table") -> "_Table":
        """Both tables as one."""
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")
        numbers, rows = np.concatenate([self.numbers, other.numbers]), np.concatenate([self.rows, other.rows])
        return _Table(keys[order], numbers[order], rows[order])
