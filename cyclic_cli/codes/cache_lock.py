"""Tells which encoders' folders are in use, so that nothing is removed that another process maps.

Users hold a shared lock (flock) on a file of the folder, and who removes files needs an exclusive one. The kernel frees
the lock of a killed process. NFS passes such locks on to the server, so that they hold between machines.

Some file systems have no locks (Lustre without the option `flock`). There nobody gets an exclusive lock: features are
shared as elsewhere, because segments are complete under their names and never change, but nothing is removed or merged.
The limit then sends further encoders to a temporary folder. Where locks hold on one machine alone (NFS with
`local_lock`), users of other machines are not seen.
"""

import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.files import writing

LOCK = "lock"
ANOTHER = "Name another folder: export CYCLIC_CACHE=FOLDER"
BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # errors of a lock that another process holds


class Use:
    """The use of a folder. It ends with `end`, or when nobody refers to it any more."""

    def __init__(self, lock: int) -> None:
        self.end = weakref.finalize(self, os.close, lock)


def use(folder: Path) -> Use:
    """Make an encoder's folder if necessary, mark it as used now, and keep others from removing its files.

    Raises:
        CyclicError: the folder cannot be written, or be kept private.
    """
    while True:
        make_private(folder.parent)
        make_private(folder)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # removed at this moment
            continue
        except OSError as error:
            with writing(folder):
                raise error
        held = Use(lock)
        with suppress(OSError):  # no locks here
            fcntl.flock(lock, fcntl.LOCK_SH)
        with suppress(OSError):
            os.fchmod(lock, 0o600)
            os.utime(lock)
        if _is_at(lock, folder / LOCK):
            return held
        held.end()


@contextmanager
def alone(folder: Path) -> Iterator[bool | None]:
    """Whether nobody uses a folder, which nobody can then begin to use while the block runs.

    None where this cannot be known. A process that uses the folder itself is not alone.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield None
        return
    try:
        yield _locked(lock) and _is_at(lock, folder / LOCK)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool | None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in BUSY else None
    return True


def last_use(folder: Path) -> float:
    """When somebody last began to use a folder, in seconds since 1970."""
    try:
        return (folder / LOCK).stat().st_mtime
    except OSError:
        return 0.0


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except OSError:
        return False


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter, whatever the umask.

    Raises:
        CyclicError: it cannot be made, or the file system or its owner keeps it open to others.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CyclicError(
            f"The cache folder {folder.parent} cannot be made: {error.strerror}.",
            "Name another one with $CYCLIC_CACHE.",
        ) from error
    with writing(folder):
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not folder.stat().st_mode & 0o077:
            return
        with suppress(PermissionError):
            folder.chmod(0o700)
        if folder.stat().st_mode & 0o077:
            raise CyclicError(f"{folder} cannot be made private: other users may read it.", ANOTHER)
