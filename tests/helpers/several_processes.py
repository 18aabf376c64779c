"""Runs a training that starts several processes on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def run_in_processes(words: Iterable[object], cache: Path) -> None:
    """Run `cyclic` with words such as `--devices 2`, one thread a process, and check that it ends well.

    Args:
        words: The command line.
        cache: The folder for features of encoders.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}  # of earlier tests
    environment = own | {"OMP_NUM_THREADS": "1", "CYCLIC_CACHE": str(cache)}
    command = [sys.executable, "-m", "cyclic_cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
