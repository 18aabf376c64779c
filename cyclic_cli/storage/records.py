"""Reads and writes `records.npy`: the part of a dataset's index that a training step needs, as a memory map.

The file has one record of 40 bytes per sample with an image, in the order of the index. Reading the whole index of
100 million samples takes a minute and tens of gigabytes in every process. The memory map opens at once and is shared by
the processes of a machine. It reads one page of 4 KiB per image, where the image itself takes thirteen.
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
    ("position", "<f8"),  # of the patient in its split, 0–1, ascending: a fraction of the patients is a prefix
    ("shard", "<u4"),
    ("row", "<u4"),
    ("height", "<u4"),  # of the original image, in pixels
    ("width", "<u4"),
    ("patient", "<u4"),  # number of the patient within the split, from 0
    ("split", "<u4"),  # index into `SPLITS`
])  # fmt: skip
CHUNK = 65_536  # records that are written together


def records_of(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int | float, ...]]:
    """The records of the rows of an index that have an image."""
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
    """Write `count` records without holding all of them in memory.

    Raises:
        ValueError: there are more or fewer records.
        OSError: the file cannot be written.
    """
    waiting = iter(records)
    with path.open("wb") as file:
        header = {"descr": npy.dtype_to_descr(RECORD), "fortran_order": False, "shape": (count,)}
        npy.write_array_header_1_0(file, header)
        written = 0
        while len(chunk := np.fromiter(islice(waiting, CHUNK), RECORD)):
            file.write(chunk.data)
            written += len(chunk)
    if written != count:
        raise ValueError(f"{written} records instead of {count}")


def map_records(path: Path, count: int) -> np.ndarray:
    """The records (count,) of a file as a memory map. Raises ValueError or OSError when the content differs."""
    records: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if records.dtype != RECORD or records.shape != (count,):
        raise ValueError(f"an array {records.shape} of {records.dtype}")
    return records


def chosen(records: np.ndarray, split: str, fraction: float = 1.0) -> np.ndarray:
    """The records of the first `fraction` of the patients of a split, found by binary search in the memory map."""
    code = SPLITS.index(split)

    def place(number: int) -> tuple[int, float]:
        return int(records[number]["split"]), float(records[number]["position"])

    first, last = (bisect_left(range(len(records)), (code, share), key=place) for share in (0.0, fraction))
    return records[first:last]
