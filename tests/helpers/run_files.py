"""What a training left in its folder, as tests compare it."""

import json
from pathlib import Path
from typing import Any

from cyclic_cli.storage.checkpoint import read_checkpoint

TIMES = ("seconds", "images_per_second", "attempt")


def rows(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's metrics, or those of a kind."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def timeless_rows(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics without times, rates and attempts."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows(run)]


def step_losses(run: Path) -> list[float]:
    return [row["losses"]["total"] for row in rows(run, "step")]


def weights(run: Path) -> dict[str, bytes]:
    """The bits of the weights, by name."""
    return {name: value.tobytes() for name, value in read_checkpoint(run / "model.safetensors").weights.items()}
