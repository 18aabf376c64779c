"""The part of a run's state besides weights and optimizer: counters, running sums, and the environment."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from cyclic_cli.training.gradients import Plan


@dataclass
class RunProgress:
    """What changes while a run trains. `progress.json` of a saved state holds it."""

    step: int = 0  # optimizer steps done
    epochs_done: int = 0  # including their validation
    epoch_losses: dict[str, float] = field(default_factory=dict)  # sums over the steps of the current epoch
    epoch_steps: int = 0  # number of steps in these sums
    val: dict[str, float] = field(default_factory=dict)  # metrics of the best checkpoint
    best_epoch: int | None = None  # number of epochs after which the best checkpoint was saved
    fold_ranks: list[float] | None = None  # see `Learner`
    metrics_size: int = 0  # of metrics.jsonl, in bytes
    attempt: int = 1  # from 1; each resumption is a new attempt
    environment: dict[str, Any] = field(default_factory=dict)  # see `environment`
    changed: bool = False  # whether attempts ran in different environments
    skipped: int = 0  # consecutive steps up to now whose loss was not finite

    def add_losses(self, losses: dict[str, float]) -> None:
        """Add the losses of a step to the sums of the epoch."""
        self.epoch_steps += 1
        for name, loss in losses.items():
            self.epoch_losses[name] = self.epoch_losses.get(name, 0.0) + loss

    def end_epoch(self) -> dict[str, float]:
        """Count an epoch as done. Returns the mean of each loss over its steps."""
        steps = max(1, self.epoch_steps)
        means = {name: total / steps for name, total in self.epoch_losses.items()}
        self.epochs_done += 1
        self.epoch_losses, self.epoch_steps = {}, 0
        return means


def environment(plan: Plan) -> dict[str, Any]:
    """The versions and the hardware that the exact bits of a result depend on, besides settings and data."""
    return {
        "cyclic": version("cyclic-cli"), "torch": torch.__version__, "numpy": np.__version__,
        "processor": platform.machine(), "features": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else "cpu",
        "threads": plan.threads, "processes": plan.processes, "strategy": "fsdp" if plan.sharded else "ddp",
    }  # fmt: skip


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences between two environments as text; empty if there are none."""
    names = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name} {before[name]} → {now[name]}" for name in names)
