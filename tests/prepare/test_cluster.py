"""Tests `cyclic prepare --cluster` with a real Dask scheduler and two workers on the loopback interface."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.makers import make_png, smooth_image
from PIL import Image

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="distributed is not installed")

PATIENCE = 60.0  # seconds after which waiting fails


@dataclass
class Cluster:
    """A scheduler with two workers of one thread each."""

    address: str
    workers: list[subprocess.Popen[bytes]]


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "dask", *command], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "dask"
    folder.mkdir()
    scheduler_file = folder / "scheduler.json"
    local = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(scheduler_file)]
    with ExitStack() as processes:
        processes.enter_context(started(["scheduler", "--port", "0", *local], folder / "scheduler.log"))
        wait_until(lambda: scheduler_file.exists() and scheduler_file.stat().st_size)
        alone = ["--no-nanny", "--nthreads", "1", "--local-directory", str(folder)]
        workers = [
            processes.enter_context(started(["worker", *local, *alone], folder / f"worker{number}.log"))
            for number in range(2)
        ]
        yield Cluster(json.loads(scheduler_file.read_text())["address"], workers)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """192 images, which make three shards; each image takes some milliseconds."""
    folder = tmp_path / "files"
    folder.mkdir()
    pixels = smooth_image(0, 600, 600)
    for number in range(192):
        pixels[:8] = number
        Image.fromarray(pixels).save(folder / f"{number:03d}.png", compress_level=1)
    return folder


def prepare(source: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "cyclic_cli", "prepare", str(source), "--out", str(out), "--json", *options]
    environment = os.environ | {"CYCLIC_SALT": "salt"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process: int) -> list[int]:
    threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(word) for thread in threads for word in thread.read_text().split()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_output_does_not_change_when_a_worker_dies(cluster: Cluster, files: Path, tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    running = prepare(files, far, "--cluster", cluster.address)
    wait_until(lambda: running.poll() is not None or children(cluster.workers[0].pid))  # a worker is decoding
    assert running.poll() is None, running.communicate()[1]
    decoders = children(cluster.workers[0].pid)
    cluster.workers[0].kill()
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, err
    assert json.loads(out)["used"] == 192
    assert cluster.workers[1].poll() is None
    assert decoders
    wait_until(lambda: not any(Path(f"/proc/{decoder}").exists() for decoder in decoders))
    local = prepare(files, near)
    _, err = local.communicate(timeout=PATIENCE)
    assert local.returncode == 0, err
    assert content(far) == content(near)


def test_a_missing_scheduler_is_an_error(tmp_path: Path) -> None:
    scan = make_png(tmp_path / "scan.png", smooth_image(0))
    running = prepare(scan, tmp_path / "far", "--cluster", "tcp://127.0.0.1:9")
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 1
    assert "tcp://127.0.0.1:9" in err
    assert "Traceback" not in err
