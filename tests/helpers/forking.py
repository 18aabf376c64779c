"""Starts `cyclic` again and again without loading torch anew: forks itself for every line of words, as JSON, on stdin.

It answers with the number of the new process, and, once that has ended, with its exit code. What the commands
say goes to the file that is named first; beside it lies a file `.validating` while a training is validated, which
takes a little longer than it would, so that it can be met, and a file `.steps` of a byte for every step that was done.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Loaded, but not used: threads of torch would not survive the fork.
import lightning_fabric  # noqa: F401
import pyarrow.parquet  # noqa: F401

from cyclic_cli import distributed  # noqa: F401
from cyclic_cli.__main__ import main
from cyclic_cli.training import autoencoding, gradients  # noqa: F401
from cyclic_cli.training import task as training

VALIDATION = 0.02  # seconds more


def run(words: list[str], log: str) -> None:
    """Become `cyclic` with these words."""
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
    step = training._Training._step

    def counted(*arguments: Any) -> None:
        step(*arguments)
        os.write(steps, b".")

    training._Training._step = counted  # type: ignore[method-assign]
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
