"""Fixed codes of many samples, from features that are computed once (`sources.py`)."""

import os
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from cyclic_cli.codes.coded import CodedEncoder
from cyclic_cli.codes.exchange import Exchange, rows_of_all
from cyclic_cli.codes.sources import ROWS, Items, Rows, Source, Tick
from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Report

IN_MEMORY = 2**28  # bytes of codes that are held in memory; larger ones lie in a file

TickOf = Callable[[str], Tick]  # by the title of a source


def cached_codes(
    encoder: CodedEncoder, sources: Sequence[Source], items: Items, tick_of: TickOf, report: Report
) -> np.ndarray:
    """The codes (N, code) float32 that an encoder gives to N items.

    Args:
        encoder: With the weights of its parts.
        sources: All that its parts need; others are not asked.
        items: Images or texts.
        tick_of: Gives the progress of a source.
        report: Gets Note events.
    """
    needed = {part.facts.source for part in encoder.parts}
    features = {
        source.name: source.features(items, tick_of(source.title), report)
        for source in sources
        if source.name in needed
    }
    parts = [
        (features[part.facts.source][part.facts.output], part.mean.cpu().numpy(), part.matrix.cpu().numpy())
        for part in encoder.parts
    ]
    return projected(parts, np.arange(len(items)))


def projected(parts: Sequence[tuple[Rows, np.ndarray, np.ndarray]], numbers: np.ndarray) -> np.ndarray:
    """The codes (N, code) float32 of samples by their numbers (N,), from features, means (F,) and matrices (F, K)."""
    codes = allocated((len(numbers), sum(matrix.shape[1] for _, _, matrix in parts)))
    for first in range(0, len(numbers), ROWS):
        chosen = numbers[first : first + ROWS]
        some = [(rows.rows(chosen) - mean) @ matrix for rows, mean, matrix in parts]
        codes[first : first + len(chosen)] = np.concatenate(some, axis=1)
    return codes


def gathered(own: np.ndarray, numbers: np.ndarray, count: int, ranks: Exchange) -> np.ndarray:
    """The rows (count, K) of all processes, in all processes.

    Args:
        own: (n, K) rows of this process.
        numbers: (n,) their numbers among all rows, rising. Every row belongs to one process.
        count: Of all rows.
        ranks: The processes.
    """
    if ranks.world == 1:
        return own
    rows = allocated((count, own.shape[1]))
    for first in range(0, count, ROWS):
        begin, end = np.searchsorted(numbers, (first, first + ROWS))
        block = rows[first : first + ROWS]
        block[:] = rows_of_all(own[begin:end], numbers[begin:end] - first, len(block), ranks)
    return rows


def allocated(shape: tuple[int, int]) -> np.ndarray:
    """An array (N, P) float32 in memory, or where it is large in a file without a name.

    Raises:
        CyclicError: the temporary folder has no room for the file, or cannot be written.
    """
    size = 4 * shape[0] * shape[1]
    if size <= IN_MEMORY:
        return np.empty(shape, np.float32)
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # the map keeps the file
            os.posix_fallocate(file.fileno(), 0, size)  # writing to a map of a full disk would kill the process
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise CyclicError(
            f"The codes need {size / 2**20:.0f} MiB in {folder}, which cannot be written: {error.strerror or error}.",
            "Free some space there, or name a folder of a larger disk with $TMPDIR: export TMPDIR=FOLDER",
        ) from error
