"""A lock that works on network file systems: a file that names its holder, who touches it every few seconds.

The lease of a killed process is taken over at once on the same host, where one can see that the process is gone. On
another host it is taken over after a minute without a touch.
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
SILENCE = 60.0  # seconds without a touch after which a holder on another host counts as dead
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}  # errors of file systems without hard links

_Observed = tuple[float, bytes]  # time of the last touch of a lease, and its content


@contextmanager
def hold(path: Path, work: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lease `path` while the block runs.

    Args:
        path: The file of the lease; its folder must exist.
        work: What the lease protects, for the error message: "The dataset x is being prepared".
        patience: Seconds to wait for a holder on another host. It may be the same job, which was killed and requeued.

    Raises:
        CyclicError: a living process holds the lease.
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
    """Whether a living process holds a lease."""
    draft = _draft(path)
    try:
        return _living_holder(_observe(path), draft) is not None
    finally:
        draft.unlink(missing_ok=True)


def _take(path: Path, work: str, until: float) -> bytes:
    """Take a lease, waiting until the time `until`. Returns its content, which no other lease has."""
    draft = _draft(path)
    try:
        while True:
            with suppress(FileExistsError):
                _link(draft, path)
                return draft.read_bytes()
            seen = _observe(path)
            holder = _living_holder(seen, draft)
            if holder is not None and " on this host" not in holder and time.monotonic() < until:
                time.sleep(BEAT)
                continue
            if holder is not None:
                raise CyclicError(
                    f"{work} by another process ({holder}).",
                    f"Wait for it or end it. If you are certain that it is dead, remove {path}.",
                )
            if seen is not None:
                _move_away(path, seen, draft.with_suffix(".stale"))
    finally:
        draft.unlink(missing_ok=True)


def _link(draft: Path, path: Path) -> None:
    """Create `path` with the content of `draft` in one atomic operation. Raises FileExistsError if it exists."""
    try:
        os.link(draft, path)  # also atomic on old network file systems, unlike open with O_EXCL
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with path.open("xb") as file:
            file.write(draft.read_bytes())


def _move_away(path: Path, seen: _Observed, stale: Path) -> None:
    """Remove a lease that was observed to be stale.

    It is renamed to `stale` first and compared with the observation. If another process has taken it over meanwhile, it
    is put back.
    """
    try:
        os.rename(path, stale)
    except FileNotFoundError:
        return
    try:
        if _observe(stale) != seen:
            with suppress(FileExistsError):
                _link(stale, path)
    finally:
        stale.unlink()


def _draft(path: Path) -> Path:
    """Write a new lease of this process under a temporary name beside `path`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "processes": _process_space()}
    draft.write_text(json.dumps(holder | {"token": secrets.token_hex(16)}))
    return draft


def _observe(path: Path) -> _Observed | None:
    """The present state of a lease; None if there is none."""
    try:
        return path.stat().st_mtime, path.read_bytes()
    except FileNotFoundError:
        return None


def _living_holder(seen: _Observed | None, draft: Path) -> str | None:
    """The living holder of a lease in words, or None. The new file `draft` gives the time of the file system."""
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
    return f"process {pid} on {host}, last seen {max(0, round(silent))} s ago" if silent < SILENCE else None


def _process_space() -> str:
    """Identifies the boot of the machine and the container, within which a process number means the same process."""
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
    """Touch the lease every few seconds until `ended` is set."""
    while not ended.wait(BEAT):
        with suppress(OSError):
            if path.read_bytes() == own:  # after a long silence another process may have taken it over
                os.utime(path)
