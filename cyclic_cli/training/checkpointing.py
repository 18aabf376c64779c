"""The state of a run: taken between two steps, written by a thread of its own, taken up again by a later attempt.

Writing off the training thread costs a step only the copy of weights and optimizer. One write goes on at a time, in
order; a signal or the end of a run waits for the last one.
"""

import platform
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from cyclic_cli.distributed import Ranks
from cyclic_cli.training.gradients import Plan


@dataclass
class RunProgress:
    """What of a run changes besides weights and optimizer, as `progress.json` keeps it."""

    step: int = 0  # optimizer steps done
    epochs_done: int = 0  # with their validation
    epoch_losses: dict[str, float] = field(default_factory=dict)  # sums over the steps of the current epoch
    epoch_steps: int = 0  # that these are the sums of
    val: dict[str, float] = field(default_factory=dict)  # of the best checkpoint
    metrics_size: int = 0  # bytes
    attempt: int = 1
    environment: dict[str, Any] = field(default_factory=dict)  # what the bits depend on, see `environment`
    changed: bool = False  # attempts had different ones
    skipped: int = 0  # steps in a row, up to now, whose loss was not finite


def environment(plan: Plan) -> dict[str, Any]:
    """What besides settings and data decides the bits of a result."""
    return {
        "cyclic": version("cyclic-cli"), "torch": torch.__version__, "numpy": np.__version__,
        "processor": platform.machine(), "features": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else "cpu",
        "threads": plan.threads, "processes": plan.processes, "strategy": "fsdp" if plan.sharded else "ddp",
    }  # fmt: skip


class Writer:
    """Does what it is given, one after the other, in a thread of its own."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "state")
        self.writing: Future[None] | None = None

    def __call__(self, write: Callable[[], None]) -> None:
        """Begin to write; wait first while an earlier write goes on. Raises what that one raised."""
        self.wait()
        self.writing = self.thread.submit(write)

    def wait(self) -> None:
        """Raises what the last write raised."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def close(self) -> None:
        """End the thread when its last write is done."""
        self.thread.shutdown()


def optimizer_arrays(ranks: Ranks, module: nn.Module, optimizer: Any) -> dict[str, np.ndarray]:
    """An optimizer's state as named arrays, `3.exp_avg`, in the first process; all take part."""
    return {
        f"{number}.{name}": value.numpy()
        for number, values in ranks.moments(module, optimizer).items()
        for name, value in values.items()
    }
