"""Runs a command on chosen cores with one thread per process, and records the peak memory of its processes."""

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL = 0.05  # seconds between two readings of the memory
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TERM": "dumb"}


@dataclass
class Watched:
    """The result of a command.

    `peaks` maps the number of each process to its peak resident memory in MiB, as the kernel records it (VmHWM). Pages
    shared by several processes count in each. The command's own process is the first.
    """

    seconds: float
    stdout: str
    peaks: dict[int, float] = field(default_factory=dict)


def run(command: list[str], cores: int, stdin: str = "", environment: dict[str, str] | None = None) -> Watched:
    """Run a command on the first `cores` CPUs that this process may use. Raises RuntimeError when it fails."""
    chosen = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:cores])
    start = time.perf_counter()
    process = subprocess.Popen(
        ["taskset", "--cpu-list", chosen, *command],
        env=os.environ | ENVIRONMENT | (environment or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watched = Watched(0, "")
    try:
        while True:
            try:
                watched.stdout, errors = process.communicate(stdin, timeout=INTERVAL)
                break
            except subprocess.TimeoutExpired:
                stdin = ""  # was already sent
                _record_peaks(process.pid, watched.peaks)
    finally:
        process.kill()
    watched.seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}: …{' '.join(errors.split())[-200:]}")
    return watched


def _record_peaks(process: int, peaks: dict[int, float]) -> None:
    """Record the peaks of a process and of all its descendants."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peaks[process] = int(line.split()[1]) / 1024
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                _record_peaks(int(child), peaks)
    except OSError:  # the process has just ended
        return
