"""`examples/slurm/train.sbatch` on a real Slurm cluster of one machine. Slow; run on request."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import slurm
from helpers.makers import Ran
from helpers.run_files import rows, weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"
WORDS = ("--arch", "linear", "--batch-size", "4", "--set", "checkpoint_steps=50", "--lr", "1e-3", "--quiet")
ONE = ("--cpus-per-task=1", "--mem-per-cpu=1G")


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.cluster() as started:
        yield started


def submit(cluster: slurm.Cluster, dataset: Path, run: Path | None, *options: str, words: tuple[str, ...]) -> str:
    search_path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {} if run is None else {"RUN": run}
    return cluster.submit(*ONE, *options, SCRIPT, *WORDS, *words, PATH=search_path, DATASET=dataset, **own)


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_requeued_in_mid_epoch_ends_with_the_weights_of_one_never_stopped(
    cluster: slurm.Cluster, tiny_dataset: Path, tmp_path: Path, cyclic: Callable[..., Ran]
) -> None:
    run = tmp_path / "run"
    job = submit(cluster, tiny_dataset, run, words=("--epochs", "600"))
    until(lambda: list(run.glob("state/step-*")))
    cluster.run("scontrol", "requeue", job)
    assert cluster.wait(job, 240) == {"COMPLETED"}
    assert cluster.show(job, "Restarts") == ["1"]
    assert cyclic("train", tiny_dataset, *WORDS, "--epochs", 600, "--out", tmp_path / "whole").code == 0
    assert weights(run) == weights(tmp_path / "whole")
    assert {row["attempt"] for row in rows(run)} == {1, 2}


def test_a_job_that_reaches_its_time_limit_twice_continues_twice(
    cluster: slurm.Cluster, tiny_dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # Slurm measures limits in minutes. The signal, 45 seconds before the end of one minute, comes after 15 seconds.
    job = submit(
        cluster, tiny_dataset, run, "--time=1", "--signal=USR1@45", words=("--epochs", "1000000"),
    )  # fmt: skip
    until(lambda: cluster.show(job, "Restarts") == ["2"], 240)
    log = next(Path().glob("cyclic-train-*.log")).read_text()
    assert log.count("Stopped by SIGUSR1") == 2
    until(lambda: len({row["attempt"] for row in rows(run)}) == 3)
    cluster.run("scancel", job)


def test_two_tasks_train_one_run_and_an_array_a_run_for_each_seed(
    cluster: slurm.Cluster, tiny_dataset: Path, tmp_path: Path
) -> None:
    pair = submit(cluster, tiny_dataset, tmp_path / "pair", "--ntasks-per-node=2", words=("--epochs", "3"))
    assert cluster.wait(pair, 120) == {"COMPLETED"}
    assert next(row for row in rows(tmp_path / "pair") if row["kind"] == "hardware")["processes"] == 2
    seeds = submit(cluster, tiny_dataset, None, "--array=0-1", words=("--epochs", "1"))
    assert cluster.wait(seeds, 120) == {"COMPLETED"}
    made = [Path("runs") / f"cyclic-train-seed{seed}" for seed in (0, 1)]
    assert weights(made[0]) != weights(made[1])
