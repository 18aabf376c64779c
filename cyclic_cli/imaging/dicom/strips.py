"""Arithmetic on large frames, done strip by strip because a whole frame does not fit into the CPU's cache."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Shades = Callable[[np.ndarray], np.ndarray]
"""A function that maps values of any shape to grey levels of the same shape, float32 in [0, 1], elementwise."""

STRIP = 2**20  # bytes of a strip as float32; small enough for the cache, large enough to keep strips few
SAMPLE = 2**14  # values from which a percentile is first estimated


def in_strips(stored: np.ndarray, shades: Shades, factor: int) -> np.ndarray:
    """Compute `shades(stored)`, or its means over cells of `factor` × `factor` pixels.

    Cells at the right and lower edge may have fewer pixels.

    Args:
        stored: (H, W) or (H, W, 3); `shades` maps either to (H, W).
        shades: The function that is applied to each value.
        factor: Side of a cell in pixels; 1 for no averaging.

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
    """Means over cells, as in `in_strips`, of integers clipped to the rounded limits `low` and `high`.

    `stored` (H, W) has at most 16 bits, so small integer types suffice for the sums.
    """
    limits = np.iinfo(stored.dtype)
    low, high = (int(min(max(round(end), limits.min), limits.max)) for end in (low, high))
    kind = np.min_scalar_type(-max(-low, high) * factor**2 - 1 if limits.min < 0 else high * factor**2)
    rows = (np.clip(stored[row::factor], low, high).astype(kind, copy=False) for row in range(factor))
    sizes = _cell_sizes(stored.shape[0], stored.shape[1], factor)
    return np.divide(_cell_sums(rows, factor), sizes, dtype=np.float32)


def _cell_sums(rows: Iterator[np.ndarray], factor: int) -> np.ndarray:
    """The sums over cells of `factor` × `factor` values.

    Element k of `rows` holds every `factor`-th row, starting at row k. The first element is overwritten.
    """
    total = next(rows)
    for row in rows:
        total[: len(row)] += row
    sums = total[:, ::factor].copy()
    for column in range(1, factor):
        part = total[:, column::factor]
        sums[:, : part.shape[1]] += part
    return sums


def _cell_sizes(height: int, width: int, factor: int) -> np.ndarray:
    """The number of pixels in each cell: (⌈height / factor⌉, ⌈width / factor⌉) float32."""
    rows, columns = (
        np.minimum(factor, length - factor * np.arange(-(-length // factor))).astype(np.float32)
        for length in (height, width)
    )
    return rows[:, None] * columns


def looked_up(stored: np.ndarray, shades: Shades) -> Shades:
    """The same function as a lookup table over all values from the frame's minimum to its maximum.

    Frames of more than 16 bits, and frames of floats, get `shades` itself.
    """
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        return shades
    low, high = int(stored.min()), int(stored.max())
    table = shades(np.arange(low, high + 1).astype(stored.dtype))
    return lambda strip: table.take(np.subtract(strip, low, dtype=np.intp))


def quantiles(values: np.ndarray, lower: float, upper: float) -> tuple[float, float]:
    """A low and a high percentile of the values, equal to those of `np.percentile`.

    For large arrays, bounds are estimated from a sample, and only the few values beyond them are sorted.
    """
    flat = values.ravel()
    if flat.size < 16 * SAMPLE:
        low, high = np.percentile(flat, (lower, upper))
        return float(low), float(high)
    sample = np.sort(flat[:: flat.size // SAMPLE])
    last = sample.size - 1
    beneath = sample[int(2 * lower / 100 * last) + 1]  # about twice as many values lie below it as are needed
    above = sample[last - int(2 * (1 - upper / 100) * last) - 1]
    return (
        _ranked(flat, lower / 100 * (flat.size - 1), beneath, True, beneath == sample[0]),
        _ranked(flat, upper / 100 * (flat.size - 1), above, False, above == sample[-1]),
    )


def _ranked(flat: np.ndarray, place: float, bound: Any, is_low: bool, is_ground: bool) -> float:
    """The value at a 0-based, possibly fractional, place among the sorted values, interpolated linearly.

    Args:
        flat: (N,) values, in any order.
        place: Position among the sorted values.
        bound: The wanted value is expected to be at most this if `is_low`, else at least this.
        is_low: Whether the low percentile is wanted.
        is_ground: Whether many values equal the bound, as those of an image's background do.
    """
    chosen = flat <= bound if is_low else flat >= bound
    count = int(np.count_nonzero(chosen))
    first = int(place) - (0 if is_low else flat.size - count)
    if first < 0 or first + 1 >= count:  # the sample was not representative
        return float(np.percentile(flat, 100 * place / (flat.size - 1)))
    if is_ground:
        others = int(np.count_nonzero(flat < bound if is_low else flat > bound))
        begin, end = (others, count) if is_low else (0, count - others)
        if begin <= first and first + 1 < end:
            return float(bound)
    low, high = np.partition(flat[chosen], (first, first + 1))[[first, first + 1]].astype(np.float64)
    return float(low + (place - int(place)) * (high - low))
