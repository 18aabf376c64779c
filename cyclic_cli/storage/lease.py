"""A lock that works on network file systems: a file that names its holder, who touches it every few seconds.

The lease of a process that was killed is taken over at once on its own host, where the process can be looked for, and
after a minute of silence from any other.
"""

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cyclic_cli.errors import CyclicError

BEAT = 5.0  # seconds between two touches
SILENCE = 60.0  # seconds after which a holder that cannot be looked for counts as dead
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}  # what a file system without hard links says

_Seen = tuple[float, bytes]  # when a lease was touched, and its content


@contextmanager
def hold(path: Path, work: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lease `path` while the block runs.

    Args:
        path: The lease's file; its folder exists.
        work: What the lease protects, for the error: "the dataset x is being prepared".
        patience: Seconds to wait for a holder on another host, who may be a job that was just ended and began again.

    Raises:
        CyclicError: somebody who lives holds it.
    """
    own = _take(path, work, time.monotonic() + patience)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, own, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            if path.read_bytes() == own:
                path.unlink()


def is_held(path: Path) -> bool:
    """Whether somebody who lives holds a lease."""
    draft = _draft(path)
    try:
        return _living_holder(_seen(path), draft) is not None
    finally:
        draft.unlink(missing_ok=True)


def _take(path: Path, work: str, until: float) -> bytes:
    """Take a lease; its content, which no other lease has."""
    draft = _draft(path)
    try:
        while True:
            with suppress(FileExistsError):
                _link(draft, path)
                return draft.read_bytes()
            seen = _seen(path)
            holder = _living_holder(seen, draft)
            if holder is not None and " on this host" not in holder and time.monotonic() < until:
                time.sleep(BEAT)
                continue
            if holder is not None:
                raise CyclicError(
                    f"{work} by another process ({holder}).",
                    f"Wait for it or end it. If it is dead for certain, remove {path}.",
                )
            if seen is not None:
                _move_away(path, seen, draft.with_suffix(".stale"))
    finally:
        draft.unlink(missing_ok=True)


def _link(draft: Path, path: Path) -> None:
    """Give a file another name, at one stroke. Raises FileExistsError."""
    try:
        os.link(draft, path)  # atomic on network file systems too, as open with O_EXCL was not always
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with path.open("xb") as file:
            file.write(draft.read_bytes())


def _move_away(path: Path, seen: _Seen, stale: Path) -> None:
    """Remove a lease that was seen to be stale. Another may have taken it over meanwhile: then it is put back."""
    try:
        os.rename(path, stale)
    except FileNotFoundError:
        return
    try:
        if _seen(stale) != seen:
            with suppress(FileExistsError):
                _link(stale, path)
    finally:
        stale.unlink()


def _draft(path: Path) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "processes": _process_space()}
    draft.write_text(json.dumps(holder | {"token": secrets.token_hex(16)}))
    return draft


def _seen(path: Path) -> _Seen | None:
    try:
        return path.stat().st_mtime, path.read_bytes()
    except FileNotFoundError:
        return None


def _living_holder(seen: _Seen | None, draft: Path) -> str | None:
    """Who holds a lease, in words; None where nobody does who lives. `draft` tells the file system's own time."""
    if seen is None:
        return None
    touched, content = seen
    silent = draft.stat().st_mtime - touched
    try:
        held: dict[str, Any] = json.loads(content)
        host, pid = str(held["host"]), int(held["pid"])
    except (ValueError, KeyError, TypeError):
        return None if silent > SILENCE else "its lease is unreadable"
    if host == socket.gethostname() and held.get("processes") == _process_space():
        return f"process {pid} on this host" if _is_alive(pid) and silent < SILENCE else None
    return f"process {pid} on {host}, heard of {max(0, round(silent))} s ago" if silent < SILENCE else None


def _process_space() -> str:
    """What makes a process number mean the same process: this boot of this machine, this container."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beat(path: Path, own: bytes, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            if path.read_bytes() == own:  # after a long silence it may be another's
                os.utime(path)
