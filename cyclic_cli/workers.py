"""Worker processes, threads and the workers of a Dask cluster, as executors.

Worker processes never outlive their parent: they end after an interrupt, and also when the parent is killed.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Event

from cyclic_cli.errors import CyclicError

CHECK_EVERY = 1.0  # seconds between two checks whether the parent is alive
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameter numbers of mallopt(3)


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes. Forked ones would inherit locks that threads of libraries hold, and could hang.

    When the block ends by an exception, the workers end at once, without finishing their current task.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    executor = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(), stop))
    try:
        yield executor
    except BaseException:
        stop.set()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB of freed memory for its next image.

    By default the C library returns large blocks to the system. Fetching fresh pages again takes up to half of the time
    of reading radiographs. Without `mallopt` (any C library but glibc) this function does nothing.
    """
    with suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 2**25)
        allocator.mallopt(M_TRIM_THRESHOLD, 2**28)


def _begin(parent: int, stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives the signal too, and sets `stop`
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()


def _end_with(parent: int, stop: Event) -> None:
    """End this process when `stop` is set or its parent is gone; a killed parent cannot set `stop` itself."""
    while os.getppid() == parent:
        if stop.wait(CHECK_EVERY):
            break
    os._exit(1)


@contextmanager
def executor(workers: int, cluster: str = "") -> Iterator[tuple[Executor, int]]:
    """An executor, and how many tasks it runs at once: threads of this process, or the workers of a Dask cluster.

    Args:
        workers: Number of threads, when no cluster is named.
        cluster: Address of a Dask scheduler, such as tcp://node1:8786.

    Raises:
        CyclicError: the extra `dask` is not installed, or no scheduler with workers answers at the address.
    """
    if not cluster:
        with ThreadPoolExecutor(workers) as threads:
            try:
                yield threads, workers
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise CyclicError("--cluster needs Dask.", "pip install 'cyclic-cli[dask]'") from None
    try:
        client = Client(cluster, timeout=10)
        client.wait_for_workers(1, timeout=30)
    except (OSError, TimeoutError, ValueError) as error:
        raise CyclicError(
            f"No Dask scheduler with workers answers at {cluster}.", "Start them, or check the address."
        ) from error
    with client:
        try:
            yield client.get_executor(retries=5), sum(client.nthreads().values())
        except KilledWorker as error:
            raise CyclicError("The workers of the cluster died repeatedly.", "Look at their logs.") from error
