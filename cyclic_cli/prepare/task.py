"""Runs `cyclic prepare`: makes a dataset from folders of images and their reports.

    inventory   the sources become a sorted list of inputs, the tables and texts a list of reports
    shards      each fixed range of inputs is decoded, fitted and written by one process, which also records their keys
    pairing     images are paired with reports, duplicates are left out, patients get their split
    finish      the index is sorted and written; the dataset is complete

The same inputs give the same bytes, whatever the number of workers and however often the work was interrupted: the
output depends on the sorted inputs alone. An array job writes the shards in parts and joins them in a last call. A
cluster runs the same function on other machines. An update adds shards to a dataset and pairs all reports again.
"""

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from cyclic_cli.config import RENDERING, PrepareConfig, as_plain
from cyclic_cli.environment import cache_folder, local_processes
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.prepare import strict_texts
from cyclic_cli.prepare.inventory import Inventory
from cyclic_cli.prepare.pairing import pair
from cyclic_cli.prepare.patients import add_path_identities
from cyclic_cli.prepare.shards import DECODERS, ShardJob, write_shard
from cyclic_cli.privacy.keys import SPLITS, Keyer, find_secret
from cyclic_cli.storage import lease
from cyclic_cli.storage.dataset import DatasetFacts, StoredDataset, is_dataset
from cyclic_cli.storage.dataset_draft import DatasetDraft, difference, differs_in_data_alone
from cyclic_cli.workers import executor

TIME_LIMIT = 300.0  # seconds
SHORTEST_SHARD, LONGEST_SHARD = 64, 4096  # inputs
WANTED_SHARDS = 256  # as many are made where their length allows
POLL_INTERVAL = 0.2  # seconds between two reports of the progress


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What `cyclic prepare` did; `inputs` is the sum of `used`, `duplicates`, `skipped` and `rejected`."""

    dataset: str
    inputs: int
    used: int
    duplicates: int
    near_duplicates: int  # pairs; all are kept in the dataset
    skipped: int
    rejected: int
    rejected_by_reason: dict[str, int]
    guessed: dict[str, int] = field(default_factory=dict)  # images by the key of `guesses.GUESSES`
    samples: int
    patients: int
    studies: int
    paired: int
    image_only: int
    text_only: int
    report_files: int  # tables, documents and side-car texts
    texts_unreadable: int = 0  # damaged, or in an unknown encoding; not used
    texts_kept_out: int = 0  # by --strict-text
    splits: dict[str, int]  # number of samples
    seconds: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """What one part of an array job did; `cyclic prepare --merge` joins the parts."""

    dataset: str
    part: str
    inputs: int  # of this part
    read: int  # by this call; the others were written before
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """How the work is done. None of these settings changes the output."""

    workers: int = 1  # processes that decode
    cluster: str = ""  # address of a Dask scheduler whose workers decode instead
    part: tuple[int, int] | None = None  # (3, 10): write only the third of ten parts of the shards
    merge: bool = False  # finish the dataset from shards that the parts have written, without decoding
    update: bool = False  # add the inputs to a finished dataset
    time_limit: float = TIME_LIMIT  # seconds one frame may take


def prepare(
    sources: list[Path],
    out: Path,
    config: PrepareConfig,
    tables: list[Path] | None = None,
    salt_file: Path | None = None,
    work: Work = Work(),
    report: Report = silent,
) -> PrepareSummary | PartSummary:
    """Make a dataset, or continue an unfinished one of the same inputs and settings.

    Args:
        sources: Files, folders (read recursively), glob patterns, zip archives, DICOMDIRs.
        out: The dataset's folder.
        config: Settings that decide the dataset's content.
        tables: Report tables; None takes those that the layout finds in the sources.
        salt_file: Holds the secret behind patient keys; see `keys.find_secret`.
        work: How the work is done.
        report: Receives Progress and Note events.

    Raises:
        CyclicError: no input could be used, `out` holds something else, another process writes there, or the disk is
            full.
    """
    start = time.monotonic()
    if config.already_deidentified and salt_file is not None:
        raise UsageError("--already-deidentified uses no secret, but --salt-file gives one.", "Leave one of them out.")
    if work.merge and work.part:
        raise UsageError("--part writes a part, --merge joins all parts.", "Give one of them.")
    keyer = Keyer(b"" if config.already_deidentified else find_secret(salt_file))
    stored = _dataset_to_update(out, config, keyer) if work.update else None
    inventory = Inventory(sources, tables, out, config, keyer, stored)
    for note in inventory.notes:
        report(note)
    request = inventory.request()
    if is_dataset(out) and (stored is None or stored.facts.request == request):
        return _summary_of_finished(out, request, start)
    if not inventory.new and stored is None and not inventory.has_reports():
        raise CyclicError("The sources hold no file.", "Name files, folders or patterns that hold images.")
    draft = DatasetDraft(out)
    draft.begin(request)
    shards = _Shards(draft, inventory, config, keyer, work)
    with _exclusive(draft, work.part):
        if work.part is not None:
            return _part_summary(out, work.part, shards.write(report), shards.inputs(), start)
        if work.merge:
            shards.check_done()
        shards.write(report)
        return _finish(draft, inventory, shards, request, start, report)


def demo_dataset(report: Report, workers: int) -> Path:
    """The dataset of synthetic radiographs in the user's cache folder, drawn and prepared on first use.

    Raises:
        CyclicError: the dataset does not exist yet, and several processes of a launcher ask for it.
    """
    from cyclic_cli.phantom import dataset as phantom

    folder = cache_folder() / f"demo-{version('cyclic-cli')}"
    if not is_dataset(folder / "dataset"):
        if local_processes()[0] > 1:
            raise CyclicError(
                "No dataset is named or found.", "Name one: several processes do not draw the synthetic radiographs."
            )
        report(Note(f"no dataset is named or found: drawing the synthetic radiographs once, in {folder}"))
        if not (folder / "files" / "findings.csv").exists():
            phantom.write_demo(
                folder / "files",
                workers=workers,
                report=lambda done, total: report(Progress(done, total, "synthetic radiographs")),
            )
        config = PrepareConfig(already_deidentified=True)
        prepare([folder / "files"], folder / "dataset", config, work=Work(workers=workers), report=report)
    return folder / "dataset"


# --------------------------------------------------------------------------------------------- existing output


def _dataset_to_update(out: Path, config: PrepareConfig, keyer: Keyer) -> StoredDataset | None:
    """The finished dataset in `out`; None where there is none yet. Raises CyclicError for other settings or secret."""
    if not is_dataset(out):
        return None
    stored = StoredDataset(out)
    if not stored.can_be_updated:
        raise CyclicError(f"{out} was made by an older version of cyclic.", "Prepare all files into another --out.")
    _refuse_other_rendering(stored)
    before = stored.facts.request
    now = before | {"settings": as_plain(config), "secret": keyer.check()}
    if not differs_in_data_alone(before, now):
        raise CyclicError(
            f"{out} was made with other settings: {difference(before, now)}.",
            "Update it with the settings and the secret it was made with.",
        )
    return stored


def _refuse_other_rendering(stored: StoredDataset) -> None:
    if stored.facts.preprocessing.rendering != RENDERING:
        raise CyclicError(
            f"{stored.folder} was made by another version of cyclic, which showed some files in another way.",
            "Prepare all files into another --out.",
        )


def _summary_of_finished(out: Path, request: dict[str, Any], start: float) -> PrepareSummary:
    """The summary of a dataset that the request finds finished. Raises CyclicError where its request was another."""
    stored = StoredDataset(out)
    facts = stored.facts
    if facts.request != request:
        _refuse_other_rendering(stored)
        can_update = differs_in_data_alone(facts.request, request)
        raise CyclicError(
            f"{out} is a finished dataset of another request: {difference(facts.request, request)}.",
            "Add files to it with --update, or name another --out." if can_update else "Name another --out.",
        )
    DatasetDraft(out).clear_finished()
    return _summary(out, facts.counts, time.monotonic() - start)


@contextmanager
def _exclusive(draft: DatasetDraft, part: tuple[int, int] | None) -> Iterator[None]:
    """Hold a lease on the dataset, or on one part of it, that keeps other processes out.

    Raises:
        CyclicError: another process writes there.
    """
    name = "part-{}-of-{}".format(*part) if part else "whole"
    _refuse_other_processes(draft, name, part)
    with lease.hold(draft.leases / name, f"{draft.folder} is being prepared"):
        _refuse_other_processes(draft, name, part)  # another process may have checked before this lease existed
        if part is None:
            draft.sweep()
        yield


def _refuse_other_processes(draft: DatasetDraft, name: str, part: tuple[int, int] | None) -> None:
    """Raise CyclicError where another process writes the dataset; parts of the same array may run together."""
    for other in draft.leases.iterdir():
        of_same_array = part and other.name.endswith(f"-of-{part[1]}")
        if other.name != name and not other.name.startswith(".") and not of_same_array and lease.is_held(other):
            raise CyclicError(f"{draft.folder} is being prepared by another process.", "Wait for it, or end it.")


# ----------------------------------------------------------------------------------------------------------- shards


class _Shards:
    """The shards of the new inputs. The length of a shard depends on the number of new inputs alone."""

    def __init__(
        self, draft: DatasetDraft, inventory: Inventory, config: PrepareConfig, keyer: Keyer, work: Work
    ) -> None:
        self.draft, self.inventory, self.config, self.keyer, self.work = draft, inventory, config, keyer, work
        self.length = min(LONGEST_SHARD, max(SHORTEST_SHARD, -(-inventory.new // WANTED_SHARDS)))
        first = inventory.next_shard
        self.numbers = range(first, first + -(-inventory.new // self.length))
        part, parts = work.part or (1, 1)
        self.own = [number for number in self.numbers if (number - first) % parts == part - 1]

    def inputs(self) -> int:
        """How many inputs the shards of this call have."""
        return sum(map(self._size, self.own))

    def write(self, report: Report) -> int:
        """Write every shard of this call that is not complete yet.

        Returns:
            How many inputs these shards have.
        """
        waiting = [shard for shard in self.own if not self.draft.is_done(shard)]
        total, left = self.inputs(), sum(map(self._size, waiting))
        if left < total:
            report(Note(f"continuing: {total - left} of {total} inputs are done already"))
        progress = _Counter(total - left)
        report(Progress(progress.value, total, "images"))
        if waiting:
            workers = min(self.work.workers, len(waiting))
            with executor(workers, self.work.cluster) as (pool, places), DECODERS.at_work():
                pending: dict[Future[None], int] = {}
                while waiting or pending:
                    while waiting and len(pending) < 2 * places:
                        future = self._submit(pool, waiting[0], progress)
                        pending[future] = waiting.pop(0)
                    for future in wait(pending, POLL_INTERVAL, FIRST_COMPLETED).done:
                        future.result()
                        shard = pending.pop(future)
                        progress.add(self._size(shard) if self.work.cluster else 0)
                    if progress.value < total:  # an input counts when it begins, so `total` is reported only at the end
                        report(Progress(progress.value, total, "images"))
        report(Progress(total, total, "images"))
        return left

    def check_done(self) -> None:
        """Raise CyclicError where a shard is missing."""
        missing = [number for number in self.numbers if not self.draft.is_done(number)]
        if missing:
            raise CyclicError(
                f"{len(missing)} of {len(self.numbers)} shards are not written yet.",
                "Run all parts before --merge, or leave --merge out to write the missing shards here.",
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all frames of the new inputs."""
        for number in self.numbers:
            yield from self.draft.rows(number)

    def _size(self, shard: int) -> int:
        begin = (shard - self.numbers.start) * self.length
        return min(self.length, self.inventory.new - begin)

    def _submit(self, pool: Executor, shard: int, progress: "_Counter") -> "Future[None]":
        job = ShardJob(
            folder=os.path.abspath(self.draft.folder),
            shard=shard,
            inputs=self.inventory.new_inputs((shard - self.numbers.start) * self.length, self.length),
            preprocessing=self.config.preprocessing,
            allow_burned_in=self.config.allow_burned_in,
            secret=self.keyer.secret,
            time_limit=self.work.time_limit,
        )
        # A worker of a cluster runs on another machine and cannot call back.
        return pool.submit(write_shard, job) if self.work.cluster else pool.submit(write_shard, job, progress.add)


class _Counter:
    """A sum that several threads add to."""

    def __init__(self, value: int) -> None:
        self.value, self._lock = value, threading.Lock()

    def add(self, more: int) -> None:
        with self._lock:
            self.value += more


# ----------------------------------------------------------------------------------------------------------- finish


def _finish(
    draft: DatasetDraft, inventory: Inventory, shards: _Shards, request: dict[str, Any], start: float, report: Report
) -> PrepareSummary:
    """Pair images and reports, and write the dataset's tables. Raises CyclicError where no sample is left."""
    report(Note("pairing images and reports"))
    inventory.add_frames(shards.rows())
    add_path_identities(inventory.db, inventory.config.patient_pattern, inventory.keyer)
    paired = pair(inventory)
    tables = paired.tables
    kept_out = list(strict_texts.kept_out(inventory.db, inventory.config.paths))
    counts = tables.counts() | {"texts_kept_out": len(kept_out)}
    if not counts["samples"]:
        draft.discard(shards.numbers)
        raise _nothing_usable(counts, next(tables.rejected(), None))
    for warning in [*paired.warnings, *_empty_splits(counts, inventory.config)]:
        report(Note(warning, warning=True))
    facts = DatasetFacts(
        tool=f"cyclic {version('cyclic-cli')}",
        preprocessing=inventory.config.preprocessing,
        split={
            "rule": "given by a table" if paired.split_given else "hash of the patient key",
            "shares": list(inventory.config.split),
        },
        labels=inventory.labels,
        counts=counts,
        shards=shards.numbers.stop,
        request=request,
        fingerprint=tables.fingerprint(),
    )
    rows = {
        "index": tables.index(), "inputs": tables.inputs(), "reports": tables.reports(),
        "rejected": chain(tables.rejected(), kept_out), "duplicates": tables.duplicates(),
    }  # fmt: skip
    draft.finish(facts, rows, paired.text_labels)
    return _summary(draft.folder, counts, time.monotonic() - start)


def _nothing_usable(counts: dict[str, Any], first: dict[str, Any] | None) -> CyclicError:
    reasons = Counter(counts["rejected_by_reason"])
    listed = [f"{reason} ({count})" for reason, count in reasons.most_common(3)]
    listed += [f"no image ({counts['skipped']})"] if counts["skipped"] else []
    example = f". The first is {first['source']}: {first['detail']}" if first else ""
    return CyclicError(f"None of {counts['inputs']} inputs could be used.", f"Reasons: {', '.join(listed)}{example}.")


def _empty_splits(counts: dict[str, Any], config: PrepareConfig) -> list[str]:
    empty = [name for name, share in zip(SPLITS, config.split, strict=True) if share and not counts["splits"][name]]
    return [f"no sample was assigned to {' and '.join(empty)}"] if empty else []


def _summary(out: Path, counts: dict[str, Any], seconds: float) -> PrepareSummary:
    rate = counts["inputs"] / max(seconds, 1e-9)
    return PrepareSummary(dataset=str(out), **counts, seconds=round(seconds, 3), images_per_second=round(rate, 1))


def _part_summary(out: Path, part: tuple[int, int], read: int, inputs: int, start: float) -> PartSummary:
    seconds = round(time.monotonic() - start, 3)
    return PartSummary(dataset=str(out), part="{}/{}".format(*part), inputs=inputs, read=read, seconds=seconds)


def parse_part(text: str) -> tuple[int, int]:
    """Part and number of parts of `--part`: `3/10`, or `slurm` to read them from the environment of an array job.

    Raises:
        UsageError: the text is neither, or there is no such part.
    """
    if text == "slurm":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        found = [os.environ.get(name, "0" if name.endswith("MIN") else "") for name in names]
        if not all(value.isdigit() for value in found):
            raise UsageError(
                "--part slurm works only in a Slurm array job.", "Submit with --array=0-9, or give --part 3/10."
            )
        task, first, count = map(int, found)
        part, of = task - first + 1, count
    else:
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match:
            raise UsageError(f"--part {text!r} is not a part.", "Write it like 3/10, or slurm.")
        part, of = int(match[1]), int(match[2])
    if not 1 <= part <= of:
        raise UsageError(f"--part {part}/{of} does not exist.", f"Give 1/{of} to {of}/{of}.")
    return part, of


def check_pattern(pattern: str | None) -> None:
    """Raise UsageError where `--patient-pattern` is not a regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"--patient-pattern is not a regular expression: {error}.", "Correct it.") from None
