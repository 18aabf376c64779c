"""Worker processes that end with the work: neither an interrupt nor the death of their parent leaves them running."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event

LOOK_EVERY = 1.0  # seconds between two looks for the parent


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


def _begin(parent: int, stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and sets `stop`
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()


def _end_with(parent: int, stop: Event) -> None:
    """End this process when it shall stop, or when its parent was killed, which no handler of the parent can see to."""
    while os.getppid() == parent:
        if stop.wait(LOOK_EVERY):
            break
    os._exit(1)
