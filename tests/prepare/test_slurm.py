"""Tests `examples/slurm/prepare.sbatch` on a Slurm cluster of one machine; slow, runs on request."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import slurm
from helpers.makers import Ran, make_png, smooth_image

from cyclic_cli.storage.dataset import StoredDataset

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "prepare.sbatch"


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.cluster() as started:
        yield started


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """300 images of 60 patients, which make several shards, with a table of reports."""
    folder = tmp_path / "files"
    for number in range(300):
        make_png(folder / f"{number:03d}.png", smooth_image(number, 48, 40))
    rows = [f"{number:03d}.png,patient {number % 60},Report number {number}." for number in range(0, 300, 2)]
    (tmp_path / "reports.csv").write_text("\n".join(["path,patient,text", *rows]) + "\n")
    return folder


def submit(cluster: slurm.Cluster, *options: str, **environment: str | Path) -> tuple[str, str]:
    """Submit as a user does, with this Python's `cyclic`; the numbers of the array and of the job that joins it."""
    search_path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["bash", SCRIPT, "--cpus-per-task=1", "--mem-per-cpu=1G", *options]
    array, merge = re.findall(r"job (\d+)", cluster.run(*words, PATH=search_path, CYCLIC_SALT="salt", **environment))
    return array, merge


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_slurm_runs_a_job(cluster: slurm.Cluster, tmp_path: Path) -> None:
    job = cluster.submit("--array=0-1", f"--output={tmp_path}/%a.log", "--wrap=echo $SLURM_ARRAY_TASK_COUNT; exit 3")
    assert cluster.wait(job) == {"FAILED"}
    assert [(tmp_path / f"{task}.log").read_text() for task in (0, 1)] == ["2\n", "2\n"]


def test_an_array_job_makes_the_dataset_of_one_run(
    cluster: slurm.Cluster, files: Path, tmp_path: Path, cyclic: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = tmp_path / "reports.csv"
    array, merge = submit(cluster, "--array=0-3", SOURCE=files, REPORTS=reports, OUT=tmp_path / "parts")
    assert cluster.wait(array) == cluster.wait(merge) == {"COMPLETED"}
    assert sorted(path.name for path in Path().iterdir()) == sorted(
        [f"cyclic-prepare-{array}_{task}.log" for task in range(4)] + [f"cyclic-prepare-{merge}_0.log"]
    )
    monkeypatch.setenv("CYCLIC_SALT", "salt")
    assert cyclic("prepare", files, "--reports", reports, "--out", tmp_path / "whole").code == 0
    assert StoredDataset(tmp_path / "parts").index().num_rows == 300
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_task_is_queued_again_shortly_before_its_time_limit(
    cluster: slurm.Cluster, tmp_path: Path, cyclic: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    large = make_png(tmp_path / "large.png", smooth_image(0, 1600, 1600))
    files.mkdir()
    for number in range(400):  # about ten seconds of work; one image is kept
        (files / f"{number:03d}.png").symlink_to(large)
    array, merge = submit(cluster, "--array=0-1", SOURCE=files, REPORTS="", OUT=tmp_path / "parts")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("parts/.unfinished/*.pixels"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    cluster.run("scancel", "--signal=USR1", "--batch", f"{array}_1")  # as Slurm does before the time limit
    assert cluster.wait(array) == cluster.wait(merge) == {"COMPLETED"}
    assert cluster.show(f"{array}_0", "Restarts") == ["0"]
    assert cluster.show(f"{array}_1", "Restarts") == ["1"]
    monkeypatch.setenv("CYCLIC_SALT", "salt")
    assert cyclic("prepare", files, "--out", tmp_path / "whole").code == 0
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
