"""Reads the folder of a training run."""

import json
from pathlib import Path
from typing import Any

from cyclic_cli.storage.checkpoint import read_checkpoint

TIMES = ("seconds", "images_per_second", "attempt")


def rows(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's metrics; only lines of one `kind` if it is given."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def timeless_rows(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics without the fields that differ between equal runs."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows(run)]


def step_losses(run: Path) -> list[float]:
    """The total loss of each recorded step."""
    return [row["losses"]["total"] for row in rows(run, "step")]


def weights(run: Path) -> dict[str, bytes]:
    """The bytes of the weights, by name."""
    return {name: value.tobytes() for name, value in read_checkpoint(run / "model.safetensors").weights.items()}
