"""The command line: what is typed becomes plain values for a task, its summary becomes JSON or a table.

Nothing heavy is imported here; a command imports its task when it runs, so that `--help` is instant.
"""

import os
import signal
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cyclic_cli import config as settings
from cyclic_cli import console, registry
from cyclic_cli.config import PrepareConfig, Preprocessing, TrainConfig
from cyclic_cli.errors import CyclicError, Terminated, UsageError

SOME_LEFT_OUT = 8  # exit code with --strict
EXIT_CODES = (
    "Exit codes: 0 success; 1 failure, also when not one input was usable; 2 wrong command line; 8 with --strict "
    "when some inputs were unusable; 130 after Ctrl-C; 143 after SIGTERM, with the state saved (requeue the job)."
)


class ErrorGroup(TyperGroup):
    """The one place where errors become lines and exit codes. A bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGTERM, _stop)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except Terminated:
            console.say("Ended by SIGTERM. The same command continues where it can.")
            raise typer.Exit(143) from None
        except KeyboardInterrupt:
            console.say("Interrupted. The same command continues where it can.")
            raise typer.Exit(130) from None
        except CyclicError as error:
            if error.everywhere and not settings.is_main_process():
                raise typer.Exit(0) from error  # the first process says it; its exit code counts
            console.show(error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:  # a folder that cannot be read or made, a disk that is full
            console.show(
                CyclicError(f"{error.filename or 'A file'}: {error.strerror}.", "Check the path and the disk.")
            )
            raise typer.Exit(1) from error


def _stop(number: int, frame: FrameType | None) -> None:
    raise Terminated


app = typer.Typer(
    cls=ErrorGroup,
    help="Joint image and text representations of diagnostic images, learned by cycle consistency, without labels.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None if os.environ.get("TERM") == "dumb" else "rich",
    pretty_exceptions_enable=False,  # local variables may hold report text
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Put one JSON object on stdout.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Put one JSON object a scan and model on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but warnings and errors.")]
Strict = Annotated[bool, typer.Option(help="Exit with 8 when some inputs could not be used.")]
Null = Annotated[bool, typer.Option("-0", "--null", help="Paths on stdin end with a NUL byte, not a line end.")]
PIXELS, REPORTS, PATIENTS, LARGE = "Pixels", "Reports", "Patients and privacy", "Large data"  # panels of `prepare -h`
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes.", show_default="the cores it may use")]
Sources = Annotated[
    list[str],
    typer.Argument(help="Files, folders, quoted glob patterns, or - for a list of paths on stdin.", show_default=False),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cyclic {version('cyclic-cli')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Joint image and text representations of diagnostic images, learned by cycle consistency, without labels."""


# ---------------------------------------------------------------------------------------------------- commands


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other patients.")] = 0,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="2,000 to 3,000 pixels, as films are; for benchmarks.")
    ] = False,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw chest phantoms as DICOM, with reports and the truth about their findings."""
    from cyclic_cli import phantom
    from cyclic_cli.events import Progress

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CyclicError(f"{out} exists and is not empty.", "Name another --out.")
    with console.talk(quiet) as report:
        summary = phantom.write_demo(
            out, count, seed, full_size, workers or settings.available_cpus(),
            lambda done, total: report(Progress(done, total, "phantoms")),
        )  # fmt: skip
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(summary).items()}
    _show("Demo", values, json)
    if not json and not quiet:
        console.say(f"Next: cyclic prepare {out} --already-deidentified --out dataset")


@app.command()
def prepare(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="The data set's folder.")] = Path("dataset"),
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
        typer.Option(
            "--paths/--no-paths", help="Keep relative source paths in the data set.", rich_help_panel=PATIENTS
        ),
    ] = True,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Take the files into a finished data set; nobody's split moves.", rich_help_panel=LARGE
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
    """Turn images (DICOM, PNG, JPEG, TIFF, NIfTI) and their reports into a data set."""
    from cyclic_cli import prepare as task
    from cyclic_cli.identity import parse_split

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
    with console.talk(quiet) as report:
        summary = task.prepare(_paths(sources, null), out, config, reports, salt_file, work, report)
    if isinstance(summary, task.PartSummary):
        _show(f"Part {summary.part}", asdict(summary), json)
        return
    _show("Data set", asdict(summary), json)
    if not json and not quiet:
        if summary.rejected or summary.skipped:
            console.say(f"What was not used, and why, stands in {out / 'rejected.jsonl'}.")
        if summary.samples > summary.text_only:
            console.say(f"Next: cyclic train {out}")
    if strict and summary.rejected:
        raise typer.Exit(SOME_LEFT_OUT)


def _complete_arch(incomplete: str) -> list[str]:
    return [name for name in registry.names("models") if name.startswith(incomplete)]


@app.command(short_help=f"Train a model ({', '.join(registry.names('models'))}) on a data set.")
def train(
    dataset: Annotated[
        Path | None,
        typer.Argument(help="The data set.", show_default="$CYCLIC_DATASET, ./dataset, the demo's"),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help=f"Architecture: {', '.join(registry.names('models'))}.",
            show_default=TrainConfig.arch,
            autocompletion=_complete_arch,
        ),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(help="Share of the training patients, nested.", show_default=str(TrainConfig.fraction)),
    ] = None,
    paired_fraction: Annotated[
        float | None,
        typer.Option(
            help="Of these, the share whose images and reports may be known to belong together.",
            show_default=str(TrainConfig.paired_fraction),
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="A further data set whose images and reports have no partner; may be repeated.", show_default=False
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default=str(TrainConfig.epochs))
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="the architecture's")] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate; models start near their optimum, so it is small.",
            show_default="the architecture's",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="The same seed gives the same weights.", show_default=str(TrainConfig.seed)),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help=f"Preset: {', '.join(settings.PRESETS)}.", show_default=TrainConfig.objective),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default=TrainConfig.device)] = None,
    precision: Annotated[str | None, typer.Option(help="auto, 32 or bf16.", show_default=TrainConfig.precision)] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes here, a GPU each.", show_default="the launcher's, or 1")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="auto, ddp or fsdp (divided models).", show_default=TrainConfig.strategy)
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile, on GPUs.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write its event files.")] = False,
    config: Annotated[Path | None, typer.Option(help="A run file: YAML, `name: value`.", show_default=False)] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting, such as model.latent=64; may be repeated.",
            show_default=False,
        ),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(help="A run or checkpoint of the same model, to begin with its weights.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="runs/ARCH-FRACTION-seedSEED")
    ] = None,
    resume: Annotated[
        str, typer.Option(help="never, auto (continue where there is state, else start) or must.")
    ] = "never",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on a data set."""
    flags = {
        "arch": arch, "fraction": fraction, "paired_fraction": paired_fraction, "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed,
        "objective": objective, "device": device, "precision": precision, "devices": devices, "strategy": strategy,
        "compile": compile or None, "tensorboard": tensorboard or None,
    }  # fmt: skip
    values = settings.assign(settings.read_run_file(config) if config else {}, assign or [])
    values |= {name: value for name, value in flags.items() if value is not None}
    run_settings = settings.train_settings(values)
    registry.check_file("models", run_settings.arch, "architecture")
    registry.check(resume, ("never", "auto", "must"), "choice of --resume")
    with console.talk(quiet or not settings.is_main_process()) as report:
        from cyclic_cli import training as task

        found = _dataset(dataset, report)
        run = out or Path("runs") / task.default_run_name(run_settings)
        summary = task.train(found, run, run_settings, resume, report, also or [], start_from)
    if settings.is_main_process():
        _show("Run", asdict(summary), json)
        if not json and not quiet:
            console.say(f"Next: cyclic reconstruct SCAN --model {summary.run}")


@app.command()
def reconstruct(
    scans: Sources,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A run folder or .safetensors file; may be repeated, to compare.",
            show_default="$CYCLIC_MODEL, runs/latest, the package's",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the outputs.")] = Path("reconstructions"),
    form: Annotated[str, typer.Option("--format", help="png (with original and difference) or npy.")] = "png",
    sheet: Annotated[
        Path | None, typer.Option(help="A PNG to write of the first 24 scans together.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs of the same name.")] = False,
    paths: Annotated[
        bool, typer.Option("--paths/--no-paths", help="Name scans by their path, or by a running number.")
    ] = True,
    summary_file: Annotated[
        Path | None, typer.Option("--summary", help="Write the totals there, as JSON.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    null: Null = False,
    strict: Strict = False,
    json: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Reconstruct scans with one model or several, and measure the error of each."""
    from cyclic_cli import inference
    from cyclic_cli.storage import write_text

    registry.check(device, ("auto", "cpu", "cuda"), "device")
    registry.check(form, inference.FORMS, "output form")
    results: list[inference.Reconstruction] = []
    summary = inference.ReconstructSummary()
    with console.talk(quiet) as report:
        models = inference.load_models(model or [], device, report)
        for result in inference.reconstruct(
            _paths(scans, null), models, out, summary, form, overwrite, paths, sheet, report
        ):
            if json:
                console.write_json(asdict(result))
            else:
                results.append(result)
    if summary_file:
        write_text(summary_file, console.as_json(asdict(summary)) + "\n")
    if results:
        names = ["source", *(["model"] if len(models) > 1 else []), "output", "mse", "psnr", "ssim"]
        console.columns(names, [asdict(result) for result in results])
    if not summary.used:
        if not summary.inputs:
            raise CyclicError("There are no files in what was named.", "Give files, or folders that hold some.")
        raise CyclicError(f"None of {summary.inputs} inputs could be used.", "Each was named above, with the reason.")
    if strict and summary.rejected:
        raise typer.Exit(SOME_LEFT_OUT)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A data set, a run folder or a checkpoint.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a data set, a run or a checkpoint is."""
    from cyclic_cli.storage import describe

    described = describe(path)
    _show(f"{described['kind'].capitalize()} {path}", described, json)


# ------------------------------------------------------------------------------------------------------ helpers


def _show(title: str, values: dict[str, Any], json: bool) -> None:
    if json:
        console.write_json(values)
    else:
        console.table(title, values)


def _paths(sources: list[str], null: bool) -> list[Path]:
    """Sources as paths, with `-` replaced by the list on stdin."""
    found: list[Path] = []
    for source in sources:
        if not source:  # as a shell gives for a variable that is not set; a path without words would be this folder
            raise UsageError("A source is empty.", "Check the variable it comes from.")
        if source != "-":
            found.append(Path(source))
            continue
        listed = sys.stdin.buffer.read().split(b"\0" if null else b"\n")
        found += [Path(os.fsdecode(line.rstrip(b"\r"))) for line in listed if line.strip()]
    if not found:
        raise CyclicError("No path was given.", "Name files or folders, or send a list of paths to stdin with -.")
    return found


def _dataset(named: Path | None, report: Any) -> Path:
    """The data set to use: the argument, `$CYCLIC_DATASET`, `./dataset`, else the demo's, made once."""
    from cyclic_cli.storage import is_dataset

    if named is not None:
        return named
    if os.environ.get("CYCLIC_DATASET"):
        return Path(os.environ["CYCLIC_DATASET"])
    if is_dataset(Path("dataset")) or Path("dataset/.unfinished").is_dir():
        return Path("dataset")  # an unfinished one is an error of `train`, not a reason to take the demo's
    from cyclic_cli.events import Note
    from cyclic_cli.prepare import demo_dataset

    folder = demo_dataset(report, settings.available_cpus())
    report(Note(f"data set: the demo phantoms in {folder}"))
    return folder
