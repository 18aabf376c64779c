"""Reads the folder of a training run."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.files import read_tensors

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


def gradient_difference(run: Path, other: Path, moment: str = "exp_avg_sq") -> float:
    """The largest relative difference, over the parameters, of the gradients that Adam saw in two runs.

    By default of their root mean squares, Adam's second moments; with `exp_avg` of their means. Near an optimum the
    mean over an epoch is zero but for rounding; the mean square is not. Weights are not compared: Adam divides by the
    size of a gradient, so that rounding becomes a step of full length where a gradient is near zero. A gradient smaller
    than a thousandth of the largest is compared with that.
    """
    one, two = (_moments(folder, moment) for folder in (run, other))
    assert one.keys() == two.keys()
    least = 1e-3 * max(float(np.linalg.norm(value)) for value in one.values())
    return max(float(np.linalg.norm(one[name] - two[name]) / max(np.linalg.norm(one[name]), least)) for name in one)


def _moments(run: Path, moment: str) -> dict[str, np.ndarray]:
    arrays, _ = read_tensors(max((run / "state").iterdir()) / "optimizer.safetensors")
    wanted = {name: value for name, value in arrays.items() if name.endswith(f".{moment}")}
    assert wanted
    return {name: np.sqrt(value) for name, value in wanted.items()} if moment == "exp_avg_sq" else wanted
