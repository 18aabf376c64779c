"""What does saving state cost a training?

    python tests/benchmarks/saving.py DATASET [--arch linear] [--epochs 10] [--every 24]

`cyclic train` saves state every `--every` steps, and every step is timed. The steps of the first half of each interval
hold the copy of the state and, while the thread writes, what that takes of the processor; those of the second half hold
nothing of it. What the first half takes more than as many steps of the second (their median) is what that one state
cost: a pair of neighbours in time, which a slow minute of the machine meets alike. Beside the median over all states,
with quartiles, stands that cost as a share of the default time between two of them. A negative cost is noise.
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
    """Seconds that each state cost, from the seconds that ended with each step."""
    found = []
    for saved in range(every, max(seconds) - every, every):
        steps = [seconds.get(step) for step in range(saved + 1, saved + every + 1)]
        if None in steps:  # the end of an epoch, with its validation and its state
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
    asked = parser.parse_args()
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
        arch=asked.arch, epochs=asked.epochs, fraction=asked.fraction, batch_size=asked.batch_size,
        checkpoint_minutes=1000, checkpoint_steps=asked.every,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(asked.dataset, Path(folder) / "run", config, report=note)
        state = next((Path(folder) / "run" / "state").iterdir())
        size = sum(path.stat().st_size for path in state.iterdir()) / 1e6
    low, median, high = np.quantile(costs(seconds, asked.every), [0.25, 0.5, 0.75])
    step, interval = statistics.median(seconds.values()), 60 * TrainConfig.checkpoint_minutes
    print(f"{asked.arch}: {len(seconds)} steps of {1e3 * step:.1f} ms, {len(costs(seconds, asked.every))} states")
    print(f"a state of {size:.1f} MB costs {median:.3f} s (quartiles {low:.3f} to {high:.3f})")
    print(f"that is {median / interval:.3%} of the {interval:.0f} s between two states by default")


if __name__ == "__main__":
    main()
