"""Keeps the cache of features within its limit, describes it, and removes it.

The cache is a folder with a folder for each encoder, which is removed as a whole: the one that was used least recently
first, and never one that is in use, see `cache_lock`.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cyclic_cli.codes import cache_lock, segments
from cyclic_cli.environment import cache_folder
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.storage.files import replacing

FOLDER = "codes"  # within the cache folder
LIMIT = "CYCLIC_CACHE_LIMIT"
MOST = 20 * 2**30  # bytes
SHARE = 10  # at most one part in ten of the file system
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
NAME = re.compile(r"[0-9a-f]{32}")  # of an encoder's folder
SEGMENT = re.compile(r"\d{20}-[0-9a-f]{16}\.safetensors")
DRAFT = re.compile(r"\..*\.tmp")
ABOUT = ("encoder", "modality", "device", "torch")  # what an encoder is, for people; earlier versions stored nothing
ABOUT_FILE = "about.json"
LONGEST_ABOUT = 2**12  # bytes


@dataclass(frozen=True)
class EncoderFolder:
    """The folder of an encoder, and what it held when it was looked at."""

    path: Path
    files: dict[Path, int]  # segments and drafts, with their sizes in bytes
    last_use: float  # seconds since 1970

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def default_folder() -> Path:
    """The cache of features within the user's cache folder."""
    return cache_folder() / FOLDER


def segment_paths(folder: Path) -> list[Path]:
    """The segments in the folder of an encoder, in the order of their names."""
    return sorted(path for path in _entries(folder) if SEGMENT.fullmatch(path.name))


def encoder_folders(root: Path) -> list[EncoderFolder]:
    """The folders of all encoders, the least recently used first. Other folders are left alone."""
    found = [_look(path) for path in _entries(root) if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda one: one.last_use)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _look(folder: Path) -> EncoderFolder:
    files = {}
    for path in _entries(folder):
        if SEGMENT.fullmatch(path.name) or DRAFT.fullmatch(path.name):
            with suppress(FileNotFoundError):
                files[path] = path.lstat().st_size
    return EncoderFolder(folder, files, cache_lock.last_use(folder))


def limit_of(root: Path) -> int:
    """How many bytes the cache may use.

    `$CYCLIC_CACHE_LIMIT`, else the smallest of 20 GiB, a tenth of the file system, and half of what is free together
    with what the cache uses.

    Raises:
        UsageError: the variable is no size.
    """
    named = os.environ.get(LIMIT, "").strip()
    if named:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", named, re.IGNORECASE)
        if not found:
            raise UsageError(f"${LIMIT} is {named!r}, which is no size.", f"For example: export {LIMIT}=5G")
        return int(float(found[1]) * UNITS[found[2].upper()])
    disk = shutil.disk_usage(next(one for one in (root, *root.absolute().parents) if _exists(one)))
    used = sum(one.size for one in encoder_folders(root))
    return min(MOST, disk.total // SHARE, (disk.free + used) // 2)


def _exists(path: Path) -> bool:
    """Whether there is a file or folder; False where nobody lets us look."""
    try:
        return path.exists()
    except OSError:
        return False


def room(root: Path, limit: int, needed: int) -> int:
    """Remove encoders' folders until `needed` bytes fit the limit, or all that remain are in use.

    Returns:
        The bytes that may then be added; 0 or less where the cache exceeds its limit.
    """
    folders = encoder_folders(root)
    used = sum(one.size for one in folders)
    for one in folders:
        if used + needed <= limit or needed > limit:  # what can never fit costs no other encoder its features
            break
        if remove_encoder(one):
            used -= one.size
    return limit - used


def remove_encoder(encoder: EncoderFolder) -> bool:
    """Remove the folder of an encoder. False where it is in use, or where that cannot be known."""
    with cache_lock.alone(encoder.path) as is_alone:
        if is_alone:
            for path in _look(encoder.path).files:
                path.unlink(missing_ok=True)
            (encoder.path / ABOUT_FILE).unlink(missing_ok=True)
            (encoder.path / cache_lock.LOCK).unlink(missing_ok=True)  # last: who waits for it then sees that it is gone
            with suppress(OSError):
                encoder.path.rmdir()
        return bool(is_alone)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left in the folder of an encoder. Nobody may use it."""
    for path in _entries(folder):
        if DRAFT.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_about(folder: Path, about: Mapping[str, str]) -> None:
    """Write what an encoder is into its folder, unless that was done. It is no error when it cannot be written."""
    path = folder / ABOUT_FILE
    if not about or _exists(path):
        return
    with suppress(CyclicError), replacing(path) as draft, open(draft, "xb", opener=segments.private) as file:
        file.write(json.dumps({name: about[name] for name in ABOUT if name in about}).encode())


def about(folder: Path) -> dict[str, str]:
    """What an encoder is, by the names of `ABOUT`; those that nobody wrote, or that are damaged, are missing."""
    try:
        with (folder / ABOUT_FILE).open("rb") as file:
            found = dict(json.loads(file.read(LONGEST_ABOUT)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    texts = {name: found.get(name) for name in ABOUT}
    return {name: text for name, text in texts.items() if isinstance(text, str) and text.isprintable()}


def describe() -> dict[str, Any]:
    """The output of `cyclic info --cache`: sizes are in bytes."""
    root = default_folder()
    folders = encoder_folders(root)
    return {
        "kind": "cache",
        "path": str(root),
        "bytes": sum(one.size for one in folders),
        "limit_bytes": limit_of(root),
        "encoders": len(folders),
        "items": sum(map(_items, folders)),
        "by_encoder": {one.path.name: _described(one) for one in reversed(folders)},
    }


def _described(encoder: EncoderFolder) -> dict[str, Any]:
    with cache_lock.alone(encoder.path) as is_alone:
        in_use = None if is_alone is None else not is_alone
    moment = datetime.fromtimestamp(encoder.last_use).astimezone().isoformat(" ", "seconds")
    known = dict[str, str | None].fromkeys(ABOUT) | about(encoder.path)
    return {**known, "items": _items(encoder), "bytes": encoder.size, "last_use": moment, "in_use": in_use}


def _items(encoder: EncoderFolder) -> int:
    """The number of items in the segments of an encoder. Damaged segments count for nothing."""
    return sum(segments.count_of(path) for path in encoder.files if SEGMENT.fullmatch(path.name))


def remove() -> dict[str, Any]:
    """Remove the folders that are not in use, and count them: the output of `cyclic info --cache --remove`."""
    root = default_folder()
    folders = encoder_folders(root)
    removed = [one for one in folders if remove_encoder(one)]
    with suppress(OSError):
        root.rmdir()
    return {
        "kind": "cache",
        "path": str(root),
        "removed": len(removed),
        "removed_bytes": sum(one.size for one in removed),
        "kept": len(folders) - len(removed),
    }


def as_text(size: float) -> str:
    """A number of bytes for people, such as 1.5 GiB."""
    power = max(0, min(3, (int(size).bit_length() - 1) // 10))
    return f"{size / 1024**power:.{1 if power else 0}f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"
