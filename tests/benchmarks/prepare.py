"""Measures the speed of `cyclic prepare` and of the loops of `loops.py`, on the same files and cores.

    python tests/benchmarks/prepare.py --jpeg FOLDER --monai PYTHON       the whole table, about an hour
    python tests/benchmarks/prepare.py --quick                            a quick test on small images, under a minute

`--jpeg` is a folder of JPEG images; without it their class is left out. `--monai` is a Python with MONAI, torch,
pydicom and the decoders; without it, MONAI's column stays empty. All other files are synthetic (`radiographs.py`), and
no two are equal.

Every process has one thread and is pinned to as many cores as there are workers. One method runs at a time. For each
class of files, the methods take turns, so that a temporary slowdown of the machine affects all of them. The order is
reversed in every second repeat. Each result is the median of the repeats. The spread is half the range, in per cent of
the median.

Start-up is separated from the steady state. `cyclic prepare` is the real command. It runs on N and on 2 N files, and
its rate is N ÷ (seconds for 2 N − seconds for N), so that the start-up of both runs cancels out. The reported start-up
is the time for N files minus the time at that rate. The loops measure their own start-up (see `loops.py`).

Peak memory is that of the process with the largest memory. Pages shared by several processes count in each.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import radiographs
import watching
from rich.console import Console
from rich.table import Table

LOOPS = Path(__file__).with_name("loops.py")
PREPARE, EXACT, PLAIN, BARE, MONAI, DCMTK = "cyclic", "cyclic --exact", "plain", "bare", "MONAI", "dcm2pnm"
WORKERS = (1, 2)
QUICK = ("uncompressed, 12 bits in 16", "JPEG lossless, SV1", "JPEG 2000 lossless", "PNG, 16 bits")
log = Console(stderr=True)


@dataclass
class Measured:
    """The results of one method on one class of files with one number of workers, one value per repeat."""

    rates: list[float] = field(default_factory=list)  # images/s, all workers together
    start_ups: list[float] = field(default_factory=list)  # seconds
    peaks: list[float] = field(default_factory=list)  # MiB
    why_not: str = ""  # why the method was not measured

    @property
    def rate(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None

    @property
    def spread(self) -> float:
        return 50 * (max(self.rates) - min(self.rates)) / statistics.median(self.rates) if self.rates else 0


@dataclass(frozen=True)
class Goal:
    """A target: `value` should be at least `bound`, or at most `bound` if `most`."""

    kind: str
    what: str
    bound: float
    value: float | None
    most: bool = False

    @property
    def is_met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.bound if self.most else self.value >= self.bound


Results = dict[tuple[str, int], Measured]  # by method and workers


class Bench:
    """Measures one class of files after another."""

    def __init__(self, work: Path, repeats: int, quick: bool, monai: str | None) -> None:
        self._work, self._repeats, self._quick, self._monai = work, repeats, quick, monai

    def measure(self, name: str, kind: radiographs.Kind, originals: list[bytes]) -> tuple[Results, int]:
        """Results of every method on a class of files, and the mean size of a file in bytes."""
        count = 64 if self._quick else kind.files
        folder = self._work / "files"
        size = radiographs.write(kind, originals, folder / "1", count)
        radiographs.write(kind, originals, folder / "2", 2 * count)
        results: Results = {}
        for repeat in range(self._repeats):
            turns = list(self._turns(kind, folder, count))
            for method, workers, run in turns[:: -1 if repeat % 2 else 1]:
                start = time.monotonic()
                into = results.setdefault((method, workers), Measured())
                if not into.why_not:
                    try:
                        run(into)
                    except (RuntimeError, OSError) as error:
                        into.why_not = str(error)
                took = f"{time.monotonic() - start:.1f} s"
                log.print(f"{name}: {method}, {workers} workers, repeat {repeat + 1} of {self._repeats}: {took}")
        shutil.rmtree(folder)
        return results, size

    def _turns(
        self, kind: radiographs.Kind, folder: Path, count: int
    ) -> Iterator[tuple[str, int, Callable[[Measured], None]]]:
        for workers in WORKERS[:1] if self._quick else WORKERS:
            yield PREPARE, workers, lambda into, workers=workers: self._prepare(into, folder, count, workers)
            for method, program, python in (
                (PLAIN, "plain", sys.executable),
                (BARE, "bare", sys.executable),
                (MONAI, "monai", self._monai),
                (DCMTK, kind.dcmtk, sys.executable),
            ):
                paths = sorted(str(path) for path in (folder / "1").iterdir())[: kind.files // 4 * workers]
                yield (
                    method,
                    workers,
                    lambda into, python=python, program=program, paths=paths, workers=workers: self._loop(
                        into, python, program, paths, workers
                    ),
                )
        yield EXACT, 1, lambda into: self._prepare(into, folder, count, 1, "--exact")

    def _prepare(self, into: Measured, folder: Path, count: int, workers: int, *options: str) -> None:
        first = self._run_prepare(folder / "1", count, workers, options)
        second = self._run_prepare(folder / "2", 2 * count, workers, options)
        steady = second.seconds - first.seconds
        if steady <= 0:
            raise RuntimeError(f"{2 * count} files took no longer than {count}: the machine is too busy to measure")
        into.rates.append(count / steady)
        into.start_ups.append(first.seconds - steady)
        into.peaks.append(max(second.peaks.values()))

    def _run_prepare(self, source: Path, count: int, workers: int, options: tuple[str, ...]) -> watching.Watched:
        out = self._work / "dataset"
        shutil.rmtree(out, ignore_errors=True)
        words = [sys.executable, "-m", "cyclic_cli", "prepare", str(source), "--out", str(out), "--json", "--quiet"]
        words += ["--already-deidentified", "--workers", str(workers), *options]
        ran = watching.run(words, workers, environment={"CYCLIC_CACHE": str(self._work / "cache")})
        summary = json.loads(ran.stdout)
        if summary["used"] + summary["duplicates"] != count:
            raise RuntimeError(f"of {count} files {summary['rejected_by_reason']} were rejected")
        return ran

    def _loop(self, into: Measured, python: str | None, program: str, paths: list[str], workers: int) -> None:
        if python is None:
            raise RuntimeError("no: --monai is not given")
        if program.startswith("no"):
            raise RuntimeError(program)
        ran = watching.run([python, str(LOOPS), program, str(workers)], workers, stdin="\n".join(paths))
        timed = json.loads(ran.stdout)
        into.rates.append(len(paths) / timed["seconds"])
        into.start_ups.append(timed["start_up"])
        into.peaks.append(max(ran.peaks.values()))


# ------------------------------------------------------------------------------------------------------- goals


def goals(name: str, results: Results) -> list[Goal]:
    """The targets for a class of files, with the measured values."""

    def ratio(over: tuple[str, int], under: tuple[str, int]) -> float | None:
        top, bottom = (results.get(which, Measured()).rate for which in (over, under))
        return top / bottom if top and bottom else None

    found = [
        Goal(name, "two workers ÷ one", 1.8, ratio((PREPARE, 2), (PREPARE, 1))),
        Goal(name, "rate ÷ MONAI's", 1.0, ratio((PREPARE, 1), (MONAI, 1))),
        Goal(name, "rate ÷ dcm2pnm's", 1.0, ratio((PREPARE, 1), (DCMTK, 1))),
    ]
    if name == "JPEG originals":
        return [Goal(name, "rate ÷ plain loop's", 1.8, ratio((PREPARE, 1), (PLAIN, 1))), *found]
    if name.startswith("JPEG 2000"):
        return [Goal(name, "rate ÷ plain loop's", 5.0, ratio((PREPARE, 1), (PLAIN, 1))), *found]
    return [Goal(name, "time ÷ bare decoding's", 1.2, ratio((BARE, 1), (PREPARE, 1)), most=True), *found]


# ------------------------------------------------------------------------------------------------------ output


def rates_table(everything: dict[str, Results], sizes: dict[str, int]) -> Table:
    """The table of images/s for each class of files."""
    columns = [(PREPARE, 1), (PREPARE, 2), (EXACT, 1), (PLAIN, 1), (BARE, 1), (MONAI, 1), (DCMTK, 1)]
    table = Table(title="Images/s (± half the range of the repeats)", title_justify="left")
    table.add_column("files")
    table.add_column("MB", justify="right")
    for method, workers in columns:
        table.add_column(f"{method}\n{workers} worker{'s' * (workers > 1)}", justify="right")
    table.add_column("start-up\ns", justify="right")
    table.add_column("peak\nMiB", justify="right")
    for name, results in everything.items():
        own = results[PREPARE, 1]
        cells = [_cell(results.get(column)) for column in columns]
        ends = [f"{statistics.median(values):{form}}" if values else "–" for values, form in
                ((own.start_ups, ".2f"), (own.peaks, ".0f"))]  # fmt: skip
        table.add_row(name, f"{sizes[name] / 1e6:.2f}", *cells, *ends)
    return table


def _cell(measured: Measured | None) -> str:
    if measured is None or measured.rate is None:
        return "–"
    return f"{measured.rate:.{0 if measured.rate >= 100 else 1}f} ± {measured.spread:.0f} %"


def goals_table(everything: dict[str, Results]) -> Table:
    """The table of targets and measured values, for one core unless stated otherwise."""
    table = Table(title="Goals", title_justify="left")
    for column in ("files", "what"):
        table.add_column(column)
    for column in ("measured", "goal"):
        table.add_column(column, justify="right")
    table.add_column("met")
    for name, results in everything.items():
        for goal in goals(name, results):
            value = "–" if goal.value is None else f"{goal.value:.2f}"
            met = {None: "", True: "yes", False: "NO"}[goal.is_met]
            table.add_row(goal.kind, goal.what, value, f"{'≤' if goal.most else '≥'} {goal.bound:g}", met)
    return table


def as_plain(everything: dict[str, Results], sizes: dict[str, int]) -> dict[str, object]:
    """All results as plain values for `--json`."""
    return {
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "classes": {
            name: {
                "bytes": sizes[name],
                "methods": {
                    f"{method}, {workers}": {
                        "images_per_second": measured.rates,
                        "start_up_seconds": measured.start_ups,
                        "peak_mib": measured.peaks,
                        "why_not": measured.why_not,
                    }
                    for (method, workers), measured in results.items()
                },
                "goals": [
                    {"what": goal.what, "value": goal.value, "bound": goal.bound, "met": goal.is_met}
                    for goal in goals(name, results)
                ],
            }
            for name, results in everything.items()
        },
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of `cyclic prepare` and of other loops on the same files.")
    parser.add_argument("--jpeg", type=Path, help="folder of JPEG images")
    parser.add_argument("--monai", help="a Python with MONAI")
    parser.add_argument("--class", dest="classes", action="append", help="only this class; may be repeated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small images, some classes, one repeat")
    parser.add_argument(
        "--work", type=Path, help="folder for the files of one class, about 6 GB; default: a new temporary one"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    chosen = options.classes or (QUICK if options.quick else list(radiographs.KINDS))
    if unknown := set(chosen) - set(radiographs.KINDS):
        parser.error(f"unknown class {', '.join(unknown)}; choose from {'; '.join(radiographs.KINDS)}")
    everything: dict[str, Results] = {}
    sizes: dict[str, int] = {}
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        bench = Bench(Path(work), 1 if options.quick else options.repeats, options.quick, options.monai)
        drawn = radiographs.draw(4, longest=600 if options.quick else None)
        for name in chosen:
            kind = radiographs.KINDS[name]
            if kind.encode is not None:
                originals = [kind.encode(image) for image in drawn]
            elif options.jpeg is None:
                continue
            else:
                originals = [path.read_bytes() for path in sorted(options.jpeg.iterdir()) if path.is_file()]
            everything[name], sizes[name] = bench.measure(name, kind, originals)
    if options.json:
        print(json.dumps(as_plain(everything, sizes), ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(rates_table(everything, sizes))
    console.print(goals_table(everything))
    for name, results in everything.items():
        for (method, workers), measured in results.items():
            if measured.why_not and workers == 1:
                console.print(f"{name}: {method}: {measured.why_not}")


if __name__ == "__main__":
    main()
