"""Streams that background threads fill: read ahead of the consumer, and groups that close when the source is slow."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any, TypeVar

from cyclic_cli.prepare.shards import DECODERS

LULL = 0.2  # seconds without a further element, after which an incomplete group is passed on
AHEAD = 3  # results that wait to be consumed, per reader

T = TypeVar("T")


def grouped_as_they_arrive(elements: Iterator[T], size: int) -> Iterator[list[T]]:
    """Groups of up to `size` elements.

    When no element arrives for `LULL` seconds, the incomplete group is passed on. An empty group follows it: it tells
    the consumer not to wait for more before it finishes its work.
    """
    arrived = _filled_in_background(elements, size)
    group: list[T] = []
    while True:
        try:
            element = arrived.get(timeout=LULL if group else None)
        except queue.Empty:
            yield from (group, [])
            group = []
            continue
        if isinstance(element, BaseException):
            raise element
        if element is not None:
            group.append(element)
        if len(group) == size or (element is None and group):
            yield group
            group = []
        if element is None:
            return


@contextmanager
def read_ahead(reads: Iterator[Callable[[], T]], readers: int) -> Iterator[Iterator[T]]:
    """The results of some calls, in order, computed by threads ahead of the consumer.

    The calls are drawn from `reads` by a thread of their own. A list on stdin may arrive slowly, and this way its
    first files are read before the list is complete.

    Args:
        reads: The calls.
        readers: How many calls run at the same time.
    """
    over = threading.Event()

    def results() -> Iterator[T]:
        while (result := submitted.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result.result()

    # `at_work` is the inner context: it kills a decoder that hangs before the thread pool waits for its reader
    with ThreadPoolExecutor(readers) as pool, DECODERS.at_work():
        wanted = takewhile(lambda _: not over.is_set(), reads)
        submitted = _filled_in_background((pool.submit(read) for read in wanted), AHEAD * readers)
        try:
            yield results()
        finally:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            with suppress(queue.Empty):  # makes room, so that the thread's pending `put` returns
                submitted.get_nowait()


def _filled_in_background(elements: Iterator[Any], size: int) -> "queue.Queue[Any]":
    """A queue of `size` that a thread fills with elements, then with None, or with the error that ended them."""
    filled: queue.Queue[Any] = queue.Queue(size)

    def fill() -> None:
        try:
            for element in elements:
                filled.put(element)
            filled.put(None)
        except BaseException as error:  # the consumer raises it again
            filled.put(error)

    threading.Thread(target=fill, daemon=True).start()
    return filled
