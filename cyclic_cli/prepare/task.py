"""`cyclic prepare`: folders of images and their reports → a dataset.

    offer     sources become a sorted list of inputs, tables and side-cars a list of reports
    shards    every fixed run of inputs is decoded, fitted and written by one process, which leaves rows of keys
    join      images meet their reports, duplicates are dropped, patients get their split
    finish    the index is sorted and written; the dataset is whole

The same inputs give the same bytes, whatever the number of workers and however often the work was stopped: what is
written depends on the sorted inputs alone. An array job writes the shards in parts, and joins them in a last call; a
cluster runs the same function on other machines; an update adds shards to a dataset and joins anew.
"""

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cyclic_cli.config import PrepareConfig, as_plain, cache_folder, local_processes
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.prepare.inventory import Inventory
from cyclic_cli.prepare.pairing import Pairing
from cyclic_cli.prepare.shards import DECODERS, ShardJob, write_shard
from cyclic_cli.privacy.keys import SPLITS, Keyer, find_secret
from cyclic_cli.storage import lease
from cyclic_cli.storage.dataset import DatasetFacts, StoredDataset, is_dataset
from cyclic_cli.storage.dataset_draft import DatasetDraft, difference, differs_in_data_alone
from cyclic_cli.workers import executor

TIME_LIMIT = 300.0  # seconds one frame may take
LOOK_EVERY = 0.2  # seconds between two looks at the progress


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What `cyclic prepare` did. inputs = used + duplicates + skipped + rejected."""

    dataset: str
    inputs: int
    used: int
    duplicates: int
    near_duplicates: int  # pairs, all of them kept
    skipped: int
    rejected: int
    rejected_by_reason: dict[str, int]
    samples: int
    patients: int
    studies: int
    paired: int
    image_only: int
    text_only: int
    report_files: int  # tables and side-cars
    splits: dict[str, int]  # samples
    seconds: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """What one part of an array job did; `cyclic prepare --merge` joins the parts."""

    dataset: str
    part: str
    inputs: int  # of this part
    read: int  # of them by this call; the others were done before
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """How the work is done; nothing of it changes what is written."""

    workers: int = 1  # processes that decode
    cluster: str = ""  # address of a Dask scheduler whose workers decode instead
    part: tuple[int, int] | None = None  # (3, 10): write the third of ten parts of the shards, and do not join
    merge: bool = False  # join what the parts have written, and decode nothing
    update: bool = False  # take the inputs into a finished dataset
    time_limit: float = TIME_LIMIT


def prepare(
    sources: list[Path],
    out: Path,
    config: PrepareConfig,
    tables: list[Path] | None = None,
    salt_file: Path | None = None,
    work: Work = Work(),
    report: Report = silent,
) -> PrepareSummary | PartSummary:
    """Make a dataset. Continues what the same inputs and settings left unfinished.

    Args:
        sources: Files, folders (read recursively), glob patterns, zip archives, DICOMDIRs.
        out: The dataset's folder.
        config: What decides its content.
        tables: Report tables; None takes those that the layout finds in the sources.
        salt_file: Holds the secret behind patient keys; see `identity.find_secret`.
        work: How the work is done.
        report: Gets Progress and Note events.

    Raises:
        CyclicError: no input could be used, `out` holds something else, another process writes there, the disk is full.
    """
    start = time.monotonic()
    if config.already_deidentified and salt_file is not None:
        raise UsageError("--already-deidentified uses no secret, but --salt-file gives one.", "Leave one of them out.")
    if work.merge and work.part:
        raise UsageError("--part writes a part, --merge joins all of them.", "Say one at a time.")
    keyer = Keyer(b"" if config.already_deidentified else find_secret(salt_file))
    known = _to_update(out, config, keyer) if work.update else None
    offer = Inventory(sources, tables, out, config, keyer, known)
    for note in offer.notes:
        report(note)
    request = offer.request()
    if is_dataset(out) and (known is None or known.facts.request == request):
        return _already_done(out, request, start)
    if not offer.new and known is None and not offer.has_reports():
        raise CyclicError("There is no file in what was given.", "Name files, folders or patterns that hold images.")
    draft = DatasetDraft(out)
    draft.begin(request)
    shards = _Shards(draft, offer, config, keyer, work, first=offer.next_shard)
    with _alone(draft, work.part):
        if work.part is not None:
            return _part_summary(out, work.part, shards.write(report), shards.inputs(), start)
        if work.merge:
            shards.check_done()
        shards.write(report)
        return _join(draft, offer, shards, request, start, report)


def demo_dataset(report: Report, workers: int) -> Path:
    """The dataset of demo phantoms in the user's cache folder, drawn and prepared on first use.

    Raises:
        CyclicError: several processes of a launcher ask for it before it is there.
    """
    from cyclic_cli.phantom import dataset as phantom

    folder = cache_folder() / f"demo-{version('cyclic-cli')}"
    if not is_dataset(folder / "dataset"):
        if local_processes()[0] > 1:
            raise CyclicError("No dataset is named or found.", "Name one: several processes draw no phantoms.")
        report(Note(f"no dataset is named or found: drawing the demo phantoms in {folder}, once"))
        if not (folder / "files" / "findings.csv").exists():
            phantom.write_demo(
                folder / "files",
                workers=workers,
                report=lambda done, total: report(Progress(done, total, "phantoms")),
            )
        config = PrepareConfig(already_deidentified=True)
        prepare([folder / "files"], folder / "dataset", config, work=Work(workers=workers), report=report)
    return folder / "dataset"


# -------------------------------------------------------------------------------------------- what is there already


def _to_update(out: Path, config: PrepareConfig, keyer: Keyer) -> StoredDataset | None:
    """The finished dataset in `out`, made with the same settings; None where there is none yet."""
    if not is_dataset(out):
        return None
    known = StoredDataset(out)
    if not known.can_be_updated:
        raise CyclicError(f"{out} was made by an older cyclic.", "Prepare all files anew, into another --out.")
    before = known.facts.request
    asked = before | {"settings": as_plain(config), "secret": keyer.check()}
    if not differs_in_data_alone(before, asked):
        raise CyclicError(
            f"{out} was made otherwise: {difference(before, asked)}.",
            "Update it with the settings and the secret it was made with.",
        )
    return known


def _already_done(out: Path, request: dict[str, Any], start: float) -> PrepareSummary:
    facts = StoredDataset(out).facts
    if facts.request != request:
        alike = differs_in_data_alone(facts.request, request)
        raise CyclicError(
            f"{out} is a finished dataset of another request: {difference(facts.request, request)}.",
            "Add files to it with --update, or name another --out." if alike else "Name another --out.",
        )
    DatasetDraft(out).clear_finished()
    return _summary(out, facts.counts, time.monotonic() - start)


@contextmanager
def _alone(draft: DatasetDraft, part: tuple[int, int] | None) -> Iterator[None]:
    """Hold the dataset, or one part of it, against other processes."""
    name = "part-{}-of-{}".format(*part) if part else "whole"
    _refuse_beside(draft, name, part)
    with lease.hold(draft.leases / name, f"{draft.folder} is being prepared"):
        _refuse_beside(draft, name, part)  # one that looked before this lease was there, as this one did
        if part is None:
            draft.sweep()
        yield


def _refuse_beside(draft: DatasetDraft, name: str, part: tuple[int, int] | None) -> None:
    """Raise CyclicError when another process is at work here that is no other part of the same array."""
    for other in draft.leases.iterdir():
        of_same_array = part and other.name.endswith(f"-of-{part[1]}")
        if other.name != name and not other.name.startswith(".") and not of_same_array and lease.is_held(other):
            raise CyclicError(f"{draft.folder} is being prepared by another process.", "Wait for it, or end it.")


# ----------------------------------------------------------------------------------------------------------- shards


class _Shards:
    """The shards of the new inputs. A shard's length depends on the number of the inputs alone."""

    def __init__(
        self, draft: DatasetDraft, offer: Inventory, config: PrepareConfig, keyer: Keyer, work: Work, first: int
    ) -> None:
        self.draft, self.offer, self.config, self.keyer, self.work = draft, offer, config, keyer, work
        self.length = min(4096, max(64, -(-offer.new // 256)))
        self.numbers = range(first, first + -(-offer.new // self.length))
        k, of = work.part or (1, 1)
        self.mine = [number for number in self.numbers if (number - first) % of == k - 1]

    def inputs(self) -> int:
        """How many inputs this call has to see to."""
        return sum(map(self._size, self.mine))

    def write(self, report: Report) -> int:
        """Write every shard that is not whole yet; how many inputs that were."""
        waiting = [shard for shard in self.mine if not self.draft.is_done(shard)]
        total, left = self.inputs(), sum(map(self._size, waiting))
        if left < total:
            report(Note(f"continuing: {total - left} of {total} inputs were done before"))
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
                    for future in wait(pending, LOOK_EVERY, FIRST_COMPLETED).done:
                        future.result()
                        shard = pending.pop(future)
                        progress.add(self._size(shard) if self.work.cluster else 0)
                    if progress.value < total:  # an input begun is not yet done
                        report(Progress(progress.value, total, "images"))
        report(Progress(total, total, "images"))
        return left

    def check_done(self) -> None:
        """Raise CyclicError when a shard is missing."""
        missing = [number for number in self.numbers if not self.draft.is_done(number)]
        if missing:
            raise CyclicError(
                f"{len(missing)} of {len(self.numbers)} shards are not written yet.",
                "Let all parts end well before --merge, or leave --merge out: what is missing is then done here.",
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """What the inputs were worth."""
        for number in self.numbers:
            yield from self.draft.rows(number)

    def _size(self, shard: int) -> int:
        begin = (shard - self.numbers.start) * self.length
        return min(self.length, self.offer.new - begin)

    def _submit(self, pool: Executor, shard: int, progress: "_Counter") -> "Future[None]":
        job = ShardJob(
            folder=os.path.abspath(self.draft.folder),
            shard=shard,
            inputs=self.offer.run((shard - self.numbers.start) * self.length, self.length),
            preprocessing=self.config.preprocessing,
            allow_burned_in=self.config.allow_burned_in,
            secret=self.keyer.secret,
            time_limit=self.work.time_limit,
        )
        # A cluster's worker is on another machine: it cannot count here.
        return pool.submit(write_shard, job) if self.work.cluster else pool.submit(write_shard, job, progress.add)


class _Counter:
    """A number that several threads add to."""

    def __init__(self, value: int) -> None:
        self.value, self._lock = value, threading.Lock()

    def add(self, more: int) -> None:
        with self._lock:
            self.value += more


# ------------------------------------------------------------------------------------------------------------- join


def _join(
    draft: DatasetDraft, offer: Inventory, shards: _Shards, request: dict[str, Any], start: float, report: Report
) -> PrepareSummary:
    report(Note("joining images and reports"))
    offer.add_frames(shards.rows())
    joined = Pairing(offer).run()
    counts = joined.counts()
    if not counts["samples"]:
        draft.discard(shards.numbers)
        raise _nothing_usable(counts, next(joined.rejected(), None))
    for warning in [*joined.warnings(), *_empty_splits(counts, offer.config)]:
        report(Note(warning, warning=True))
    facts = DatasetFacts(
        tool=f"cyclic {version('cyclic-cli')}",
        preprocessing=offer.config.preprocessing,
        split={
            "rule": "given by a table" if joined.split_given else "hash of the patient key",
            "shares": list(offer.config.split),
        },
        labels=offer.labels,
        counts=counts,
        shards=shards.numbers.stop,
        request=request,
        fingerprint=joined.fingerprint(),
    )
    tables = {
        "index": joined.samples(), "inputs": joined.inputs(), "reports": joined.reports(),
        "rejected": joined.rejected(), "duplicates": joined.duplicates(),
    }  # fmt: skip
    draft.finish(facts, tables, joined.text_labels)
    return _summary(draft.folder, counts, time.monotonic() - start)


def _nothing_usable(counts: dict[str, Any], first: dict[str, Any] | None) -> CyclicError:
    reasons = Counter(counts["rejected_by_reason"])
    said = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
    said += f"{', ' if said else ''}no image ({counts['skipped']})" if counts["skipped"] else ""
    said += f". The first is {first['source']}: {first['detail']}" if first else ""
    return CyclicError(f"None of {counts['inputs']} inputs could be used.", f"Reasons: {said}.")


def _empty_splits(counts: dict[str, Any], config: PrepareConfig) -> list[str]:
    empty = [name for name, share in zip(SPLITS, config.split, strict=True) if share and not counts["splits"][name]]
    return [f"no sample fell into {' and '.join(empty)}"] if empty else []


def _summary(out: Path, counts: dict[str, Any], seconds: float) -> PrepareSummary:
    rate = counts["inputs"] / max(seconds, 1e-9)
    return PrepareSummary(dataset=str(out), **counts, seconds=round(seconds, 3), images_per_second=round(rate, 1))


def _part_summary(out: Path, part: tuple[int, int], read: int, inputs: int, start: float) -> PartSummary:
    seconds = round(time.monotonic() - start, 3)
    return PartSummary(dataset=str(out), part="{}/{}".format(*part), inputs=inputs, read=read, seconds=seconds)


def parse_part(text: str) -> tuple[int, int]:
    """`3/10`, or `slurm` for what a Slurm array job's environment says. Raises UsageError for anything else."""
    if text == "slurm":
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        found = [os.environ.get(name, "0" if name.endswith("MIN") else "") for name in names]
        if not all(value.isdigit() for value in found):
            raise UsageError("--part slurm works in an array job only.", "Submit with --array=0-9, or say --part 3/10.")
        task, first, count = map(int, found)
        part, of = task - first + 1, count
    else:
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match:
            raise UsageError(f"--part {text!r} is no part.", "Write it like 3/10, or slurm.")
        part, of = int(match[1]), int(match[2])
    if not 1 <= part <= of:
        raise UsageError(f"--part {part}/{of}: there is no such part.", f"Give 1/{of} to {of}/{of}.")
    return part, of


def check_pattern(pattern: str | None) -> None:
    """Raise UsageError when `--patient-pattern` is no regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"--patient-pattern is not a regular expression: {error}.", "Mend it.") from None
