"""Decides whether a frame may be shown at reduced resolution without a visible difference.

A reduced frame is averaged before it is clipped to [0, 1], and the full frame after. The checks bound the difference,
and detect edges that would alias.
"""

from collections.abc import Callable

import numpy as np

from cyclic_cli.imaging.dicom.windows import Line

MEAN_BOUND, TAIL_BOUND, TAIL = 0.3, 2.0, 99.9
"""Largest error allowed for averaging before clipping: mean and percentile TAIL, in grey levels of 255."""
ROUGHEST = 20.0
"""Largest difference allowed between a cell and its neighbours' mean, in grey levels of 255, at percentile TAIL.

About a fifth of the difference reaches the sample."""


def clips_little(line: Line, cells: np.ndarray) -> bool:
    """Whether reducing a frame before clipping to [0, 1] gives nearly the same result as clipping it first.

    Apart from noise, the pixels of a cell lie between the lowest and the highest of the surrounding cells. Under this
    assumption, the difference between the mean of clipped values and the clipped mean is bounded (Edmundson and
    Madansky). It is 0 when all pixels of the cell are equal, and largest when each pixel is at one of the two limits.

    Args:
        line: The line from stored values to grey levels.
        cells: (H, W) stored values at reduced resolution.
    """
    grey = line(cells)
    if not _leaves_range(grey):
        return True
    low, high = _around(grey, np.minimum), _around(grey, np.maximum)
    span = np.maximum(high - low, np.float32(1e-12))
    share = np.clip((grey - low) / span, 0, 1)  # of pixels at the upper limit in the worst case
    over = share * np.maximum(high - 1, 0) + (1 - share) * np.maximum(low - 1, 0) - np.maximum(grey - 1, 0)
    under = share * np.maximum(-high, 0) + (1 - share) * np.maximum(-low, 0) - np.maximum(-grey, 0)
    error = 255 * np.maximum(over, under)
    return bool(error.mean() <= MEAN_BOUND and np.percentile(error, TAIL) <= TAIL_BOUND)


def is_smooth(line: Line, cells: np.ndarray) -> bool:
    """Whether a reduced frame (H, W) has no edges that are sharp enough to alias."""
    grey = np.clip(line(cells), 0, 1)
    around = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]) / 4
    return bool(255 * np.percentile(np.abs(grey[1:-1, 1:-1] - around), TAIL) <= ROUGHEST)


def _leaves_range(grey: np.ndarray) -> bool:
    return bool(grey.min() < -1e-6 or grey.max() > 1 + 1e-6)


def _around(cells: np.ndarray, choose: Callable[..., np.ndarray]) -> np.ndarray:
    """The minimum or maximum, as `choose` decides, of each cell and its eight neighbours."""
    for axis in (0, 1):
        cells = np.swapaxes(cells, 0, axis)
        chosen = cells.copy()
        choose(chosen[1:], cells[:-1], out=chosen[1:])
        choose(chosen[:-1], cells[1:], out=chosen[:-1])
        cells = np.swapaxes(chosen, 0, axis)
    return cells
