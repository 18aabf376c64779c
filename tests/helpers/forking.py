"""Runs many `cyclic` commands without importing torch each time.

For every line on stdin, a JSON list of words, it forks a process that runs `cyclic` with these words. On stdout it
prints the process ID and, when the process has ended, its exit code. The output of the commands is appended to the
file that the first argument names. Two files beside it tell tests when to kill a training run: `.validating` exists
during a validation, which is slowed down a little for this, and `.steps` has one byte for every finished step.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Loaded before the fork, for speed, but not used: threads of torch would not survive it.
import lightning_fabric  # noqa: F401
import pyarrow.parquet  # noqa: F401

from cyclic_cli import distributed  # noqa: F401
from cyclic_cli.__main__ import main
from cyclic_cli.training import autoencoding, gradients, task  # noqa: F401
from cyclic_cli.training.steps import Stepper, StepResult

VALIDATION = 0.02  # additional seconds


def run(words: list[str], log: str) -> None:
    """Run `cyclic` with these words in this process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    mark, validate = Path(log).with_suffix(".validating"), autoencoding.validate

    def slowly(*arguments: Any) -> dict[str, float]:
        mark.touch()
        time.sleep(VALIDATION)
        val = validate(*arguments)
        mark.unlink()
        return val

    autoencoding.validate = slowly
    steps = os.open(Path(log).with_suffix(".steps"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    step = Stepper.step

    def counted(stepper: Stepper) -> StepResult:
        result = step(stepper)
        os.write(steps, b".")
        return result

    Stepper.step = counted  # type: ignore[method-assign]
    sys.argv = ["cyclic", *words]
    main()


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


for line in sys.stdin:
    pid = os.fork()
    if not pid:
        run(json.loads(line), sys.argv[1])
        os._exit(0)
    say(pid)
    _, status = os.waitpid(pid, 0)
    say(os.waitstatus_to_exitcode(status))
