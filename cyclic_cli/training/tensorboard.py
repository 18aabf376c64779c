"""Writes event files for TensorBoard: the metrics of `metrics.jsonl`, and images. Needs the extra `tensorboard`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclic_cli.errors import CyclicError


def require_tensorboard() -> Any:
    """TensorBoard's `SummaryWriter` class. Raises CyclicError when the extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CyclicError(
            "TensorBoard is not installed.", "Install cyclic-cli[tensorboard], or leave --tensorboard out."
        ) from None
    return SummaryWriter


class TensorBoard:
    """The curves and images of a run."""

    def __init__(self, folder: Path, step: int) -> None:
        """Begin in a folder, or continue after `step`. Points of an earlier attempt after it are dropped."""
        self.writer = require_tensorboard()(str(folder), purge_step=step + 1)

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Add the values of a line of `metrics.jsonl` to the curves."""
        curves: dict[str, float] = {}
        if kind == "step":
            curves |= {f"train/{name}": loss for name, loss in row["losses"].items()}
            curves |= {"learning rate": row["lr"], "images per second": row["images_per_second"]}
            curves |= {f"gradient norm/{name}": norm for name, norm in row.get("gradient_norms", {}).items()}
        elif kind == "epoch":
            curves |= {f"validation/{name}": value for name, value in row["val"].items()}
            curves |= {f"train, mean of the epoch/{name}": loss for name, loss in row["train"].items()}
        for name, value in curves.items():
            self.writer.add_scalar(name, value, row["step"])

    def show(self, images: Tensor, reconstructions: Tensor, step: int) -> None:
        """Draw images (N, C, H, W) in [0, 1] in a row, with their reconstructions below."""
        lines = [torch.cat(list(line.detach().cpu()), 2) for line in (images, reconstructions)]
        self.writer.add_image("validation images, reconstructions", torch.cat(lines, 1), step)

    def flush(self) -> None:
        """Write everything to disk."""
        self.writer.flush()

    def close(self) -> None:
        """Close the files."""
        self.writer.close()
