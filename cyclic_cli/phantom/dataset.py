"""Writes a synthetic dataset of chest radiographs with reports to a folder (`write_demo`).

Every patient, study and image has its own random stream, which is seeded by its position in the dataset. The files
therefore do not depend on the number of worker processes. The first patients are the same for every image count.
"""

import csv
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from cyclic_cli.imaging.dicom.writing import TRANSFER_SYNTAXES, derived_uid, write_radiograph
from cyclic_cli.phantom.anatomy import Patient, sample_patient
from cyclic_cli.phantom.findings import TRUTH_COLUMNS, Finding, sample_findings, truth
from cyclic_cli.phantom.radiograph import draw_radiograph, quantise, sample_finish, sample_view
from cyclic_cli.phantom.reports import write_report
from cyclic_cli.storage.files import write_text
from cyclic_cli.workers import pool as workers_pool

_BUILD, _PLAN, _STUDY, _REPORT, _VIEW, _NOISE, _FILE = range(7)
"""The purpose of a random stream. It follows the dataset's seed and the patient's number in the stream's seed."""

STUDY_PLANS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("PA",),),
    (("PA", "LL"),),
    (("AP",),),
    (("PA",), ("AP",)),
    (("PA", "LL"), ("PA",)),
    (("AP",), ("PA", "LL")),
)
"""Possible sequences of studies of a patient, each study with its views."""
STUDY_PLAN_SHARES = (0.24, 0.28, 0.12, 0.10, 0.14, 0.12)


@dataclass(frozen=True)
class DemoSummary:
    """The counts of what `write_demo` wrote, and its duration in seconds."""

    folder: Path
    images: int
    studies: int
    patients: int
    seconds: float


@dataclass(frozen=True)
class PatientTask:
    """The images of one patient to be written, given by the views of each study."""

    folder: Path
    seed: int
    number: int
    studies: tuple[tuple[str, ...], ...]
    full_size: bool

    def generator(self, *purpose: int) -> np.random.Generator:
        seeds = np.random.SeedSequence([self.seed, self.number, *purpose])
        return np.random.Generator(np.random.PCG64(seeds))

    @property
    def images(self) -> int:
        return sum(len(views) for views in self.studies)


@dataclass(frozen=True)
class Rows:
    """The rows of one image in the two tables, as dicts from column to text."""

    report: dict[str, str]
    finding: dict[str, str]


def _silent(done: int, count: int) -> None:
    """Ignore progress reports."""


def write_demo(
    out: Path,
    count: int = 1000,
    seed: int = 0,
    full_size: bool = False,
    workers: int = 1,
    report: Callable[[int, int], None] = _silent,
) -> DemoSummary:
    """Write `count` synthetic radiographs as DICOM, one report per study, and two tables with one row per image.

    The folder holds images such as `p00012/s01/1.dcm`, reports such as `p00012/s01/report.txt`, `reports.csv` (path,
    patient, study, text) and `findings.csv` (the true findings). The same seed gives the same bytes.

    Args:
        out: The folder, which must be empty or not exist. It appears only when it is complete.
        count: Number of images, at least 1.
        seed: Seed of the dataset.
        full_size: Whether the longer side of an image is 2000 to 3000 pixels instead of 400 to 700.
        workers: Number of processes; it does not change the files.
        report: Called with the number of images written so far and `count`.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    started = time.monotonic()
    draft = out.absolute().with_name(f".{out.absolute().name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)  # left by an interrupted call
    draft.mkdir(parents=True)
    tasks = _plan(draft, count, seed, full_size)
    rows: list[Rows] = []
    for task_rows in _run(tasks, workers):
        rows += task_rows
        report(len(rows), count)
    _write_table(draft / "reports.csv", ["path", "patient", "study", "text"], [row.report for row in rows])
    columns = ["path", "patient", "study", "view", *TRUTH_COLUMNS]
    _write_table(draft / "findings.csv", columns, [row.finding for row in rows])
    os.replace(draft, out)
    studies = sum(len(task.studies) for task in tasks)
    return DemoSummary(out, len(rows), studies, len(tasks), time.monotonic() - started)


def _plan(out: Path, count: int, seed: int, full_size: bool) -> list[PatientTask]:
    """Tasks for as many patients as `count` images need. The studies of the last patient are shortened to fit."""
    tasks: list[PatientTask] = []
    left = count
    while left > 0:
        task = PatientTask(out, seed, len(tasks) + 1, (), full_size)
        choice = int(task.generator(_PLAN).choice(len(STUDY_PLANS), p=STUDY_PLAN_SHARES))
        studies: list[tuple[str, ...]] = []
        for views in STUDY_PLANS[choice]:
            if left > 0:
                studies.append(views[:left])
                left -= len(studies[-1])
        tasks.append(PatientTask(out, seed, task.number, tuple(studies), full_size))
    return tasks


def _run(tasks: list[PatientTask], workers: int) -> Iterator[list[Rows]]:
    """Yield the table rows of each patient, in the order of the tasks."""
    if workers <= 1:
        yield from map(_write_patient, tasks)
        return
    with workers_pool(workers) as pool:
        yield from pool.map(_write_patient, tasks, chunksize=max(1, min(8, len(tasks) // (4 * workers))))


def _write_patient(task: PatientTask) -> list[Rows]:
    patient = sample_patient(task.number, task.generator(_BUILD))
    rows: list[Rows] = []
    findings: tuple[Finding, ...] = ()
    for study, views in enumerate(task.studies, 1):
        findings = sample_findings(task.generator(_STUDY, study), findings)
        folder = task.folder / f"p{patient.number:05d}" / f"s{study:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        text = write_report(findings, views, study == 1, task.generator(_REPORT, study))
        write_text(folder / "report.txt", text + "\n")
        for image, view in enumerate(views, 1):
            path = folder / f"{image}.dcm"
            _write_image(task, patient, findings, study, image, path)
            common = {
                "path": path.relative_to(task.folder).as_posix(),
                "patient": _patient_id(patient),
                "study": _uid(task, study),
            }
            rows.append(Rows(common | {"text": text}, common | {"view": view} | truth(findings)))
    return rows


def _patient_id(patient: Patient) -> str:
    return f"PHANTOM-{patient.number:05d}"


def _uid(task: PatientTask, *parts: object) -> str:
    return derived_uid("cyclic phantom", task.seed, task.number, *parts)


def _study_date(task: PatientTask, study: int) -> str:
    """A synthetic study date (YYYYMMDD). Later studies of a patient have later dates."""
    start = date(2019, 1, 1) + timedelta(days=int(task.generator(_FILE).integers(900)))
    return f"{start + timedelta(days=170 * (study - 1)):%Y%m%d}"


def _write_image(
    task: PatientTask, patient: Patient, findings: tuple[Finding, ...], study: int, image: int, path: Path
) -> None:
    """Draw one image, and write it with randomly chosen DICOM attributes.

    These are modality, bit depth, photometric interpretation, transfer syntax and windows.
    """
    name = task.studies[study - 1][image - 1]
    positioning = task.generator(_VIEW, study, image)
    view = sample_view(name, patient, task.full_size, positioning)
    finish = sample_finish(view, positioning)
    shown = draw_radiograph(patient, view, findings, finish, task.generator(_NOISE, study, image))
    choice = task.generator(_FILE, study, image)
    modality = "CR" if name == "AP" or choice.random() < 0.3 else "DX"
    bits = int(choice.choice([10, 12, 14, 16], p=[0.2, 0.45, 0.25, 0.1]))
    photometric = "MONOCHROME1" if choice.random() < 0.25 else "MONOCHROME2"
    syntax = str(choice.choice(list(TRANSFER_SYNTAXES), p=[0.48, 0.38, 0.14]))
    pixels, (centre, width) = quantise(shown, bits, inverted=photometric == "MONOCHROME1")
    windows: tuple[tuple[float, float], ...] = ((centre, width),)
    kind = choice.random()
    if kind < 0.2:
        windows = ((centre, width), (centre, round(1.3 * width)))
    elif kind < 0.5 and modality == "CR":
        windows = ()
    write_radiograph(
        path,
        pixels,
        modality=modality,
        photometric=photometric,
        bits_stored=bits,
        transfer_syntax=syntax,
        windows=windows,
        pixel_spacing=view.spacing,
        view=name,
        patient_id=_patient_id(patient),
        patient_name=f"Phantom^{patient.number:05d}",
        patient_sex=patient.sex,
        patient_age=patient.age,
        study_uid=_uid(task, study),
        series_uid=_uid(task, study, "series", image),
        image_uid=_uid(task, study, image),
        study_date=_study_date(task, study),
        study_time=f"{8 + study:02d}{image:02d}00",
        series_number=image,
        image_number=1,
    )


def _write_table(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
