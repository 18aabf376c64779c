"""A lock that works on network file systems: a file that names its holder, who touches it every few seconds.

The lease of a process that was killed is taken over at once on its own host, where the process can be looked for, and
after a minute of silence from any other.
"""

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cyclic_cli.errors import CyclicError

BEAT = 5.0  # seconds between two touches
SILENCE = 60.0  # seconds after which a holder that cannot be looked for counts as dead


@contextmanager
def hold(path: Path, work: str) -> Iterator[None]:
    """Hold the lease `path` while the block runs.

    Args:
        path: The lease's file; its folder exists.
        work: What the lease protects, for the error: "the data set x is being prepared".

    Raises:
        CyclicError: somebody who lives holds it.
    """
    _take(path, work)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            path.unlink()


def is_held(path: Path) -> bool:
    """Whether somebody who lives holds a lease."""
    draft = _draft(path)
    try:
        return _living_holder(path, draft) is not None
    finally:
        draft.unlink(missing_ok=True)


def _take(path: Path, work: str) -> None:
    draft = _draft(path)
    try:
        while True:
            try:
                os.link(draft, path)  # atomic on network file systems too, as open with O_EXCL was not always
                return
            except FileExistsError:
                holder = _living_holder(path, draft)
            if holder is not None:
                raise CyclicError(
                    f"{work} by another process ({holder}).",
                    f"Wait for it or end it. If it is dead for certain, remove {path}.",
                )
            with suppress(FileNotFoundError):  # of several that find it stale one moves it away
                stale = draft.with_suffix(".stale")
                os.rename(path, stale)
                stale.unlink()
    finally:
        draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    draft.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "processes": _process_space()}))
    return draft


def _living_holder(path: Path, draft: Path) -> str | None:
    """Who holds a lease, in words; None where nobody does who lives. `draft` tells the file system's own time."""
    try:
        silent = draft.stat().st_mtime - path.stat().st_mtime
        held: dict[str, Any] = json.loads(path.read_text())
        host, pid = str(held["host"]), int(held["pid"])
    except FileNotFoundError:
        return None
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


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)
