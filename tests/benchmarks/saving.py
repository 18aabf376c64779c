"""Measures how much time saving the training state costs.

    python tests/benchmarks/saving.py DATASET [--arch linear] [--epochs 10] [--every 24]

`cyclic train` saves its state every `--every` steps, and every step is timed. In each interval, the first half of the
steps includes the copy of the state and the load of the thread that writes it. The second half includes neither. The
cost of one state is the time of the first half minus the time of as many median steps of the second half. Both halves
are neighbours in time, so a temporary slowdown of the machine affects both. The script prints the median cost over all
states with quartiles, and this cost as a fraction of the default time between two states. Negative costs are noise.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cyclic_cli.config import TrainConfig
from cyclic_cli.distributed import use_available_threads
from cyclic_cli.events import Event, Step
from cyclic_cli.training.task import train


def costs(seconds: dict[int, float], every: int) -> list[float]:
    """The cost of each state in seconds, from the seconds of each step."""
    found = []
    for saved in range(every, max(seconds) - every, every):
        steps = [seconds.get(step) for step in range(saved + 1, saved + every + 1)]
        if None in steps:  # skip the end of an epoch, where validation takes place
            continue
        after, rest = steps[: every // 2], steps[every // 2 :]
        found.append(sum(after) - len(after) * statistics.median(rest))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--arch", default="linear")
    parser.add_argument("--epochs", default=10, type=int)
    parser.add_argument("--fraction", default=1.0, type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--every", default=24, type=int)
    options = parser.parse_args()
    use_available_threads()
    seconds: dict[int, float] = {}
    last = {"epoch": 0, "time": 0.0}

    def note(event: Event) -> None:
        if isinstance(event, Step):
            now = time.perf_counter()
            if event.epoch == last["epoch"]:
                seconds[event.step] = now - last["time"]
            last.update(epoch=event.epoch, time=now)

    config = TrainConfig(
        arch=options.arch, epochs=options.epochs, fraction=options.fraction, batch_size=options.batch_size,
        checkpoint_minutes=1000, checkpoint_steps=options.every,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(options.dataset, Path(folder) / "run", config, report=note)
        state = next((Path(folder) / "run" / "state").iterdir())
        size = sum(path.stat().st_size for path in state.iterdir()) / 1e6
    low, median, high = np.quantile(costs(seconds, options.every), [0.25, 0.5, 0.75])
    step, interval = statistics.median(seconds.values()), 60 * TrainConfig.checkpoint_minutes
    print(f"{options.arch}: {len(seconds)} steps of {1e3 * step:.1f} ms, {len(costs(seconds, options.every))} states")
    print(f"a state of {size:.1f} MB costs {median:.3f} s (quartiles {low:.3f} to {high:.3f})")
    print(f"that is {median / interval:.3%} of the {interval:.0f} s between two states by default")


if __name__ == "__main__":
    main()
