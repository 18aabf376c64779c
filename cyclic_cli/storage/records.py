"""`records.npy`: what a training step needs of a dataset's index, mapped into memory rather than read.

A record of 40 bytes for each sample with an image, in the order of the index. Reading the index of 100 million
samples takes a minute and tens of gigabytes in every process; a map opens at once, is shared by the processes of a
machine, and costs a step one page of 4 KiB for each image, where the image itself costs thirteen.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from cyclic_cli.privacy.keys import SPLITS

RECORD = np.dtype([
    ("key", "<u8"),  # the first half of the sample key
    ("position", "<f8"),  # in its split, 0–1: a fraction is a prefix
    ("shard", "<u4"),
    ("row", "<u4"),
    ("height", "<u4"),  # pixels of the original
    ("width", "<u4"),
    ("patient", "<u4"),  # running number within the split
    ("split", "<u4"),  # its place in `SPLITS`
])  # fmt: skip
AT_ONCE = 65_536  # records that are written together


def records_of(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int | float, ...]]:
    """The records of an index: those of its `rows` that have an image."""
    split = patient = None
    number = -1
    for row in rows:
        if row["split"] != split:
            split, patient, number = row["split"], None, -1
        if not row["has_image"]:
            continue
        if row["patient"] != patient:
            patient, number = row["patient"], number + 1
        yield (
            int(row["sample"][:16], 16), row["position"], row["shard"], row["row"], row["height"], row["width"],
            number, SPLITS.index(row["split"]),
        )  # fmt: skip


def write_records(path: Path, records: Iterable[tuple[int | float, ...]], count: int) -> None:
    """Write `count` records as they come. Raises ValueError when they are more or fewer, OSError as writing does."""
    waiting = iter(records)
    with path.open("wb") as file:
        header = {"descr": npy.dtype_to_descr(RECORD), "fortran_order": False, "shape": (count,)}
        npy.write_array_header_1_0(file, header)
        written = 0
        while len(chunk := np.fromiter(islice(waiting, AT_ONCE), RECORD)):
            file.write(chunk.data)
            written += len(chunk)
    if written != count:
        raise ValueError(f"{written} records instead of {count}")


def map_records(path: Path, count: int) -> np.ndarray:
    """The records (count,) of a file, as a map. Raises ValueError or OSError when it holds something else."""
    records: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if records.dtype != RECORD or records.shape != (count,):
        raise ValueError(f"{records.dtype} of {records.shape}")
    return records


def chosen(records: np.ndarray, split: str, fraction: float = 1.0) -> np.ndarray:
    """The records of the first `fraction` of a split's patients, found without reading those between."""
    code = SPLITS.index(split)

    def place(number: int) -> tuple[int, float]:
        return int(records[number]["split"]), float(records[number]["position"])

    first, last = (bisect_left(range(len(records)), (code, share), key=place) for share in (0.0, fraction))
    return records[first:last]
