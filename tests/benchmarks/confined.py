"""Data larger than the memory allowed: a dataset of any size, and a control group of Linux that limits memory."""

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

SHARD = 1024  # images
VALIDATION = 64  # images
# By version of control groups: where memory is limited, the files of the limit and of the most that was used.
VERSIONS = {
    1: ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    2: ("/sys/fs/cgroup", "memory.max", "memory.peak"),
}


def write_dataset(folder: Path, images: np.ndarray, count: int) -> None:
    """Write a dataset of `count` images that repeats `images` (N, C, S, S) uint8 or uint16, and uncache its pages."""
    draft = DatasetDraft(folder)
    draft.begin({})
    shape, bits = images.shape[1:], 8 * images.itemsize
    for number in range(-(-count // SHARD)):
        with draft.shard(number, shape, bits=bits) as shard:
            for row in range(number * SHARD, min(count, (number + 1) * SHARD)):
                shard.append(row, [], [images[row % len(images)]])
            shard.finish()  # on the disk, hence no dirty page stays
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
    """A control group with limited memory."""

    folder: Path
    peak_file: str

    def joining(self, command: list[str]) -> list[str]:
        """The command that runs another one inside the group."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder), *command]

    def peak(self) -> float | None:
        """MiB that were used at most, pages of files counted; None where the kernel does not say."""
        try:
            return int((self.folder / self.peak_file).read_text()) / 2**20
        except OSError:
            return None


@contextmanager
def memory_group(limit: int) -> Iterator[Group | None]:
    """A control group of `limit` MiB inside the one that this process is in; None where none may be made."""
    group = _made(limit)
    try:
        yield group
    finally:
        if group:
            time.sleep(1)  # the last process leaves it
            group.folder.rmdir()


def _made(limit: int) -> Group | None:
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
        except OSError:  # this version is there, but not for memory
            folder.rmdir()
    return None
