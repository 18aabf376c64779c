"""`cyclic prepare`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import config as settings
from cyclic_cli import console
from cyclic_cli.commands._options import SOME_LEFT_OUT, Json, Null, Quiet, Sources, Strict, paths_of, show
from cyclic_cli.config import PrepareConfig, Preprocessing

PIXELS, REPORTS, PATIENTS, LARGE = "Pixels", "Reports", "Patients and privacy", "Large data"  # panels of `prepare -h`


def prepare(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="The dataset's folder.")] = Path("dataset"),
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            help="A table of reports or labels (CSV, JSON Lines); may be repeated.",
            show_default=False,
            rich_help_panel=REPORTS,
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="How files and reports lie: auto, tables, mimic-cxr, mimic-cxr-jpg, openi or roco.",
            rich_help_panel=REPORTS,
        ),
    ] = PrepareConfig.layout,
    size: Annotated[
        int, typer.Option(min=8, max=8192, help="Pixels of a side.", rich_help_panel=PIXELS)
    ] = Preprocessing.size,
    bits: Annotated[int, typer.Option(help="Stored per pixel: 8 or 16.", rich_help_panel=PIXELS)] = Preprocessing.bits,
    window: Annotated[
        str,
        typer.Option(
            help="auto (as the file says), full, percentile, CENTER/WIDTH, or for CT lung, bone, brain, mediastinum.",
            rich_help_panel=PIXELS,
        ),
    ] = Preprocessing.window,
    frames: Annotated[
        str, typer.Option(help="Of many: middle, first, all, or a number from 1.", rich_help_panel=PIXELS)
    ] = Preprocessing.frames,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Decode whole and resize, even where a codec can reduce while decoding.",
            rich_help_panel=PIXELS,
        ),
    ] = False,
    allow_burned_in: Annotated[
        bool,
        typer.Option(
            "--allow-burned-in",
            help="Take images that are marked as having text in their pixels.",
            rich_help_panel=PIXELS,
        ),
    ] = False,
    split: Annotated[
        str, typer.Option(help="Shares of the patients: train/val/test.", rich_help_panel=PATIENTS)
    ] = "80/10/10",
    image_column: Annotated[
        str | None,
        typer.Option(help="Column that names the image.", show_default="recognised", rich_help_panel=REPORTS),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the report.", show_default="recognised", rich_help_panel=REPORTS)
    ] = None,
    patient_column: Annotated[
        str | None, typer.Option(help="Column of the patient.", show_default="recognised", rich_help_panel=PATIENTS)
    ] = None,
    label_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column to keep as a label; may be repeated.", show_default="known sets", rich_help_panel=REPORTS
        ),
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression that finds the patient in a path, where nothing else names one.",
            rich_help_panel=PATIENTS,
        ),
    ] = None,
    already_deidentified: Annotated[
        bool,
        typer.Option(
            "--already-deidentified",
            help="Hash patients without a secret: everyone gets the same split.",
            rich_help_panel=PATIENTS,
        ),
    ] = False,
    salt_file: Annotated[
        Path | None,
        typer.Option(
            help="Secret behind the patient keys.",
            show_default="$CYCLIC_SALT, else the user's own",
            rich_help_panel=PATIENTS,
        ),
    ] = None,
    paths: Annotated[
        bool,
        typer.Option("--paths/--no-paths", help="Keep relative source paths in the dataset.", rich_help_panel=PATIENTS),
    ] = True,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Take the files into a finished dataset; nobody's split moves.", rich_help_panel=LARGE
        ),
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            help="Do a part of the work, such as 3/10; slurm reads it from an array job.",
            show_default=False,
            rich_help_panel=LARGE,
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join what the parts have written; decode nothing.", rich_help_panel=LARGE)
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A Dask scheduler whose workers decode: tcp://HOST:8786.", show_default=False, rich_help_panel=LARGE
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=1, help="Seconds that reading one frame may take.", rich_help_panel=LARGE)
    ] = 300,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes.", show_default="the cores it may use", rich_help_panel=LARGE),
    ] = None,
    null: Null = False,
    strict: Strict = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn images (DICOM, PNG, JPEG, TIFF, NIfTI) and their reports into a dataset."""
    from cyclic_cli.prepare import task
    from cyclic_cli.privacy.keys import parse_split

    task.check_pattern(patient_pattern)
    config = PrepareConfig(
        preprocessing=Preprocessing(size=size, bits=bits, window=window, frames=frames, exact=exact),
        split=parse_split(split), image_column=image_column, text_column=text_column, patient_column=patient_column,
        label_columns=tuple(label_column or ()), layout=layout, patient_pattern=patient_pattern,
        allow_burned_in=allow_burned_in, already_deidentified=already_deidentified, paths=paths,
    )  # fmt: skip
    work = task.Work(
        workers=workers or settings.available_cpus(), cluster=cluster or "", merge=merge, update=update,
        part=task.parse_part(part) if part else None, time_limit=time_limit,
    )  # fmt: skip
    with console.reporting(quiet) as report:
        summary = task.prepare(paths_of(sources, null), out, config, reports, salt_file, work, report)
    if isinstance(summary, task.PartSummary):
        show(f"Part {summary.part}", asdict(summary), json)
        return
    show("Dataset", asdict(summary), json)
    if not json and not quiet:
        if summary.rejected or summary.skipped:
            console.say(f"What was not used, and why, stands in {out / 'rejected.jsonl'}.")
        if summary.samples > summary.text_only:
            console.say(f"Next: cyclic train {out}")
    if strict and summary.rejected:
        raise typer.Exit(SOME_LEFT_OUT)
