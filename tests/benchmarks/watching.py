"""Run a command on chosen cores with one thread a process, and watch the memory of its processes."""

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

LOOK_EVERY = 0.05  # seconds
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TERM": "dumb"}


@dataclass
class Watched:
    """A command that ran.

    `peaks` are the most memory each process ever had resident, MiB by process number, as the kernel keeps it (VmHWM);
    pages that processes share are counted in each. The command's own process is the first.
    """

    seconds: float
    stdout: str
    peaks: dict[int, float] = field(default_factory=dict)


def run(command: list[str], cores: int, stdin: str = "", environment: dict[str, str] | None = None) -> Watched:
    """Run a command on the first `cores` processors that this process may use. Raises RuntimeError when it fails."""
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
                watched.stdout, errors = process.communicate(stdin, timeout=LOOK_EVERY)
                break
            except subprocess.TimeoutExpired:
                stdin = ""  # is on its way
                _look(process.pid, watched.peaks)
    finally:
        process.kill()
    watched.seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}: …{' '.join(errors.split())[-200:]}")
    return watched


def _look(process: int, peaks: dict[int, float]) -> None:
    """Take down the peaks of a process and of all that descend from it."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peaks[process] = int(line.split()[1]) / 1024
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                _look(int(child), peaks)
    except OSError:  # it has just ended
        return
