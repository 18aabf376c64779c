"""What a person sees: results on stdout, talk on stderr. With `cli`, the only module that knows Rich.

On a terminal progress is a bar; elsewhere a plain line every few seconds. `--quiet` leaves warnings and errors.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cyclic_cli.errors import CyclicError
from cyclic_cli.events import Epoch, Event, Note, Progress, Report, Step

if TYPE_CHECKING:
    import rich.progress

PLAIN_EVERY = 5.0  # seconds between two lines where there is no terminal
FIGURES = {"mse": ("MSE", 5), "psnr": ("PSNR dB", 1), "ssim": ("SSIM", 3)}  # how a table heads and rounds them


def say(text: str, style: str = "") -> None:
    """One line of talk."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(text, style=style, markup=False)


def show(error: CyclicError) -> None:
    """What happened, and the way out."""
    say(f"Error: {error.message}", "bold red")
    if error.hint:
        say(error.hint)


def as_json(value: Any) -> str:
    """A summary as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def write_json(value: Any) -> None:
    """One JSON object on one line of stdout, at once."""
    print(as_json(value), flush=True)


def _stdout() -> Any:
    """A console for results: as wide as the terminal, and wide enough for any path where there is none."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def table(title: str, rows: dict[str, Any]) -> None:
    """A table of names and values on stdout; inner tables are indented."""
    from rich.table import Table

    grid = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    _add_rows(grid, rows, "")
    _stdout().print(grid)


def _add_rows(grid: Any, rows: dict[str, Any], indent: str) -> None:
    from rich.text import Text

    for name, value in rows.items():
        if isinstance(value, dict) and value:
            grid.add_row(indent + name, "")
            _add_rows(grid, value, indent + "  ")
        else:
            grid.add_row(indent + name, Text(_shown(value)))


def _shown(value: Any) -> str:
    if value is None or value in ({}, []):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def columns(names: list[str], rows: list[dict[str, Any]]) -> None:
    """A table with a head on stdout: of each row the named values, figures to the right and the rest to the left."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False)
    for name in names:
        head, _ = FIGURES.get(name, (name, 0))
        grid.add_column(head, justify="right" if name in FIGURES else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_rounded(name, row[name])) for name in names))
    _stdout().print(grid)


def _rounded(name: str, value: Any) -> str:
    return f"{value:.{FIGURES[name][1]}f}" if name in FIGURES and value is not None else _shown(value)


@contextmanager
def talk(quiet: bool) -> Iterator[Report]:
    """A report that shows events as they come."""
    if quiet:
        yield lambda event: say(event.text, "yellow") if isinstance(event, Note) and event.warning else None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _progress_bar() as bar:
            yield _Bars(bar)
    else:
        yield _Lines()


def _progress_bar() -> "rich.progress.Progress":
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )


class _Bars:
    """Events as bars, one for each kind of work, with rate and time left."""

    def __init__(self, bar: "rich.progress.Progress") -> None:
        self.bar = bar
        self.tasks: dict[str, Any] = {}
        self.rates = _Rates()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._move(event.unit, event.done, event.total, self.rates.of(event))
        elif isinstance(event, Step):
            self._move("training", event.step, event.steps, _step_detail(event, short=True))
        else:
            style = "yellow" if isinstance(event, Note) and event.warning else ""
            self.bar.console.print(_line(event), style=style, markup=False, soft_wrap=True)

    def _move(self, name: str, done: int, total: int, detail: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(name, total=total, detail="")
        self.bar.update(self.tasks[name], completed=done, total=total, detail=detail)


class _Lines:
    """Events as plain lines, progress at most every few seconds and at its end."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.rates = _Rates()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            rate = self.rates.of(event)
            if self._due(event.done == event.total and event.done > 0):
                say(f"{event.unit}: {event.done} of {event.total}{', ' + rate if rate else ''}")
        elif isinstance(event, Step):
            if self._due(False):
                say(f"step {event.step} of {event.steps}, {_step_detail(event)}")
        else:
            say(_line(event), "yellow" if isinstance(event, Note) and event.warning else "")

    def _due(self, at_end: bool) -> bool:
        now = time.monotonic()
        if now - self.last < PLAIN_EVERY and not at_end:
            return False
        self.last = now
        return True


class _Rates:
    """Units of work a second, and the time they leave, since a unit was first heard of."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[float, int]] = {}

    def of(self, event: Progress) -> str:
        now = time.monotonic()
        since, before = self.first.setdefault(event.unit, (now, event.done))
        if event.done == before:
            return ""
        rate = (event.done - before) / max(now - since, 1e-9)
        return f"{rate:.0f}/s, {_duration((event.total - event.done) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _step_detail(event: Step, short: bool = False) -> str:
    left = (event.steps - event.step) * event.batch_images / event.images_per_second if event.images_per_second else 0
    parts = [f"loss {event.losses['total']:.5f}"]
    parts = parts if short else [f"epoch {event.epoch}/{event.epochs}", *parts, f"lr {event.lr:.1e}"]
    parts += [f"{event.images_per_second:.0f} images/s", f"{_duration(left)} left"] if event.images_per_second else []
    return ", ".join(parts)


def _line(event: Event) -> str:
    if isinstance(event, Note):
        return event.text
    if isinstance(event, Epoch):
        val = "  ".join(f"{name} {value:.5g}" for name, value in event.val.items()) or "no validation data"
        return f"epoch {event.epoch}/{event.epochs}  val {val}{'  best' if event.best else ''}"
    return str(event)
