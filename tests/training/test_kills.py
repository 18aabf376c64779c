"""A run that is killed at any moment ends, by the same command, with the bits of a run that was never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.makers import contents
from helpers.run_files import timeless_rows

INTERVAL = 4  # steps between two saved states
EPOCHS = 30
PER_EPOCH = 8  # steps
WORDS = ("--epochs", EPOCHS, "--batch-size", 3, "--set", f"checkpoint_steps={INTERVAL}", "--set", "augment=1")


class Forks:
    """Processes of `cyclic` that start within milliseconds, see `forking.py`."""

    def __init__(self, log: Path) -> None:
        self.log, self.validating, self.steps = log, log.with_suffix(".validating"), log.with_suffix(".steps")
        self.server = subprocess.Popen(
            [sys.executable, Path(__file__).parents[1] / "helpers" / "forking.py", log],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, *words: object) -> int:
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self) -> int:
        """Wait for the process, and return its exit code."""
        assert self.server.stdout
        return int(self.server.stdout.readline())

    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    started = Forks(tmp_path / "output.txt")
    yield started
    started.server.kill()
    started.server.wait()


def moments(run: Path, pid: int, validating: Path, generator: random.Random) -> list[tuple[str, Callable[[], bool]]]:
    """When to kill the process `pid`: the names of phases, each with a condition that is true once it begins."""

    def drafts() -> list[int]:
        """The steps whose states are being written."""
        return [int(draft.name[6:14]) for draft in (run / "state").glob(f".step-*.{pid}.tmp")]

    def after(steps: int) -> Callable[[], bool]:
        begun = newest_state(run)
        return lambda: newest_state(run) >= begun + steps

    return [
        ("start", lambda: run.exists()),
        ("settings", lambda: (run / "config.yaml").exists()),
        ("metrics", lambda: (run / "metrics.jsonl").exists()),
        ("writing", lambda: bool(drafts())),
        ("epoch", lambda: any(step % PER_EPOCH == 0 for step in drafts())),
        ("validation", validating.exists),
        ("between", after(generator.randrange(1, 12))),
        ("end", after(EPOCHS * PER_EPOCH - newest_state(run))),
    ]


def newest_state(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "state").glob("step-*")), default=0)


@pytest.mark.parametrize(
    ("kills", "arch"),
    [
        (8, ("linear", "--lr", 1e-3)),
        pytest.param(24, ("linear", "--lr", 1e-3), marks=pytest.mark.slow),
        pytest.param(24, ("vae", "--set", "model.latent=16"), marks=pytest.mark.slow),
        pytest.param(24, ("conv", "--lr", 1e-4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_killed_again_and_again_ends_as_if_never_stopped(
    kills: int, arch: tuple[object, ...], tiny_dataset: Path, tmp_path: Path, forks: Forks
) -> None:
    generator, run = random.Random(0), tmp_path / "killed"
    words = ("train", tiny_dataset, "--arch", *arch, *WORDS, "--resume", "auto", "--quiet", "--json")
    phases = []
    for kill in range(kills):
        forks.validating.unlink(missing_ok=True)
        pid = forks.start(*words, "--out", run)
        choice = 7 if kill == kills - 1 else kill % 7 if kill < 14 else generator.randrange(3, 7)
        phase, condition = moments(run, pid, forks.validating, generator)[choice]
        deadline = time.monotonic() + 60
        while not condition() and not (run / "summary.json").exists():
            assert time.monotonic() < deadline, f"{phase} was never reached: {forks.output()}"
            time.sleep(0.001)
        time.sleep(0 if phase == "end" else generator.choice([0, 0, 0.002, 0.01]))
        os.kill(pid, signal.SIGKILL)
        assert forks.end() == -signal.SIGKILL, forks.output()
        assert not (run / "summary.json").exists(), "the run ended before it was killed"
        phases.append(phase)
    forks.start(*words, "--out", run)
    assert forks.end() == 0, forks.output()
    executed = forks.steps.stat().st_size
    forks.start(*words, "--out", tmp_path / "whole")
    assert forks.end() == 0, forks.output()
    rest, whole = (json.loads(line) for line in forks.output().splitlines()[-2:])
    assert len(set(phases)) == 8
    assert rest["resumed"]
    assert rest["steps"] == whole["steps_executed"]
    # Resuming repeats only the steps since the last saved state.
    assert whole["steps"] < executed <= whole["steps"] + kills * INTERVAL
    assert timeless_rows(run) == timeless_rows(tmp_path / "whole")
    kept, wanted = contents(run), contents(tmp_path / "whole")
    last = f"step-{whole['steps']:08d}"
    for name in ("model.safetensors", f"state/{last}/model.safetensors", f"state/{last}/optimizer.safetensors"):
        assert kept[name] == wanted[name], name
    assert kept.keys() == wanted.keys()
