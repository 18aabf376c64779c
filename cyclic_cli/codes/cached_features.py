"""Features in the files of the cache, which are read row by row from memory maps."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyclic_cli.codes.segments import Layout, Segment
from cyclic_cli.errors import CyclicError

OPEN = 128  # segments that are mapped at a time; each keeps a file open


@dataclass(frozen=True)
class Places:
    """Where N items are."""

    segments: np.ndarray  # (N,) number of the segment
    rows: np.ndarray  # (N,) row in the segment


class Maps:
    """Memory maps of segments, which the outputs of an encoder share. Keeps `kept` alive: what protects the files."""

    def __init__(self, segments: Sequence[Segment], layout: Layout, kept: object) -> None:
        self.layout = layout
        self._segments, self._kept = segments, kept
        self._open: OrderedDict[int, list[np.ndarray]] = OrderedDict()

    def arrays(self, number: int) -> list[np.ndarray]:
        """The arrays of a segment, see `Segment.arrays`. Raises CyclicError when somebody removed it."""
        if number not in self._open:
            if len(self._open) >= OPEN:
                self._open.popitem(last=False)
            segment = self._segments[number]
            try:
                self._open[number] = segment.arrays()
            except OSError as error:
                raise CyclicError(f"Somebody removed {segment.path}.", "Repeat the command.") from error
        self._open.move_to_end(number)
        return self._open[number]


class InMemory(Maps):
    """One segment that was never written: the features (U, F) float32 of each output."""

    def __init__(self, outputs: Sequence[np.ndarray], layout: Layout) -> None:
        super().__init__([], layout, None)
        self._arrays = [np.empty(0), *outputs]  # no digests: nobody looks for them

    def arrays(self, number: int) -> list[np.ndarray]:
        return self._arrays


class CachedFeatures:
    """The features (N, F) of one output of an encoder. While it exists, its files are not removed from the cache."""

    def __init__(self, maps: Maps, output: int, places: Places) -> None:
        self._maps, self._output, self._places = maps, output, places
        self.dims = maps.layout.dims[output]  # F

    def __len__(self) -> int:
        return len(self._places.rows)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Copy the features (M, F) float32 of the items with these numbers (M,).

        Raises:
            CyclicError: somebody removed a file of the cache by other means than `cyclic info --cache --remove`.
        """
        chosen = np.asarray(numbers, np.int64)
        found, rows = self._places.segments[chosen], self._places.rows[chosen]
        out = np.empty((len(chosen), self.dims), np.float32)
        for number in np.unique(found).tolist():
            here = found == number
            out[here] = self._maps.arrays(number)[1 + self._output][rows[here]]
        return out
