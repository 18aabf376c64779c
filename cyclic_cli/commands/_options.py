"""Options that several commands share, and helpers that find their inputs and show their results."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclic_cli import console, environment
from cyclic_cli.errors import CyclicError, UsageError

SOME_LEFT_OUT = 8  # exit code with --strict
LARGEST_SUMMARY = 2**20  # bytes

DEVICES = ("auto", "cpu", "cuda")

Json = Annotated[bool, typer.Option("--json", help="Write the result to stdout as one JSON object.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Write one JSON object per scan and model to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and errors on stderr.")]
Strict = Annotated[bool, typer.Option(help="Exit with code 8 if some inputs could not be used.")]
Null = Annotated[bool, typer.Option("-0", "--null", help="Paths on stdin are separated by NUL bytes, not newlines.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Number of worker processes.", show_default="the available cores")
]
SOURCES = typer.Argument(
    help="Files, folders, quoted glob patterns, or - to read a list of paths from stdin.", show_default=False
)
Sources = Annotated[list[str], SOURCES]
OptionalSources = Annotated[list[str] | None, SOURCES]
Dataset = Annotated[
    Path | None,
    typer.Argument(help="The dataset folder.", show_default="$CYCLIC_DATASET, ./dataset, or the demo dataset"),
]
DEFAULT_MODEL = "$CYCLIC_MODEL, runs/latest, or the model of the package"
Checkpoint = Annotated[Path | None, typer.Option(help="Run folder or .safetensors file.", show_default=DEFAULT_MODEL)]
Model = Annotated[
    Path | None,
    typer.Option(
        help="Run folder, .safetensors file, .onnx file, or folder of .onnx files.", show_default=DEFAULT_MODEL
    ),
]
Paths = Annotated[
    bool, typer.Option("--paths/--no-paths", help="Identify inputs in the output by their path, or by a number.")
]
BurnedIn = Annotated[
    bool, typer.Option("--allow-burned-in", help="Accept images whose header says that text is burned into the pixels.")
]
SummaryFile = Annotated[
    Path | None, typer.Option("--summary", help="Write the totals to this JSON file.", show_default=False)
]
Device = Annotated[str, typer.Option(help="Device to compute on: auto, cpu or cuda.")]


def show(title: str, values: dict[str, Any], as_json: bool) -> None:
    """Write results to stdout, as one JSON object or as a table."""
    if as_json:
        console.write_json(values)
    else:
        console.table(title, values)


def write_summary(file: Path | None, totals: dict[str, Any]) -> None:
    """Write the totals to a JSON file, if one is named. Call `check_summary` first."""
    if file is not None:
        from cyclic_cli.storage.files import write_text

        write_text(file, console.as_json(totals) + "\n")


def check_summary(file: Path | None) -> None:
    """Raise CyclicError if a summary would replace an existing file that is not a summary."""
    if file is None or not file.is_file():
        return
    try:
        with file.open("rb") as content:
            is_summary = isinstance(json.loads(content.read(LARGEST_SUMMARY) or b"{}"), dict)
    except ValueError:
        is_summary = False
    if not is_summary:
        raise CyclicError(f"{file} exists and is not a summary.", "Name another --summary.")


def check_some_used(inputs: int, used: int) -> None:
    """Raise CyclicError if no input could be used."""
    if not inputs:
        raise CyclicError("The sources contain no inputs.", "Give files, or folders that contain files.")
    if not used:
        raise CyclicError(f"None of {inputs} inputs could be used.", "The reason for each one is given above.")


def stream_paths(sources: list[str], null: bool) -> Iterator[Path]:
    """Yield the sources as paths. A `-` is replaced by the paths on stdin, as they arrive."""
    for source in sources:
        if not source:  # a shell passes this for an unset variable; Path("") would be the current folder
            raise UsageError("A source is empty.", "Check the variable it comes from.")
        if source != "-":
            yield Path(source)
            continue
        for line in _records(_stdin(), b"\0" if null else b"\n"):
            if line.strip():
                yield Path(os.fsdecode(line.rstrip(b"\r")))


def _stdin() -> Callable[[], bytes]:
    """A function that reads available bytes of stdin; b"" at its end.

    It bypasses Python's buffer, because a thread that waits inside the buffer would block the exit of the program.
    """
    try:
        number = sys.stdin.fileno()
    except OSError:  # not a file, as in tests
        return sys.stdin.buffer.read
    return lambda: os.read(number, 65536)


def _records(read: Callable[[], bytes], end: bytes) -> Iterator[bytes]:
    """Split bytes at a separator, and yield each record as soon as it is complete."""
    rest = b""
    while received := read():
        *whole, rest = (rest + received).split(end)
        yield from whole
    yield rest


def paths_of(sources: list[str], null: bool) -> list[Path]:
    """The sources as paths. A `-` is replaced by the paths on stdin. Raises CyclicError when there are none."""
    found = list(stream_paths(sources, null))
    if not found:
        raise CyclicError("No path was given.", "Name files or folders, or give - and send a list of paths to stdin.")
    return found


def find_dataset(named: Path | None, report: Any) -> Path:
    """The dataset to use: the argument, `$CYCLIC_DATASET`, `./dataset`, or the demo dataset, which is made once."""
    from cyclic_cli.storage.dataset import is_dataset

    if named is not None:
        return named
    if os.environ.get("CYCLIC_DATASET"):
        return Path(os.environ["CYCLIC_DATASET"])
    if is_dataset(Path("dataset")) or Path("dataset/.unfinished").is_dir():
        return Path("dataset")  # if unfinished, `train` reports it; the demo dataset would hide it
    from cyclic_cli.events import Note
    from cyclic_cli.prepare.task import demo_dataset

    folder = demo_dataset(report, environment.available_cpus())
    report(Note(f"dataset: the demo dataset in {folder}"))
    return folder
