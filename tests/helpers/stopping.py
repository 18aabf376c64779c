"""Runs a training as a process that receives a signal after a chosen step."""

import subprocess
import sys
from collections.abc import Iterable

PROGRAM = """
import os, signal
from cyclic_cli.training.steps import Stepper
from cyclic_cli.__main__ import main
usual = Stepper.step
def counted(self):
    result = usual(self)
    if self.progress.step == {step}: os.kill(os.getpid(), signal.SIGTERM)
    return result
Stepper.step = counted
main()
"""


def stopped_after(step: int, words: Iterable[object]) -> None:
    """Run `cyclic` with the words of a training, and check that SIGTERM ends it after a step."""
    command = [sys.executable, "-c", PROGRAM.format(step=step), *map(str, words)]
    done = subprocess.run(command, capture_output=True, timeout=300)
    assert done.returncode == 143, done.stderr.decode()
