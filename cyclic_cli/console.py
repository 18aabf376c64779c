"""Output for people: results on stdout, logs and progress on stderr, drawn with Rich.

On a terminal, progress is shown as bars, with the losses of a training run below them. Elsewhere it is a plain line
every few seconds. With `--quiet` only warnings and errors are shown.
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
    import rich.table

PLAIN_EVERY = 5.0  # seconds between two progress lines without a terminal
FIGURES = {"mse": ("MSE", 5), "psnr": ("PSNR dB", 1), "ssim": ("SSIM", 3)}  # column heading and decimals in tables


def print_line(text: str, style: str = "") -> None:
    """Print one line on stderr."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(text, style=style, markup=False)


def show(error: CyclicError) -> None:
    """Print an error: what happened, and what to do about it."""
    print_line(f"Error: {error.message}", "bold red")
    if error.hint:
        print_line(error.hint)


def as_json(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def write_json(value: Any) -> None:
    """Print one JSON object as one line on stdout, without buffering."""
    print(as_json(value), flush=True)


def _print(grid: "rich.table.Table") -> None:
    """Print a table on stdout, as wide as the terminal; without a terminal, as wide as its content."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(grid)
        return
    console = Console(highlight=False, width=10_000)
    with console.capture() as captured:
        console.print(grid)
    sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def table(title: str, rows: dict[str, Any]) -> None:
    """Print a table of names and values on stdout; inner tables are indented."""
    from rich.table import Table

    grid = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    _add_rows(grid, rows, "")
    _print(grid)


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
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        between = "; " if any(isinstance(item, dict) for item in value) else ", "
        return between.join(_shown(item) for item in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def columns(names: list[str], rows: list[dict[str, Any]]) -> None:
    """Print a table with column headings on stdout.

    Args:
        names: The columns; those in FIGURES are rounded and right-aligned.
        rows: The values by column. A value that a row lacks is shown as –.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False)
    for name in names:
        head, _ = FIGURES.get(name, (name, 0))
        grid.add_column(head, justify="right" if name in FIGURES else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_rounded(name, row.get(name))) for name in names))
    _print(grid)


def _rounded(name: str, value: Any) -> str:
    return f"{value:.{FIGURES[name][1]}f}" if name in FIGURES and value is not None else _shown(value)


@contextmanager
def reporting(quiet: bool) -> Iterator[Report]:
    """A report function that shows events on stderr while the block runs."""
    if quiet:
        yield lambda event: print_line(event.text, "yellow") if isinstance(event, Note) and event.warning else None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console, Group
        from rich.live import Live

        console = Console(stderr=True, highlight=False)
        bar, status = _progress_bar(console), _TrainingStatus()
        with Live(console=console, transient=True, get_renderable=lambda: Group(bar, status.table())):
            yield _Bars(bar, status)
    else:
        yield _Lines()


def _progress_bar(console: Any) -> "rich.progress.Progress":
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[detail]}"),
        console=console,
    )


class _TrainingStatus:
    """The state of a training run: losses and learning rate of the last step, and the last and the best validation."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.last: Epoch | None = None
        self.best: Epoch | None = None

    def take(self, event: Step | Epoch) -> None:
        if isinstance(event, Step):
            self.step = event
        else:
            self.last, self.best = event, event if event.best else self.best

    def table(self) -> "rich.table.Table":
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        if self.step:
            grid.add_row("  loss", _losses(self.step.losses))
            grid.add_row("  learning rate", f"{self.step.lr:.1e}")
        if self.last and self.last.val:
            best = self.best if self.best and self.best is not self.last else None
            grid.add_row("  validation", f"{_val(self.last)}, {_place(self.last)}{'' if best else ', the best'}")
            if best:
                grid.add_row("  the best", f"{_val(best)}, {_place(best)}")
        return grid


class _Bars:
    """Shows events as progress bars, one for each kind of work, with rate and time left."""

    def __init__(self, bar: "rich.progress.Progress", status: _TrainingStatus) -> None:
        self.bar, self.status = bar, status
        self.tasks: dict[str, Any] = {}
        self.rates = _Rates()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._move(event.unit, event.done, event.total, self.rates.of(event))
        elif isinstance(event, Step):
            self.status.take(event)
            self._move("training", event.step, event.steps, ", ".join([f"epoch {event.epoch}", *_pace(event)]))
        else:
            if isinstance(event, Epoch):
                self.status.take(event)
            style = "yellow" if isinstance(event, Note) and event.warning else ""
            self.bar.console.print(_line(event), style=style, markup=False, soft_wrap=True)

    def _move(self, name: str, done: int, total: int | None, detail: str) -> None:
        if name not in self.tasks:
            for task in self.bar.tasks:  # finished bars are hidden when a new one appears
                self.bar.update(task.id, visible=not task.finished)
            self.tasks[name] = self.bar.add_task(name, total=total, detail="")
        self.bar.update(self.tasks[name], completed=done, total=total, detail=detail)


class _Lines:
    """Shows events as plain lines; progress at most every `PLAIN_EVERY` seconds, and when it is complete."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.rates = _Rates()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            rate = self.rates.of(event)
            if self._due(event.done == event.total and event.done > 0):
                total = "" if event.total is None else f" of {event.total}"
                print_line(f"{event.unit}: {event.done}{total}{', ' + rate if rate else ''}")
        elif isinstance(event, Step):
            if self._due(False):
                parts = [f"epoch {event.epoch}/{event.epochs}", f"loss {_losses(event.losses)}", f"lr {event.lr:.1e}"]
                print_line(", ".join([f"step {event.step} of {event.steps}", *parts, *_pace(event)]))
        else:
            print_line(_line(event), "yellow" if isinstance(event, Note) and event.warning else "")

    def _due(self, at_end: bool) -> bool:
        now = time.monotonic()
        if now - self.last < PLAIN_EVERY and not at_end:
            return False
        self.last = now
        return True


class _Rates:
    """Computes units/s and the time left, measured from the first event of each unit."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[float, int]] = {}

    def of(self, event: Progress) -> str:
        now = time.monotonic()
        since, before = self.first.setdefault(event.unit, (now, event.done))
        if event.done == before:
            return ""
        rate = (event.done - before) / max(now - since, 1e-9)
        left = "" if event.total is None else f", {_duration((event.total - event.done) / rate)} left"
        return f"{rate:.0f}/s{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _pace(event: Step) -> list[str]:
    """Images/s and the time left, as texts; empty before the first measurement."""
    if not event.images_per_second:
        return []
    left = (event.steps - event.step) * event.batch_images / event.images_per_second
    return [f"{event.images_per_second:.0f} images/s", f"{_duration(left)} left"]


def _losses(losses: dict[str, float]) -> str:
    """The weighted sum of the losses, followed by each loss if there are several."""
    parts = [f"{name} {loss:.4g}" for name, loss in losses.items() if name != "total"]
    return f"{losses['total']:.4g}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")


def _val(event: Epoch) -> str:
    return "  ".join(f"{name} {value:.5g}" for name, value in event.val.items()) or "no validation data"


def _place(event: Epoch) -> str:
    return f"epoch {event.epoch}" if event.epoch else "closed form"


def _line(event: Event) -> str:
    if isinstance(event, Note):
        return event.text
    if isinstance(event, Epoch):
        place = f"epoch {event.epoch}/{event.epochs}" if event.epoch else _place(event)
        return f"{place}  val {_val(event)}{'  best' if event.best and event.epochs else ''}"
    return str(event)
