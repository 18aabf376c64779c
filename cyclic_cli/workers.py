"""Who does the work: worker processes that end with it, threads that watch processes, or the workers of a cluster.

Neither an interrupt nor the death of their parent leaves a worker process running.
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

LOOK_EVERY = 1.0  # seconds between two looks for the parent
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes started afresh: a fork would copy the locks of threads that libraries and terminals keep.

    When the block ends by an exception, its workers end at once, in the middle of what they do.
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
    """Let this process keep the memory it frees, up to 256 MiB, for its next picture.

    By itself the C library gives large blocks back to the system, and the fresh pages it then asks for cost a reader of
    films up to half of its time. Where it knows no `mallopt`, nothing is changed.
    """
    with suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 2**25)
        allocator.mallopt(M_TRIM_THRESHOLD, 2**28)


def _begin(parent: int, stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and sets `stop`
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()


def _end_with(parent: int, stop: Event) -> None:
    """End this process when it shall stop, or when its parent was killed, which no handler of the parent can see to."""
    while os.getppid() == parent:
        if stop.wait(LOOK_EVERY):
            break
    os._exit(1)


@contextmanager
def executor(workers: int, cluster: str = "") -> Iterator[tuple[Executor, int]]:
    """Threads of this process, or the workers of a Dask cluster: an executor, and how many tasks it runs at once.

    Args:
        workers: Threads, when no cluster is named.
        cluster: Address of a Dask scheduler, such as tcp://node1:8786.

    Raises:
        CyclicError: the extra `dask` is not installed, or no scheduler with workers answers there.
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
            raise CyclicError("The cluster's workers died again and again.", "Look at their logs.") from error
