"""What does saving state cost a training?

    python tests/benchmarks/saving.py DATASET [--arch linear] [--epochs 3] [--saves 6] [--rounds 3]

`cyclic train` runs with state saved only at the ends of epochs, and with about `--saves` states more, in turn,
`--rounds` times. Both have the same steps and the same ends; the seconds that they differ by, divided by the number of
the additional states, are what one costs: the copy on the training thread, and the processor that the writing thread
takes from the others. Beside it stands that cost as a share of the default time between two states. A negative cost is
noise: the spread over the rounds says how much there is.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cyclic_cli.config import TrainConfig


def trained(dataset: Path, run: Path, words: list[str]) -> dict[str, float]:
    """The summary of a training; `seconds` are those of its steps."""
    command = [
        sys.executable,
        "-m",
        "cyclic_cli",
        "train",
        str(dataset),
        "--out",
        str(run),
        "--quiet",
        "--json",
        *words,
    ]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    images = said["train_samples"] * said["epochs"]
    return {"steps": said["steps"], "seconds": images / said["images_per_second"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--arch", default="linear")
    parser.add_argument("--epochs", default=3, type=int)
    parser.add_argument("--fraction", default=1.0, type=float)
    parser.add_argument("--saves", default=6, type=int)
    parser.add_argument("--rounds", default=3, type=int)
    asked = parser.parse_args()
    words = ["--arch", asked.arch, "--epochs", str(asked.epochs), "--fraction", str(asked.fraction)]
    words += ["--set", "checkpoint_minutes=1000"]
    costs, seconds = [], []
    for number in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            without = trained(asked.dataset, Path(folder) / "without", words)
            every = max(1, int(without["steps"]) // (asked.saves + 1))
            saves = sum(step % every == 0 for step in range(1, int(without["steps"]) + 1))
            often = trained(asked.dataset, Path(folder) / "often", [*words, "--set", f"checkpoint_steps={every}"])
            size = sum(path.stat().st_size for path in next((Path(folder) / "often" / "state").iterdir()).iterdir())
        costs.append((often["seconds"] - without["seconds"]) / saves)
        seconds.append(without["seconds"])
        print(f"round {number + 1}: {without['seconds']:.2f} s without, {often['seconds']:.2f} s with {saves} saves")
    interval = 60 * TrainConfig.checkpoint_minutes
    cost, spread = statistics.median(costs), (min(costs), max(costs))
    print(f"{asked.arch}: a state of {size / 1e6:.1f} MB costs {cost:.3f} s ({spread[0]:.3f} to {spread[1]:.3f})")
    print(f"that is {cost / interval:.2%} of the {interval:.0f} s between two states by default")


if __name__ == "__main__":
    main()
