"""Event files for TensorBoard, a copy of what `metrics.jsonl` says, with pictures. Needs the extra `tensorboard`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclic_cli.errors import CyclicError


def require_tensorboard() -> Any:
    """The class that writes event files. Raises CyclicError when the extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CyclicError(
            "TensorBoard is not installed.", "Install cyclic-cli[tensorboard], or leave --tensorboard out."
        ) from None
    return SummaryWriter


class TensorBoard:
    """The curves and pictures of a run."""

    def __init__(self, folder: Path, step: int) -> None:
        """Begin in a folder, or go on after `step`: what an earlier attempt said of later ones is dropped."""
        self.writer = require_tensorboard()(str(folder), purge_step=step + 1)

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Draw what a line of the metrics says."""
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
        """Draw images (N, C, H, W) in [0, 1] in a line, their reconstructions below."""
        lines = [torch.cat(list(line.detach().cpu()), 2) for line in (images, reconstructions)]
        self.writer.add_image("validation images, reconstructions", torch.cat(lines, 1), step)

    def flush(self) -> None:
        """Put what was said on the disk."""
        self.writer.flush()

    def close(self) -> None:
        """End the files."""
        self.writer.close()
