"""Keeps the features that frozen encoders give, so that they are computed once for every image and text.

The cache is a folder with a folder for each encoder (`cache_size`), which holds segments: files with the features of
some items (`segments`). A process appends segments while it computes, at least one every 20 seconds or 512 items, so
that a killed one loses little. Several processes may fill the same folder at once: a segment has a random name, and
stands there whole or not at all.

Features can be inverted to texts and images, and are as private as these: folders and files are for their owner alone.
They hold neither texts nor paths. Items are known by digests that are hashed once more with the encoder's key.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cyclic_cli.codes import cache_lock, cache_size, segments
from cyclic_cli.codes.cached_features import CachedFeatures, Maps, Places
from cyclic_cli.codes.contents import DIGEST
from cyclic_cli.codes.segments import Layout, Segment
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Note, Report, silent
from cyclic_cli.storage.files import writing

PATIENCE = 20.0  # seconds of computing after which a segment is written
ITEMS = 512  # items after which a segment is written

Compute = Callable[[np.ndarray], Mapping[str, np.ndarray]]
Tick = Callable[[int, int], None]


def no_tick(done: int, total: int) -> None:
    """Takes progress, and shows none."""


class FeatureCache:
    """Computes features, or reads those that were computed before.

    Args:
        folder: The folder of the cache, else `codes` in the user's cache folder.
        limit: How many bytes it may use, else see `cache_size.limit_of`.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self._root = cache_size.default_folder() if folder is None else folder
        self._limit = limit
        self._checked: dict[Path, Segment | None] = {}  # None where a segment is damaged

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
        """The features of N items by the name of the output.

        Args:
            encoder_key: Names all that the numbers depend on: encoder, preprocessing, kind of device, versions.
            dims: F of each output by name.
            contents: The digests of the items, see `contents`. Equal items are computed once.
            compute: Takes the numbers (M,) of items, and returns their features (M, F) by output.
            batch: Most items that `compute` is asked for at a time.
            tick: Is told how many distinct items are done, and how many there are, while features are computed. It may
                raise an error to stop; what was computed until then is kept.
            report: Is told when features that do not fit the limit go elsewhere.
            about: What the encoder is, for people, see `cache_size.ABOUT`. It must name neither contents nor paths.

        Raises:
            CyclicError: the encoder gives numbers that are not finite; the disk is full; the features fit neither the
                limit nor a temporary folder; the folder of the cache cannot be written or kept private.
        """
        layout = layout_of(encoder_key, dims)
        filling = _Filling(
            folder=self._root / layout.name,
            layout=layout,
            outputs=tuple(dims),
            wanted=Wanted.of(contents, encoder_key),
            limit=self._limit,
            checked=self._checked,
        )
        cache_size.write_about(self._root / layout.name, about or {})
        filling.complete(compute, batch, tick, report)
        if filling.merge_small():  # for a moment others could remove the folder
            filling.complete(compute, batch, tick, report)
        return filling.result()


def layout_of(encoder_key: str, dims: Mapping[str, int]) -> Layout:
    """The layout of an encoder's segments; arguments as in `FeatureCache.features`."""
    name = json.dumps([segments.FORMAT, encoder_key, dict(dims)]).encode()
    return Layout(hashlib.blake2b(name, digest_size=DIGEST).hexdigest(), tuple(dims.values()))


@dataclass(frozen=True)
class Wanted:
    """The items of a call: N, of which U are distinct."""

    keys: np.ndarray  # (U,) digests hashed once more with the encoder's key, so that texts cannot be looked up by hash
    first: np.ndarray  # (U,) number of the first item with this key
    key_of: np.ndarray  # (N,) number of the key of an item

    @classmethod
    def of(cls, contents: Sequence[bytes], encoder_key: str) -> "Wanted":
        """Arguments as in `FeatureCache.features`."""
        if any(len(content) != DIGEST for content in contents):
            raise ValueError(f"a digest has {DIGEST} bytes")
        given = np.frombuffer(b"".join(contents), f"S{DIGEST}")
        distinct, first, key_of = np.unique(given, return_index=True, return_inverse=True)
        secret, whole = hashlib.sha256(encoder_key.encode()).digest(), distinct.tobytes()
        keyed = (
            hashlib.blake2b(whole[begin : begin + DIGEST], key=secret, digest_size=DIGEST).digest()
            for begin in range(0, len(whole), DIGEST)
        )
        return cls(np.frombuffer(b"".join(keyed), f"S{DIGEST}"), first, key_of.reshape(-1))


class _Filling:
    """One call of `FeatureCache.features`: looks at the segments, appends what is missing, and merges small ones."""

    def __init__(
        self,
        *,
        folder: Path,
        layout: Layout,
        outputs: tuple[str, ...],
        wanted: Wanted,
        limit: int | None,
        checked: dict[Path, Segment | None],
    ) -> None:
        self._folder, self._layout, self._outputs, self._wanted = folder, layout, outputs, wanted
        self._limit, self._checked = limit, checked
        self._use = cache_lock.use(folder)
        self._elsewhere: _TemporaryFolder | None = None
        self._look()

    def complete(self, compute: Compute, batch: int, tick: Tick, report: Report) -> None:
        """Compute the missing items, and append them to the cache or to a temporary folder."""
        if not len(self._missing):
            return
        if not self._elsewhere and not self._has_room():
            self._elsewhere = self._temporary(report)
        pending = _Pending(self._elsewhere.path if self._elsewhere else self._folder, self._layout)
        total = len(self._wanted.keys)
        done = total - len(self._missing)
        order = self._missing[np.argsort(self._wanted.first[self._missing])]
        try:
            tick(done, total)
            for begin in range(0, len(order), batch):
                some = order[begin : begin + batch]
                features = checked_features(compute(self._wanted.first[some]), self._outputs, self._layout, len(some))
                pending.add(self._wanted.keys[some], features)
                done += len(some)
                tick(done, total)
        finally:
            pending.write()
        self._look()

    def merge_small(self) -> bool:
        """Merge small segments into larger ones, where no other process maps them."""
        if self._elsewhere or not segments.worth_merging(self._folder, self._segments):
            return False
        self._merge(None)
        return True

    def result(self) -> dict[str, CachedFeatures]:
        """The features by the name of the output."""
        if len(self._missing):
            raise CyclicError(f"Somebody removes files of {self._folder}.", "Repeat the command.")
        places = Places(self._segment_of[self._wanted.key_of], self._row_of[self._wanted.key_of])
        maps = Maps(self._segments, self._layout, (self._use, self._elsewhere))
        return {name: CachedFeatures(maps, number, places) for number, name in enumerate(self._outputs)}

    def _look(self) -> None:
        """Find out which segments there are, where the wanted items are, and which are missing."""
        self._segments = self._read(self._folder)
        if self._elsewhere:
            self._segments += self._read(self._elsewhere.path)
        self._segment_of, self._row_of = segments.find(self._segments, self._wanted.keys)
        self._missing = np.flatnonzero(self._segment_of < 0)

    def _read(self, folder: Path) -> list[Segment]:
        return undamaged(folder, self._layout, self._checked)

    @property
    def _needed(self) -> int:
        """Bytes of the missing items; float16 is enough for nearly all encoders."""
        return len(self._missing) * self._item_bytes

    @cached_property
    def _item_bytes(self) -> int:
        return DIGEST + 2 * sum(self._layout.dims)

    def _has_room(self) -> bool:
        """Whether the missing items fit the limit, after what is not needed has been removed."""
        root = self._folder.parent
        limit = cache_size.limit_of(root) if self._limit is None else self._limit
        room = cache_size.room(root, limit, self._needed)
        others = sum(one.size for one in self._segments)
        others -= (len(self._wanted.keys) - len(self._missing)) * self._item_bytes
        if room < self._needed <= room + others:  # items that this call does not want, of the same encoder
            self._merge(self._wanted.keys)
            room = cache_size.room(root, limit, self._needed)
        return self._needed <= room

    def _merge(self, keep: np.ndarray | None) -> None:
        self._use.end()
        with cache_lock.alone(self._folder) as is_alone:
            if is_alone:
                cache_size.remove_drafts(self._folder)
                segments.merge(self._read(self._folder), keep)
        self._use = cache_lock.use(self._folder)
        self._look()

    def _temporary(self, report: Report) -> "_TemporaryFolder":
        """A temporary folder for features that do not fit the limit."""
        needed = cache_size.as_text(self._needed)
        message = f"The features need {needed}. The limit of the cache {self._folder.parent}, or its disk, has no room"
        with writing(Path(tempfile.gettempdir())):
            if 2 * self._needed > shutil.disk_usage(tempfile.gettempdir()).free:
                raise CyclicError(
                    f"{message}, nor has {tempfile.gettempdir()}.",
                    cache_lock.ANOTHER,
                )
            folder = _TemporaryFolder()
        report(Note(f"{message}. They are kept in {folder.path} until this command ends.", warning=True))
        return folder


def undamaged(folder: Path, layout: Layout, checked: dict[Path, Segment | None]) -> list[Segment]:
    """The undamaged segments of a folder, in the order of their names. Damaged ones are removed.

    Args:
        folder: The folder of the encoder.
        layout: The layout of its segments.
        checked: Segments that were looked at before, which gets the new ones; None where a segment is damaged.
    """
    found = []
    for path in cache_size.segment_paths(folder):
        if path not in checked:
            try:
                checked[path] = segments.read(path, layout)
            except OSError:  # removed at this moment, or the network file system is away
                continue
            except ValueError:
                checked[path] = None
                with suppress(OSError):
                    path.unlink()
        segment = checked[path]
        if segment is not None:
            found.append(segment)
    return found


def checked_features(
    features: Mapping[str, np.ndarray], outputs: Sequence[str], layout: Layout, count: int
) -> list[np.ndarray]:
    """The features (count, F) float32 in the order of the outputs. Raises CyclicError when they are unusable."""
    found = []
    for name, width in zip(outputs, layout.dims, strict=True):
        output = np.asarray(features[name], np.float32)
        if output.shape != (count, width):
            raise CyclicError(
                f"The encoder gives {name!r} the shape {output.shape}, not {(count, width)}.", "Use another encoder."
            )
        if not np.isfinite(output).all():
            raise CyclicError(
                f"The encoder gives numbers in {name!r} that are not finite.",
                "Its weights may be damaged, or meant for other inputs: save it again, or use another encoder.",
            )
        found.append(output)
    return found


class _Pending:
    """Features that were computed, but are not yet in a segment."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        self._keys: list[bytes] = []
        self._features: list[list[np.ndarray]] = []
        self._count, self._since = 0, time.monotonic()

    def add(self, keys: np.ndarray, features: list[np.ndarray]) -> None:
        """Take a batch, and write a segment if it is time."""
        self._keys.append(keys.tobytes())
        self._features.append(features)
        self._count += len(keys)
        if self._count >= ITEMS or time.monotonic() - self._since >= PATIENCE:
            self.write()

    def write(self) -> None:
        """Write a segment of all that is pending. Raises CyclicError when the disk is full."""
        keys, features = b"".join(self._keys), self._features
        self._keys, self._features, self._count, self._since = [], [], 0, time.monotonic()
        if not features:
            return
        outputs = [np.concatenate(some) for some in zip(*features, strict=True)]
        try:
            segments.write_features(self._folder, self._layout, keys, outputs)
        except CyclicError as error:
            hint = f"Free some space: the features so far are kept. {cache_lock.ANOTHER}"
            raise CyclicError(error.message, hint) from error


class _TemporaryFolder:
    """A private folder that is removed when nobody refers to it any more, or when this process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="cyclic-codes-"))
        weakref.finalize(self, _remove_own, self.path, os.getpid())


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a forked worker
        shutil.rmtree(folder, ignore_errors=True)
