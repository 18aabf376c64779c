"""The command `cyclic prepare`: makes a dataset from images and reports."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cyclic_cli import console, environment
from cyclic_cli.commands._options import SOME_LEFT_OUT, Json, Null, Quiet, Sources, Strict, paths_of, show
from cyclic_cli.config import PrepareConfig, Preprocessing

PIXELS, REPORTS, PATIENTS, LARGE = (
    "Pixels",
    "Reports",
    "Patients and privacy",
    "Large data",
)  # groups of options in the help


def prepare(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")] = Path("dataset"),
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            help="Table of reports or labels (CSV, TSV or JSON Lines, also gzipped); may be repeated.",
            show_default=False,
            rich_help_panel=REPORTS,
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="Arrangement of files and reports: auto, tables, mimic-cxr, mimic-cxr-jpg, openi or roco.",
            rich_help_panel=REPORTS,
        ),
    ] = PrepareConfig.layout,
    size: Annotated[
        int, typer.Option(min=8, max=8192, help="Pixels per side of the stored images.", rich_help_panel=PIXELS)
    ] = Preprocessing.size,
    bits: Annotated[
        int, typer.Option(help="Bits stored per pixel: 8 or 16.", rich_help_panel=PIXELS)
    ] = Preprocessing.bits,
    window: Annotated[
        str,
        typer.Option(
            help="Grey-level window: auto (that of the file, else percentile), full, percentile, CENTER/WIDTH, or "
            "for CT lung, bone, brain or mediastinum.",
            rich_help_panel=PIXELS,
        ),
    ] = Preprocessing.window,
    frames: Annotated[
        str,
        typer.Option(
            help="Frames to take from a multi-frame file: middle, first, all, or a number from 1.",
            rich_help_panel=PIXELS,
        ),
    ] = Preprocessing.frames,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Decode at full resolution and resize, even if the codec can decode at a lower resolution.",
            rich_help_panel=PIXELS,
        ),
    ] = False,
    allow_burned_in: Annotated[
        bool,
        typer.Option(
            "--allow-burned-in",
            help="Accept images whose header says that text is burned into the pixels.",
            rich_help_panel=PIXELS,
        ),
    ] = False,
    split: Annotated[
        str, typer.Option(help="Percentages of the patients for train/val/test.", rich_help_panel=PATIENTS)
    ] = "80/10/10",
    image_column: Annotated[
        str | None,
        typer.Option(
            help="Table column of the image path.", show_default="recognised by its name", rich_help_panel=REPORTS
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Table column of the report text.", show_default="recognised by its name", rich_help_panel=REPORTS
        ),
    ] = None,
    patient_column: Annotated[
        str | None,
        typer.Option(
            help="Table column of the patient.", show_default="recognised by its name", rich_help_panel=PATIENTS
        ),
    ] = None,
    label_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Table column to keep as a label; may be repeated.",
            show_default="label columns of well-known datasets",
            rich_help_panel=REPORTS,
        ),
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression that finds the patient in a path, if nothing else names the patient.",
            rich_help_panel=PATIENTS,
        ),
    ] = None,
    already_deidentified: Annotated[
        bool,
        typer.Option(
            "--already-deidentified",
            help="Make patient keys without a secret, so that everyone gets the same keys and the same split.",
            rich_help_panel=PATIENTS,
        ),
    ] = False,
    strict_text: Annotated[
        bool,
        typer.Option(
            "--strict-text",
            help="Keep out reports with capitalised words that no word list and fewer than ten patients know.",
            rich_help_panel=PATIENTS,
        ),
    ] = False,
    salt_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the secret from which patient keys are made.",
            show_default="$CYCLIC_SALT, or the secret of the user",
            rich_help_panel=PATIENTS,
        ),
    ] = None,
    paths: Annotated[
        bool,
        typer.Option(
            "--paths/--no-paths", help="Store relative source paths in the dataset.", rich_help_panel=PATIENTS
        ),
    ] = True,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Add files to a finished dataset. Patients stay in their split.", rich_help_panel=LARGE
        ),
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(
            help="Do one part of the work, such as 3/10, or slurm for the part of an array job.",
            show_default=False,
            rich_help_panel=LARGE,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Join the finished parts into a dataset, without decoding.", rich_help_panel=LARGE
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Address of a Dask scheduler whose workers decode, such as tcp://HOST:8786.",
            show_default=False,
            rich_help_panel=LARGE,
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=1, help="Seconds that reading one frame may take, at most.", rich_help_panel=LARGE)
    ] = 300,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of worker processes.", show_default="the available cores", rich_help_panel=LARGE
        ),
    ] = None,
    null: Null = False,
    strict: Strict = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn images (DICOM, PNG, JPEG, TIFF, NIfTI) and their reports into a dataset."""
    from cyclic_cli.imaging.guesses import lines_of
    from cyclic_cli.prepare import task
    from cyclic_cli.privacy.keys import parse_split

    task.check_pattern(patient_pattern)
    config = PrepareConfig(
        preprocessing=Preprocessing(size=size, bits=bits, window=window, frames=frames, exact=exact),
        split=parse_split(split), image_column=image_column, text_column=text_column, patient_column=patient_column,
        label_columns=tuple(label_column or ()), layout=layout, patient_pattern=patient_pattern,
        allow_burned_in=allow_burned_in, already_deidentified=already_deidentified,
        strict_text=strict_text, paths=paths,
    )  # fmt: skip
    work = task.Work(
        workers=workers or environment.available_cpus(), cluster=cluster or "", merge=merge, update=update,
        part=task.parse_part(part) if part else None, time_limit=time_limit,
    )  # fmt: skip
    with console.reporting(quiet) as report:
        summary = task.prepare(paths_of(sources, null), out, config, reports, salt_file, work, report)
    if isinstance(summary, task.PartSummary):
        show(f"Part {summary.part}", asdict(summary), json)
        return
    show("Dataset", asdict(summary), json)
    if not quiet:
        for line in lines_of(summary.guessed):
            console.print_line(line)
        if summary.guessed:
            console.print_line(f"The column `guesses` of {out / 'inputs.parquet'} names these images.")
    if not json and not quiet:
        if summary.rejected or summary.skipped or summary.texts_unreadable:
            console.print_line(f"{out / 'rejected.jsonl'} lists what was not used, with reasons.")
        if summary.texts_kept_out:
            console.print_line(f"{out / 'rejected.jsonl'} lists the texts that --strict-text kept out, for review.")
        if summary.samples > summary.text_only:
            console.print_line(f"Next: cyclic train {out}")
    if strict and (summary.rejected or summary.texts_unreadable):
        raise typer.Exit(SOME_LEFT_OUT)
