"""Arithmetic on large frames: films have many pixels and caches hold few, so they are taken strip by strip."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Shades = Callable[[np.ndarray], np.ndarray]
"""Turns values of any shape into grey, float32 in [0, 1], one by one."""

STRIP = 2**20  # bytes of a strip as float32: not too many strips, each in the cache
SAMPLE = 2**14  # values that tell where a percentile roughly lies


def in_strips(stored: np.ndarray, shades: Shades, factor: int) -> np.ndarray:
    """`shades(stored)`, or its means over cells of `factor` × `factor` pixels, of fewer at the right and lower edge.

    Args:
        stored: (H, W) or (H, W, 3); `shades` takes it to (H, W).
        shades: What is done with each value.
        factor: 1 for no means.

    Returns:
        (⌈H / factor⌉, ⌈W / factor⌉) float32.
    """
    height, width = stored.shape[:2]
    rows = factor * max(1, STRIP // (4 * width * factor))
    if factor == 1 and height <= rows:
        return shades(stored)
    result = np.empty((-(-height // factor), -(-width // factor)), dtype=np.float32)
    for top in range(0, height, rows):
        strip = shades(stored[top : top + rows])
        part = result[top // factor : (top + rows) // factor]
        part[...] = strip if factor == 1 else _cell_sums((strip[row::factor] for row in range(factor)), factor)
    return result if factor == 1 else result / _cell_sizes(height, width, factor)


def cell_means(stored: np.ndarray, factor: int, low: float, high: float) -> np.ndarray:
    """Means over cells, as `in_strips` gives them, of integers clipped to the whole numbers next to `low` and `high`.

    `stored` (H, W) has 16 bits at most, which lets the sums be of few bits too.
    """
    limits = np.iinfo(stored.dtype)
    low, high = (int(min(max(round(end), limits.min), limits.max)) for end in (low, high))
    kind = np.min_scalar_type(-max(-low, high) * factor**2 - 1 if limits.min < 0 else high * factor**2)
    rows = (np.clip(stored[row::factor], low, high).astype(kind, copy=False) for row in range(factor))
    sizes = _cell_sizes(stored.shape[0], stored.shape[1], factor)
    return np.divide(_cell_sums(rows, factor), sizes, dtype=np.float32)


def _cell_sums(rows: Iterator[np.ndarray], factor: int) -> np.ndarray:
    """The sums of cells of `factor` × `factor`. `rows` are each `factor`-th row from the first, from the second and so
    on; the first of them is overwritten.
    """
    across = next(rows)
    for row in rows:
        across[: len(row)] += row
    sums = across[:, ::factor].copy()
    for column in range(1, factor):
        part = across[:, column::factor]
        sums[:, : part.shape[1]] += part
    return sums


def _cell_sizes(height: int, width: int, factor: int) -> np.ndarray:
    """How many pixels lie in each cell: (⌈height / factor⌉, ⌈width / factor⌉) float32."""
    rows, columns = (
        np.minimum(factor, length - factor * np.arange(-(-length // factor))).astype(np.float32)
        for length in (height, width)
    )
    return rows[:, None] * columns


def looked_up(stored: np.ndarray, shades: Shades) -> Shades:
    """The same shades, from a table of every value between the frame's lowest and highest where it has few bits."""
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        return shades
    low, high = int(stored.min()), int(stored.max())
    table = shades(np.arange(low, high + 1).astype(stored.dtype))
    return lambda strip: table.take(np.subtract(strip, low, dtype=np.intp))


def quantiles(values: np.ndarray, lower: float, upper: float) -> tuple[float, float]:
    """Two percentiles, a low and a high one, as `np.percentile` gives them.

    Of many values only the few beyond a bound can matter, and a sample of them tells the bound.
    """
    flat = values.ravel()
    if flat.size < 16 * SAMPLE:
        low, high = np.percentile(flat, (lower, upper))
        return float(low), float(high)
    sample = np.sort(flat[:: flat.size // SAMPLE])
    last = sample.size - 1
    beneath = sample[int(2 * lower / 100 * last) + 1]  # twice as many lie below it as matter
    above = sample[last - int(2 * (1 - upper / 100) * last) - 1]
    return (
        _ranked(flat, lower / 100 * (flat.size - 1), beneath, True, beneath == sample[0]),
        _ranked(flat, upper / 100 * (flat.size - 1), above, False, above == sample[-1]),
    )


def _ranked(flat: np.ndarray, place: float, bound: Any, is_low: bool, is_ground: bool) -> float:
    """The value at a place, from 0, among the sorted values; between two places, interpolated.

    It is not above `bound`, or not below it if not `is_low`; `is_ground` says that many values equal the bound.
    """
    chosen = flat <= bound if is_low else flat >= bound
    count = int(np.count_nonzero(chosen))
    first = int(place) - (0 if is_low else flat.size - count)
    if first < 0 or first + 1 >= count:  # the sample was no fair one
        return float(np.percentile(flat, 100 * place / (flat.size - 1)))
    if is_ground:
        others = int(np.count_nonzero(flat < bound if is_low else flat > bound))
        begin, end = (others, count) if is_low else (0, count - others)
        if begin <= first and first + 1 < end:
            return float(bound)
    low, high = np.partition(flat[chosen], (first, first + 1))[[first, first + 1]].astype(np.float64)
    return float(low + (place - int(place)) * (high - low))
