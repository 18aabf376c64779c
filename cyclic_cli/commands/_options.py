"""What commands share: options that mean the same everywhere, and how results and inputs are found."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli import config as settings
from cyclic_cli import console
from cyclic_cli.errors import CyclicError, UsageError

SOME_LEFT_OUT = 8  # exit code with --strict
LARGEST_SUMMARY = 2**20  # bytes

Json = Annotated[bool, typer.Option("--json", help="Put one JSON object on stdout.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Put one JSON object a scan and model on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but warnings and errors.")]
Strict = Annotated[bool, typer.Option(help="Exit with 8 when some inputs could not be used.")]
Null = Annotated[bool, typer.Option("-0", "--null", help="Paths on stdin end with a NUL byte, not a line end.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes.", show_default="the cores it may use")]
SOURCES = typer.Argument(
    help="Files, folders, quoted glob patterns, or - for a list of paths on stdin.", show_default=False
)
Sources = Annotated[list[str], SOURCES]
OptionalSources = Annotated[list[str] | None, SOURCES]
Dataset = Annotated[
    Path | None, typer.Argument(help="The dataset.", show_default="$CYCLIC_DATASET, ./dataset, the demo's")
]
WHERE_MODELS_ARE = "$CYCLIC_MODEL, runs/latest, the package's"
Checkpoint = Annotated[
    Path | None, typer.Option(help="A run folder or .safetensors file.", show_default=WHERE_MODELS_ARE)
]
Model = Annotated[
    Path | None,
    typer.Option(
        help="A run folder, a .safetensors or an .onnx file, or a folder of these.", show_default=WHERE_MODELS_ARE
    ),
]
Paths = Annotated[bool, typer.Option("--paths/--no-paths", help="Name inputs by their path, or by a running number.")]
BurnedIn = Annotated[
    bool, typer.Option("--allow-burned-in", help="Take images that are marked as having text in their pixels.")
]
SummaryFile = Annotated[
    Path | None, typer.Option("--summary", help="Write the totals there, as JSON.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def show(title: str, values: dict[str, Any], as_json: bool) -> None:
    """Put results on stdout: one JSON object, or a table."""
    if as_json:
        console.write_json(values)
    else:
        console.table(title, values)


def write_summary(file: Path | None, totals: dict[str, Any]) -> None:
    """Write the totals as JSON, if a file is named; see `check_summary`."""
    if file is not None:
        from cyclic_cli.storage.files import write_text

        write_text(file, console.as_json(totals) + "\n")


def check_summary(file: Path | None) -> None:
    """Raise CyclicError when a summary would take the place of something that is none."""
    if file is None or not file.is_file():
        return
    try:
        with file.open("rb") as content:
            is_summary = isinstance(json.loads(content.read(LARGEST_SUMMARY) or b"{}"), dict)
    except ValueError:
        is_summary = False
    if not is_summary:
        raise CyclicError(f"{file} exists and is no summary.", "Name another --summary.")


def stream_paths(sources: list[str], null: bool) -> Iterator[Path]:
    """Sources as paths, with `-` replaced by the list on stdin, one after another as they come."""
    for source in sources:
        if not source:  # as a shell gives for a variable that is not set; a path without words would be this folder
            raise UsageError("A source is empty.", "Check the variable it comes from.")
        if source != "-":
            yield Path(source)
            continue
        for line in _records(_stdin(), b"\0" if null else b"\n"):
            if line.strip():
                yield Path(os.fsdecode(line.rstrip(b"\r")))


def _stdin() -> Callable[[], bytes]:
    """Reads what is there of stdin. Not through Python's buffer: a thread that waits in it would block the exit."""
    try:
        number = sys.stdin.fileno()
    except OSError:  # it is no file, as in tests
        return sys.stdin.buffer.read
    return lambda: os.read(number, 65536)


def _records(read: Callable[[], bytes], end: bytes) -> Iterator[bytes]:
    """What stands between ends, as soon as it is there."""
    rest = b""
    while received := read():
        *whole, rest = (rest + received).split(end)
        yield from whole
    yield rest


def paths_of(sources: list[str], null: bool) -> list[Path]:
    """Sources as paths, with `-` replaced by the list on stdin."""
    found = list(stream_paths(sources, null))
    if not found:
        raise CyclicError("No path was given.", "Name files or folders, or send a list of paths to stdin with -.")
    return found


def find_dataset(named: Path | None, report: Any) -> Path:
    """The dataset to use: the argument, `$CYCLIC_DATASET`, `./dataset`, else the demo's, made once."""
    from cyclic_cli.storage.dataset import is_dataset

    if named is not None:
        return named
    if os.environ.get("CYCLIC_DATASET"):
        return Path(os.environ["CYCLIC_DATASET"])
    if is_dataset(Path("dataset")) or Path("dataset/.unfinished").is_dir():
        return Path("dataset")  # an unfinished one is an error of `train`, not a reason to take the demo's
    from cyclic_cli.events import Note
    from cyclic_cli.prepare.task import demo_dataset

    folder = demo_dataset(report, settings.available_cpus())
    report(Note(f"dataset: the demo phantoms in {folder}"))
    return folder
