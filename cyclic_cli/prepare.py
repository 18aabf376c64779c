"""`cyclic prepare`: folders of images and their reports → a data set.

    expand    sources to a sorted list of inputs; tables and side-cars are told from images
    shard     every fixed run of inputs is decoded, fitted and written by one worker, which returns rows of keys
    join      rows meet their reports, duplicates are dropped, patients get their split
    finish    the index is sorted and written; the data set is whole

The same inputs give the same bytes, whatever the number of workers and however often the work was stopped:
what is written depends on the sorted inputs alone. Workers never load torch, and hold identities only long
enough to turn them into keys.
"""

import glob
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli import images, storage
from cyclic_cli.config import PrepareConfig, Preprocessing, as_plain, cache_folder
from cyclic_cli.dicom.header import Identities
from cyclic_cli.errors import REASONS, CyclicError, Rejected, Skipped, UsageError
from cyclic_cli.events import Note, Progress, Report, silent
from cyclic_cli.identity import NO_PATIENT, SPLITS, Keyer, find_secret, place, split_of
from cyclic_cli.storage import DatasetDraft, DatasetFacts, StoredDataset
from cyclic_cli.text import SIDE_CAR, TABLE_NAMES, Matched, Reports, read_text, side_car
from cyclic_cli.text import Report as TextReport
from cyclic_cli.workers import pool as workers_pool

Row = dict[str, Any]
ENDS = 4096  # bytes of a file's head and tail that tell it from others of its size


@dataclass(frozen=True)
class Input:
    """One file offered: where it is, and its path relative to the source it came with."""

    path: Path
    source: str  # as UTF-8 text; of several folders each path begins with its folder's name
    relative: str  # the same without that name


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What `cyclic prepare` did. inputs = used + duplicates + skipped + rejected."""

    dataset: str
    inputs: int
    used: int
    duplicates: int
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


def prepare(
    sources: list[Path],
    out: Path,
    config: PrepareConfig,
    tables: list[Path] | None = None,
    salt_file: Path | None = None,
    workers: int = 1,
    report: Report = silent,
) -> PrepareSummary:
    """Make a data set. Continues what the same inputs and settings left unfinished.

    Args:
        sources: Files, folders (read recursively) and glob patterns.
        out: The data set's folder.
        config: What decides its content.
        tables: Report tables; None takes those of the usual names that lie in a source folder.
        salt_file: Holds the secret behind patient keys; see `identity.find_secret`.
        workers: Processes that decode.
        report: Gets Progress and Note events.

    Raises:
        CyclicError: no input could be used, `out` holds something else, the disk is full.
    """
    start = time.monotonic()
    if config.already_deidentified and salt_file is not None:
        raise UsageError("--already-deidentified uses no secret, but --salt-file gives one.", "Leave one of them out.")
    keyer = Keyer(b"" if config.already_deidentified else find_secret(salt_file))
    offer = _expand(sources, tables, out)
    reports = Reports(offer.tables, config)
    for table in reports.tables:
        report(Note(f"{table.name}: {table.columns.described()}; {table.dropped_columns} other columns are not read"))
    if offer.unread_tables:
        report(Note(f"{offer.unread_tables} tables in the source folders are not read, since --reports names others"))
    request = _request(offer, config, keyer)
    if storage.is_dataset(out):
        return _already_done(out, request, start)
    draft = DatasetDraft(out)
    draft.begin(request)
    shards = _runs(offer.inputs)
    _write_shards(draft, shards, config.preprocessing, keyer, workers, report)
    joined = _Join(offer, reports, config, keyer).run(draft.rows(len(shards)))
    for note in joined.notes:
        report(note)
    if not joined.samples:
        draft.discard()
        raise _nothing_usable(offer, joined)
    counts = _counts(offer, joined)
    facts = DatasetFacts(
        tool=f"cyclic {version('cyclic-cli')}",
        preprocessing=config.preprocessing,
        split={
            "rule": "given by a table" if joined.split_given else "hash of the patient key",
            "shares": list(config.split),
        },
        labels=reports.labels,
        counts=counts,
        shards=len(shards),
        request=request,
        fingerprint=_fingerprint(joined.samples),
    )
    draft.finish(facts, joined.samples, joined.left_out)
    return _summary(out, counts, time.monotonic() - start)


def demo_dataset(report: Report, workers: int) -> Path:
    """The data set of demo phantoms in the user's cache folder, drawn and prepared on first use."""
    from cyclic_cli import phantom

    folder = cache_folder() / f"demo-{version('cyclic-cli')}"
    if not storage.is_dataset(folder / "dataset"):
        report(Note(f"no data set is named or found: drawing the demo phantoms in {folder}, once"))
        if not (folder / "files" / "findings.csv").exists():
            phantom.write_demo(
                folder / "files",
                workers=workers,
                report=lambda done, total: report(Progress(done, total, "phantoms")),
            )
        config = PrepareConfig(already_deidentified=True)
        prepare([folder / "files"], folder / "dataset", config, workers=workers, report=report)
    return folder / "dataset"


# --------------------------------------------------------------------------------------------------- expand


@dataclass
class _Offer:
    """What the sources hold."""

    inputs: list[Input] = field(default_factory=list)  # sorted
    tables: list[Path] = field(default_factory=list)
    unread_tables: int = 0
    side_cars: dict[Path, Path] = field(default_factory=dict)  # image → text file


def _expand(sources: list[Path], tables: list[Path] | None, out: Path) -> _Offer:
    """Files behind the sources, each once, with images, tables and side-cars told apart by name and place."""
    found: dict[str, Input] = {}
    offer = _Offer(tables=list(tables or []))
    named = {os.path.abspath(table) for table in offer.tables}
    folders = {source for source in sources if source.is_dir()}
    common = _common_folder([source for source in sources if source not in folders])
    beside: set[Path] = set()  # tables of the usual names in the source folders
    for source in sources:
        is_folder = source in folders
        prefix = f"{source.resolve().name}/" if is_folder and len(folders) > 1 else ""
        for path, relative in _files_in(source, out) if is_folder else _files_named(source, common):
            absolute = os.path.abspath(path)
            if absolute in named:
                continue
            if is_folder and relative in TABLE_NAMES:
                beside.add(path)
                continue
            found.setdefault(absolute, Input(path, prefix + printable(relative), printable(relative)))
    if tables:
        offer.unread_tables = len(beside)
    else:
        offer.tables = sorted(beside)  # a folder lists its files in any order
    _find_side_cars(offer, found)
    used_texts = {os.path.abspath(path) for path in offer.side_cars.values()}
    offer.inputs = sorted(
        (item for absolute, item in found.items() if absolute not in used_texts),
        key=lambda item: (item.source, str(item.path)),
    )
    return offer


def expand(sources: list[Path], out: Path) -> list[Input]:
    """The files behind sources, each once, sorted, without report tables, side-cars and what lies in `out`."""
    return _expand(sources, None, out).inputs


def printable(path: Path | str) -> str:
    """A path as UTF-8 text. On disk a name is any bytes; those that are no text read `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _common_folder(sources: list[Path]) -> Path:
    """The folder that holds every file named by an absolute path, which their paths are then relative to."""
    folders = [source.parent for source in sources if source.is_absolute()]
    return Path(os.path.commonpath(folders)) if folders else Path()


def _files_in(folder: Path, out: Path) -> Iterator[tuple[Path, str]]:
    """The files of a folder, recursively but for `out` and for hidden files, each with its path relative to it."""
    closed: list[OSError] = []
    for within, inner, names in os.walk(folder, onerror=closed.append):
        inner[:] = [name for name in inner if not _is_hidden(name) and not _is_same(Path(within, name), out)]
        for path in (Path(within, name) for name in names if not _is_hidden(name)):
            yield path, path.relative_to(folder).as_posix()
    for error in closed:  # a folder that cannot be listed is not passed over: it is rejected as unreadable
        path = Path(error.filename)
        yield path, path.relative_to(folder).as_posix()


def _files_named(source: Path, common: Path) -> Iterator[tuple[Path, str]]:
    """The files of a pattern, or the file itself, there or not; an absolute path is made relative to `common`."""
    if glob.has_magic(str(source)) and not source.exists():
        for match in glob.glob(str(source), recursive=True):
            if os.path.isfile(match):
                yield Path(match), Path(match).as_posix()
    elif source.is_absolute():
        yield source, source.relative_to(common).as_posix()
    else:
        yield source, source.name if ".." in source.parts else source.as_posix()


def _is_hidden(name: str) -> bool:
    """What file managers leave behind, such as .DS_Store, is no input."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini")


def _is_same(path: Path, other: Path) -> bool:
    return os.path.abspath(path) == os.path.abspath(other)


def _find_side_cars(offer: _Offer, found: dict[str, Input]) -> None:
    texts_in: dict[Path, set[str]] = {}
    for item in found.values():
        folder = item.path.parent
        if item.path.suffix.lower() == ".txt":
            continue
        if folder not in texts_in:
            listed = os.listdir(folder) if folder.is_dir() else []
            texts_in[folder] = {name for name in listed if name.lower().endswith(".txt")}
        name = side_car(item.path, texts_in[folder])
        if name:
            offer.side_cars[item.path] = folder / name


def _request(offer: _Offer, config: PrepareConfig, keyer: Keyer) -> str:
    """A fingerprint of inputs, reports, settings and secret. Of an image its size, its head and its tail count."""
    digest = hashlib.sha256(json.dumps(as_plain(config), sort_keys=True).encode() + keyer.check().encode())
    for item in offer.inputs:
        digest.update(item.source.encode() + b"\0" + _ends(item.path))
    for path in [*offer.tables, *sorted(set(offer.side_cars.values()))]:
        if not path.is_file():
            raise CyclicError(f"There is no table {path}.", "Check --reports.")
        digest.update(path.read_bytes())
    return keyer.key("request", digest.hexdigest())


def _ends(path: Path) -> bytes:
    """A file's size, first and last bytes, which differ between images of one size; empty where it cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(ENDS)
            file.seek(max(0, size - ENDS))
            return b"%d" % size + head + file.read(ENDS)
    except OSError:
        return b""


def _already_done(out: Path, request: str, start: float) -> PrepareSummary:
    facts = StoredDataset(out).facts
    DatasetDraft(out).clear()  # a kill may have come just before that
    if facts.request != request:
        raise CyclicError(
            f"{out} is a finished data set of other inputs or settings.",
            "Name another --out, or remove it first.",
        )
    return _summary(out, facts.counts, time.monotonic() - start)


# ---------------------------------------------------------------------------------------------------- shard


def _runs(inputs: list[Input]) -> list[list[tuple[int, Path]]]:
    """Inputs, numbered, in runs of one shard each. The run's length depends on their number alone."""
    length = min(4096, max(64, -(-len(inputs) // 256)))
    numbered = [(number, item.path) for number, item in enumerate(inputs)]
    return [numbered[first : first + length] for first in range(0, len(numbered), length)]


def _write_shards(
    draft: DatasetDraft,
    shards: list[list[tuple[int, Path]]],
    preprocessing: Preprocessing,
    keyer: Keyer,
    workers: int,
    report: Report,
) -> None:
    """Write every shard that is not whole yet, in worker processes or, for one worker, here."""
    total = sum(len(run) for run in shards)
    waiting = [shard for shard in range(len(shards)) if not draft.is_done(shard)]
    done = total - sum(len(shards[shard]) for shard in waiting)
    if done:
        report(Note(f"continuing: {done} of {total} inputs were done before"))
    report(Progress(done, total, "images"))
    if min(workers, len(waiting)) <= 1:
        for shard in waiting:
            _write_shard(draft.folder, shard, shards[shard], preprocessing, keyer)
            done += len(shards[shard])
            report(Progress(done, total, "images"))
        return
    try:
        with workers_pool(workers) as pool:
            futures: dict[Future[None], int] = {
                pool.submit(_write_shard, draft.folder, shard, shards[shard], preprocessing, keyer): len(shards[shard])
                for shard in waiting
            }
            for future in as_completed(futures):
                future.result()
                done += futures[future]
                report(Progress(done, total, "images"))
    except BrokenProcessPool as error:
        raise CyclicError(
            "A decoder crashed a worker process.", "The same command continues; leave the file out that crashes it."
        ) from error


def _write_shard(
    folder: Path, shard: int, run: list[tuple[int, Path]], preprocessing: Preprocessing, keyer: Keyer
) -> None:
    """Decode and fit one run of inputs; write the shard. What one input is worth stands in its row."""
    rows: list[Row] = []
    fitted: list[np.ndarray] = []
    for number, path in run:
        row: Row = {"input": number}
        try:
            picture = images.read(images.content_of(path), preprocessing)
            pixels = images.fit(picture, preprocessing)
            if pixels.min() == pixels.max():
                raise Rejected("blank", "nothing is left of it at this size")
            row |= {"status": "used", "row": len(fitted), "sample": _sample_key(path, keyer)}
            row |= {"content": hashlib.sha256(pixels.tobytes()).hexdigest()[:32], **asdict(picture.facts)}
            row |= _header_keys(picture.identities, keyer)
            fitted.append(pixels)
        except Rejected as error:
            row |= {"status": "rejected", "reason": error.reason, "detail": error.message}
            row |= _header_keys(error.identities, keyer)
        except Skipped as error:
            row |= {"status": "skipped", "reason": error.kind, "detail": error.message}
        rows.append(row)
    DatasetDraft(folder).write_shard(
        shard, np.stack(fitted) if fitted else None, [{**row, "shard": shard} for row in rows]
    )


def _sample_key(path: Path, keyer: Keyer) -> str:
    """A key of the file's content: the same wherever the file lies and whatever size it is prepared at."""
    with path.open("rb") as file:
        return keyer.key("sample", hashlib.file_digest(file, "blake2b").hexdigest())


def _header_keys(identities: object, keyer: Keyer) -> Row:
    """Keys of the patient and the study that a header names; empty where it names none."""
    if not isinstance(identities, Identities):
        return {"patient": "", "study": ""}
    patient, study = identities.patient, identities.study
    known = bool(patient) and patient[0].upper() not in NO_PATIENT
    return {
        "patient": keyer.key("patient", *patient) if known else "",
        "study": keyer.key("study", study) if study else "",
    }


# ----------------------------------------------------------------------------------------------------- join


@dataclass(frozen=True)
class _Owner:
    """Whom a sample belongs to."""

    patient: str  # keys
    study: str
    named: bool  # whether anything names the patient; else the study, or the sample alone, stands for one


@dataclass
class _Join:
    """Brings rows and reports together. `run` fills the fields that have defaults."""

    offer: _Offer
    reports: Reports
    config: PrepareConfig
    keyer: Keyer
    samples: list[Row] = field(default_factory=list)  # of the index, sorted
    left_out: list[Row] = field(default_factory=list)  # of rejected.jsonl
    notes: list[Note] = field(default_factory=list)
    split_given: bool = False
    nobody: int = 0  # samples without any patient
    shared: int = 0  # side-cars beside images of several patients

    def run(self, rows: list[Row]) -> "_Join":
        matched = self.reports.match([(item.path, item.relative) for item in self.offer.inputs])
        self._drop_shared_side_cars(rows)
        candidates: list[tuple[Row, TextReport]] = []
        texts_alone = [(self._owner(report), report) for report in matched.unmatched]
        for row in rows:
            item, number = self.offer.inputs[row["input"]], row["input"]
            report = self._with_side_car(item, matched.reports.get(number, TextReport()))
            if number in matched.conflicting:
                self._leave_out(row | {"status": "rejected"}, "conflicting_rows", REASONS["conflicting_rows"])
            elif row["status"] == "used":
                candidates.append((row | {"owner": self._owner(report, item, row)}, report))
            else:
                self._leave_out(row, *_reason(item, row))
                texts_alone.append((self._owner(report, item, row), report))
        texts_alone += self._keep_one_of_each(candidates)
        self._add_texts(texts_alone)
        self._split()
        self._note(matched)
        return self

    def _with_side_car(self, item: Input, report: TextReport) -> TextReport:
        """An input's report, with the text of its side-car where the tables have none."""
        path = self.offer.side_cars.get(item.path)
        return report if report.text or path is None else replace(report, text=read_text(path).strip())

    def _owner(self, report: TextReport, item: Input | None = None, row: Row | None = None) -> _Owner:
        """Who a sample belongs to: by the table, else the header, the path pattern, the study, or nobody else."""
        study = self.keyer.key("study", report.study) if report.study else (row or {}).get("study", "")
        patient = (row or {}).get("patient", "")
        if report.patient and report.patient.upper() not in NO_PATIENT:
            patient = self.keyer.key("patient", report.patient)
        if not patient and item is not None and self.config.patient_pattern:
            found = re.search(self.config.patient_pattern, item.source)
            patient = self.keyer.key("patient", found[1] if found.groups() else found[0]) if found else ""
        alone = (row or {}).get("sample") or self.keyer.key("text", report.image, report.text)
        study_or_alone = study or self.keyer.key("study of sample", alone)
        if patient:
            return _Owner(patient, study_or_alone, named=True)
        patient = self.keyer.key("patient of study", study) if study else self.keyer.key("patient of sample", alone)
        return _Owner(patient, study_or_alone, named=False)

    def _keep_one_of_each(self, candidates: list[tuple[Row, TextReport]]) -> list[tuple[_Owner, TextReport]]:
        """Of equal pixels keep one: under the patient key that sorts first, with a text if there is one."""
        best: dict[str, Row] = {}
        texts_alone = []
        for row, report in sorted(
            candidates, key=lambda pair: (pair[0]["owner"].patient, not pair[1].text, pair[0]["sample"])
        ):
            kept = best.setdefault(row["content"], row)
            if kept is row:
                self._add(row, row["owner"], report, self.offer.inputs[row["input"]].source)
            else:
                other = self.offer.inputs[kept["input"]].source if self.config.paths else f"sample {kept['sample']}"
                self._leave_out(row | {"status": "duplicate"}, "duplicate", f"at this size the same pixels as {other}")
                texts_alone.append((row["owner"], report))
        return texts_alone

    def _add_texts(self, texts_alone: list[tuple[_Owner, TextReport]]) -> None:
        """Reports whose image is missing, rejected or a duplicate become samples without an image, once a study."""
        known = {(row[who], row["text"]) for row in self.samples for who in ("patient", "study")}
        for owner, report in texts_alone:
            said = {(owner.patient, report.text), (owner.study, report.text)}
            if report.text and not said & known:
                known |= said
                sample = self.keyer.key("text sample", owner.patient, owner.study, report.text)
                self._add({"sample": sample}, owner, report, None)

    def _add(self, row: Row, owner: _Owner, report: TextReport, source: str | None) -> None:
        """One row of the index; `source` is None for a sample without an image."""
        self.nobody += not owner.named
        empty = {"shard": -1, "row": -1, "height": 0, "width": 0, "bits": 0, "pixel_spacing": 0.0}
        kept = {name: row.get(name, empty.get(name, "")) for name in storage.INDEX_COLUMNS}
        kept |= {label: report.labels.get(label) for label in self.reports.labels}
        self.samples.append(
            kept
            | {
                "patient": owner.patient,
                "study": owner.study,
                "split": (report.split, report.line),
                "text": report.text,
            }
            | {"has_image": source is not None, "has_text": bool(report.text)}
            | {"source": source if self.config.paths else None}
        )

    def _leave_out(self, row: Row, reason: str, detail: str) -> None:
        source = self.offer.inputs[row["input"]].source if self.config.paths else f"{row['input'] + 1:06d}"
        self.left_out.append({"source": source, "status": row["status"], "reason": reason, "detail": detail})

    def _note(self, matched: Matched) -> None:
        """Warnings, each with its count."""
        imageless = sum(bool(report.image) for report in matched.unmatched)
        empty = [name for name, share in zip(SPLITS, self.config.split, strict=True) if share and not self._has(name)]
        counts = {
            "{} rows of the tables found their image by its file name alone": matched.by_name,
            "{} rows of the tables name an image that was not given": imageless,
            "{} report.txt lie beside images of several patients or studies, and were not used": self.shared,
            "{} samples name no patient: each study, or sample, counts as a patient of its own": self.nobody,
        }
        said = [text.format(count) for text, count in counts.items() if count]
        said += [f"no sample fell into {' and '.join(empty)}"] if empty and self.samples else []
        self.notes += [Note(text, warning=True) for text in said]

    def _has(self, split: str) -> bool:
        return any(row["split"] == split for row in self.samples)

    def _drop_shared_side_cars(self, rows: list[Row]) -> None:
        """A folder's one report belongs to its images only where they are of one study, or at least of one patient."""
        owners: dict[Path, set[str]] = {}
        for row in rows:
            text = self.offer.side_cars.get(self.offer.inputs[row["input"]].path)
            if text is not None and text.name == SIDE_CAR and row["status"] == "used":
                owners.setdefault(text, set()).add(row["study"] or row["patient"])
        shared = {text for text, keys in owners.items() if len(keys) > 1}
        self.shared = len(shared)
        self.offer.side_cars = {path: text for path, text in self.offer.side_cars.items() if text not in shared}

    def _split(self) -> None:
        """Give every patient a split, from the table where it gives one, and sort the samples."""
        given: dict[str, str] = {}
        for row in self.samples:
            if row["split"] and given.setdefault(row["patient"], row["split"]) != row["split"]:
                raise CyclicError(
                    "A table puts one patient into two splits.",
                    f"Patient key {row['patient']}: mend the table.",
                )
        self.split_given = bool(given)
        for row in self.samples:
            where = place(row["patient"])
            by_hash, position = split_of(where, self.config.split)
            chosen = given[row["patient"]][0] if row["patient"] in given else ""
            row["split"], row["position"] = (chosen, where) if chosen else (by_hash, position)
        self.samples.sort(key=lambda row: (SPLITS.index(row["split"]), row["position"], row["patient"], row["sample"]))
        self.left_out.sort(key=lambda row: (str(row["source"]), row["reason"]))


def _reason(item: Input, row: Row) -> tuple[str, str]:
    """Reason and detail of an input that was not used; of text and tables a better word than their format."""
    suffix = item.path.suffix.lower()
    if row["reason"] == "unknown_format" and suffix == ".txt":
        return "text_without_image", REASONS["text_without_image"]
    if row["reason"] == "unknown_format" and suffix in (".csv", ".tsv", ".jsonl"):
        return "unknown_format", "a table that was not named: give it with --reports"
    return row["reason"], row["detail"]


def _nothing_usable(offer: _Offer, joined: _Join) -> CyclicError:
    if not offer.inputs:
        return CyclicError("There is no file in what was given.", "Name files, folders or patterns that hold images.")
    counted = Counter(row["reason"] for row in joined.left_out)
    reasons = ", ".join(f"{reason} ({count})" for reason, count in counted.most_common(3))
    return CyclicError(f"None of {len(offer.inputs)} inputs could be used.", f"Reasons: {reasons}.")


def _fingerprint(samples: list[Row]) -> str:
    digest = hashlib.sha256()
    for row in samples:
        digest.update("\0".join(str(row[name]) for name in ("sample", "patient", "split", "content", "text")).encode())
    return digest.hexdigest()[:32]


def _counts(offer: _Offer, joined: _Join) -> dict[str, Any]:
    """The totals that the summary and `dataset.yaml` share. Nothing of it depends on time or workers."""
    samples, left_out = joined.samples, joined.left_out
    status = Counter(row["status"] for row in left_out)
    reasons = Counter(row["reason"] for row in left_out if row["status"] == "rejected")
    paired = sum(row["has_image"] and row["has_text"] for row in samples)
    with_image = sum(row["has_image"] for row in samples)
    in_split = Counter(row["split"] for row in samples)
    return {
        "inputs": len(offer.inputs),
        "used": len(offer.inputs) - sum(status.values()),
        "duplicates": status["duplicate"],
        "skipped": status["skipped"],
        "rejected": status["rejected"],
        "rejected_by_reason": dict(sorted(reasons.items())),
        "samples": len(samples),
        "patients": len({row["patient"] for row in samples}),
        "studies": len({row["study"] for row in samples}),
        "paired": paired,
        "image_only": with_image - paired,
        "text_only": len(samples) - with_image,
        "report_files": len(offer.tables) + offer.unread_tables + len(set(offer.side_cars.values())),
        "splits": {name: in_split[name] for name in SPLITS},
    }


def _summary(out: Path, counts: dict[str, Any], seconds: float) -> PrepareSummary:
    rate = counts["inputs"] / max(seconds, 1e-9)
    return PrepareSummary(dataset=str(out), **counts, seconds=round(seconds, 3), images_per_second=round(rate, 1))


def check_pattern(pattern: str | None) -> None:
    """Raise UsageError when `--patient-pattern` is no regular expression."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise UsageError(f"--patient-pattern is not a regular expression: {error}.", "Mend it.") from None
