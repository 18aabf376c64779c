"""Measures how time and memory of `cyclic prepare`, and the time to open its result, grow with the number of files.

    python tests/benchmarks/prepare_scale.py --files FOLDER                   10,000 and 100,000 files, some minutes
    python tests/benchmarks/prepare_scale.py --files FOLDER --counts 500 2000 --with-reports

The files are DICOM with 64 × 64 pixels of 8 bits, in folders of 1,000. Each file has its own patient and image. FOLDER
holds one set of files per count, and existing sets are reused. `--with-reports` adds a table with one row per file.

Peak memory is what the kernel records for each process (VmHWM), read 20 times per second. Pages shared by several
processes, such as libraries, count in each. The sum adds the peaks of all processes, even if they occurred at different
times. Opening is `StoredDataset(folder)` in a new interpreter, without its import.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import radiographs
import watching
from rich.console import Console
from rich.table import Table

SIDE = 64  # pixels
WORKERS = 2
MEMORY_GOAL, OPENING_GOAL = 1.3, 0.2  # largest ratio of the peaks; largest time in seconds
OPENING = """
import sys, time
from pathlib import Path
from cyclic_cli.storage.dataset import StoredDataset
start = time.perf_counter()
StoredDataset(Path(sys.argv[1]))
print(time.perf_counter() - start)
"""
log = Console(stderr=True)


@dataclass(frozen=True)
class Scale:
    """The results of one run. Memory is in MiB: of the main process, of each other process, and of all processes."""

    files: int
    seconds: float
    images_per_second: float
    main_mib: float
    others_mib: list[float]
    all_mib: float
    opening_seconds: float  # median of five trials


def write_files(folder: Path, count: int) -> None:
    """Write the files 000/000000.dcm, 000/000001.dcm ..., and a table of their reports next to the folder.

    The folder appears only when it is complete.
    """
    if folder.exists():
        return
    log.print(f"writing {count} files")
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    template, generator = radiographs.small(SIDE), np.random.default_rng(count)
    rows = ["path,text"]
    for number in range(count):
        path = draft / f"{number // 1000:03d}" / f"{number:06d}.dcm"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(radiographs.numbered(template, number)[: -SIDE * SIDE] + generator.bytes(SIDE * SIDE))
        rows.append(f"{path.relative_to(draft)},Report {number}: the heart is of normal size and the lungs are clear.")
    _reports(folder).write_text("\n".join(rows) + "\n")
    draft.rename(folder)


def _reports(folder: Path) -> Path:
    return folder.with_suffix(".csv")


def measure(folder: Path, count: int, work: Path, with_reports: bool) -> Scale:
    """Prepare a folder of `count` files, and measure that and the opening of the result."""
    out = work / "dataset"
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "cyclic_cli", "prepare", str(folder), "--out", str(out), "--size", str(SIDE)]
    words += ["--workers", str(WORKERS), "--already-deidentified", "--json", "--quiet"]
    words += ["--reports", str(_reports(folder))] if with_reports else []
    ran = watching.run(words, WORKERS, environment={"CYCLIC_CACHE": str(work / "cache")})
    summary = json.loads(ran.stdout)
    if summary["used"] != count or summary["paired"] != with_reports * count:
        raise RuntimeError(f"of {count} files {summary['used']} were used and {summary['paired']} have a report")
    main, *others = ran.peaks.values()
    opening = [float(watching.run([sys.executable, "-c", OPENING, str(out)], 1).stdout) for _ in range(5)]
    return Scale(
        files=count,
        seconds=ran.seconds,
        images_per_second=count / ran.seconds,
        main_mib=main,
        others_mib=others,
        all_mib=main + sum(others),
        opening_seconds=statistics.median(opening),
    )


def show(scales: list[Scale]) -> None:
    """Print a table of the runs, and the targets with the measured values."""
    table = Table()
    for column in ("files", "seconds", "images/s", "main MiB", "others MiB", "all MiB", "opening s"):
        table.add_column(column, justify="right")
    for scale in scales:
        others = ", ".join(f"{mib:.0f}" for mib in scale.others_mib)
        memory = (f"{scale.main_mib:.0f}", others, f"{scale.all_mib:.0f}")
        rate = f"{scale.images_per_second:.0f}"
        table.add_row(f"{scale.files:,}", f"{scale.seconds:.1f}", rate, *memory, f"{scale.opening_seconds:.3f}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    small, large = scales[0], scales[-1]
    opening = max(scale.opening_seconds for scale in scales)
    for what, value, bound in (
        ("memory of all processes", large.all_mib / small.all_mib, MEMORY_GOAL),
        ("memory of the main process", large.main_mib / small.main_mib, MEMORY_GOAL),
        ("memory of the largest process", _largest(large) / _largest(small), MEMORY_GOAL),
        ("seconds per file", small.images_per_second / large.images_per_second, None),
        ("opening, seconds", opening, OPENING_GOAL),
    ):
        goal = "" if bound is None else f"  goal ≤ {bound}: {'met' if value <= bound else 'NOT MET'}"
        ratio = "" if "opening" in what else f", {large.files:,} ÷ {small.files:,} files"
        console.print(f"{what}{ratio}: {value:.2f}{goal}", highlight=False)


def _largest(scale: Scale) -> float:
    return max([scale.main_mib, *scale.others_mib])


def main() -> None:
    parser = argparse.ArgumentParser(description="How `cyclic prepare` scales with the number of files.")
    parser.add_argument("--files", type=Path, required=True, help="folder where the files are written and reused")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000], help="numbers of files")
    parser.add_argument("--with-reports", action="store_true", help="with a table of one report per file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    scales = []
    with tempfile.TemporaryDirectory(dir=options.files.parent) as work:
        for count in sorted(options.counts):
            folder = options.files / f"{count}"
            options.files.mkdir(parents=True, exist_ok=True)
            write_files(folder, count)
            scales.append(measure(folder, count, Path(work), options.with_reports))
            log.print(f"{count} files: {scales[-1].seconds:.1f} s")
    if options.json:
        print(json.dumps({"with_reports": options.with_reports, "runs": [asdict(scale) for scale in scales]}))
    else:
        show(scales)


if __name__ == "__main__":
    main()
