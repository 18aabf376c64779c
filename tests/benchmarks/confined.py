"""Tools to train on data that exceed memory: a dataset of any size, and a Linux control group that limits memory."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cyclic_cli.config import Preprocessing
from cyclic_cli.storage.dataset import DatasetFacts, shard_name
from cyclic_cli.storage.dataset_draft import DatasetDraft

SHARD = 1024  # images per shard
VALIDATION = 64  # images for validation
# By version of control groups: folder of the memory controller, and its files for the limit and for the peak.
VERSIONS = {
    1: ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    2: ("/sys/fs/cgroup", "memory.max", "memory.peak"),
}


def write_dataset(folder: Path, images: np.ndarray, count: int) -> None:
    """Write a dataset of `count` images that repeats `images` (N, C, S, S) uint8 or uint16.

    Its pages are then dropped from the page cache.
    """
    draft = DatasetDraft(folder)
    draft.begin({})
    shape, bits = images.shape[1:], 8 * images.itemsize
    for number in range(-(-count // SHARD)):
        with draft.shard(number, shape, bits=bits) as shard:
            for row in range(number * SHARD, min(count, (number + 1) * SHARD)):
                shard.append(row, [], [images[row % len(images)]])
            shard.finish()  # written to disk, so that no dirty page remains
        with (folder / shard_name(number)).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    training = count - VALIDATION
    rows = (
        {
            "sample": f"{number:032x}", "patient": f"{number:032x}", "study": f"{number:032x}",
            "split": "train" if number < training else "val", "position": number / count, "has_image": True,
            "has_text": False, "shard": number // SHARD, "row": number % SHARD, "height": shape[1], "width": shape[2],
        }
        for number in range(count)
    )  # fmt: skip
    facts = DatasetFacts(
        preprocessing=Preprocessing(size=shape[1], bits=bits),
        channels=shape[0],
        counts={
            "paired": 0,
            "image_only": count,
            "splits": {"train": training, "val": VALIDATION, "test": 0},
        },
        shards=-(-count // SHARD),
        fingerprint=f"{count} images",
    )
    draft.finish(facts, {"index": rows, "inputs": [], "reports": [], "rejected": [], "duplicates": []}, set())


@dataclass(frozen=True)
class Group:
    """A control group whose memory is limited."""

    folder: Path
    peak_file: str

    def joining(self, command: list[str]) -> list[str]:
        """A command that runs `command` inside the group."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder), *command]

    def peak(self) -> float | None:
        """Peak memory in MiB, including cached pages of files. None where the kernel does not report it."""
        try:
            return int((self.folder / self.peak_file).read_text()) / 2**20
        except OSError:
            return None


@contextmanager
def memory_group(limit: int) -> Iterator[Group | None]:
    """A control group of `limit` MiB inside that of this process. None where it cannot be created."""
    group = _create(limit)
    try:
        yield group
    finally:
        if group:
            time.sleep(1)  # until the last process has left the group
            group.folder.rmdir()


def _create(limit: int) -> Group | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, own = line.split(":", 2)
        if "memory" not in controllers.split(",") and number != "0":
            continue
        root, limit_file, peak_file = VERSIONS[2 if number == "0" else 1]
        folder = Path(root + own) / f"cyclic-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit_file).write_text(str(limit * 2**20))
            return Group(folder, peak_file)
        except OSError:  # this version is mounted, but without the memory controller
            folder.rmdir()
    return None
