"""Worker processes that neither outlive the process that made them nor take its interrupts."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

LOOK_EVERY = 1.0  # seconds between two looks for the parent


def pool(workers: int) -> ProcessPoolExecutor:
    """A pool of processes started afresh: a fork would copy the locks of threads that libraries and terminals keep."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the work in order
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent was killed, which no handler of the parent can see to."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(1)
