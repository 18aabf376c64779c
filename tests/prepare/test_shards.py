"""Tests of shards and decoder processes: files that break their decoder are rejected, and killed work continues."""

import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from helpers.makers import contents, make_dicom, make_png, smooth_image

from cyclic_cli.config import Preprocessing
from cyclic_cli.prepare.shards import DECODERS, ShardJob, write_shard
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.dataset_draft import DatasetDraft

PREPARE = [sys.executable, "-m", "cyclic_cli", "prepare", "files", "--already-deidentified", "--size", "32", "--json"]

READER = """
import os, sys, time
if sys.argv[0] == "-m":  # a decoder process, and no other
    from cyclic_cli.imaging import readers
    original = readers.READERS["png"]
    def reader(content, *rest):
        with open({log!r}, "a") as log:
            log.write(str(len(content)) + chr(10))
        {action}
        return original(content, *rest)
    readers.READERS["png"] = reader
"""
EVIL = "if content.endswith(b'evil'): "


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`change(action)` makes decoder processes run a statement whenever they read a PNG.

    `change` returns the path of a log, which has a line for every file read.
    """
    log = tmp_path / "log"
    log.write_text("")

    def change(action: str) -> Path:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(READER.format(log=str(log), action=action))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        return log

    return change  # type: ignore[return-value]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PREPARE, *words], capture_output=True, text=True, timeout=120, check=False)


def some_files(count: int, evil: int | None = None) -> None:
    for number in range(count):
        path = make_png(Path(f"files/{number:03}.png"), smooth_image(number, 24, 20))
        if number == evil:
            path.write_bytes(path.read_bytes() + b"evil")


@pytest.mark.parametrize(
    ("action", "reason", "words"),
    [
        (EVIL + "os.abort()", "crashed", "SIGABRT"),
        (EVIL + "os._exit(3)", "crashed", "exit code 3"),
        (EVIL + "os.kill(os.getpid(), 9)", "crashed", "killed"),  # as the kernel does when memory runs out
        (EVIL + "time.sleep(1000)", "timeout", "within 2 s"),
        (EVIL + "bytearray(10**12)", "too_large", "memory"),
        (EVIL + "bytearray(2**33)", "too_large", "memory"),
        (EVIL + "raise SystemError", "unexpected", "SystemError"),
        ("os.write(1, b'999999 nonsense'); os.write(2, b'noise')" if os.name else "", None, ""),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_breaks_its_decoder_is_rejected_alone(
    reading: object, action: str, reason: str | None, words: str, workers: str
) -> None:
    some_files(70, evil=33)  # two shards
    reading(action)  # type: ignore[operator]
    ran = run("--out", "ds", "--workers", workers, "--time-limit", "2")
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert summary["rejected_by_reason"] == ({reason: 1} if reason else {})
    assert summary["used"] == 70 - bool(reason)
    assert "noise" not in ran.stderr
    if reason:
        (line,) = [json.loads(line) for line in Path("ds/rejected.jsonl").read_text().splitlines()]
        assert (line["source"], line["reason"]) == ("033.png", reason)
        assert words in line["detail"]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_work_continues_to_the_same_bytes(kills: int, reading: object) -> None:
    """After a kill only the files that were being read are read again."""
    some_files(150)
    log = reading("time.sleep(0.01)")  # type: ignore[operator]
    start = time.monotonic()
    assert run("--out", "whole", "--workers", "2").returncode == 0
    whole = time.monotonic() - start
    assert len(log.read_text().split()) == 150
    log.write_text("")
    generator = random.Random(0)
    done = runs = 0
    command = [*PREPARE, "--out", "killed", "--workers", "2", "-q"]
    while done < kills:
        killed = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        try:
            killed.wait(generator.uniform(0.2, whole))
        except subprocess.TimeoutExpired:
            os.killpg(killed.pid, signal.SIGKILL)
            killed.wait()
            done += 1
        else:  # it finished before the kill
            assert contents(Path("killed")) == contents(Path("whole"))
            shutil.rmtree("killed")
            runs += 1
    assert run("--out", "killed").returncode == 0
    assert contents(Path("killed")) == contents(Path("whole"))
    assert 150 * (runs + 1) <= len(log.read_text().split()) <= 150 * (runs + 1) + 2 * kills


def test_a_second_prepare_on_the_same_output_is_refused_while_one_runs(reading: object) -> None:
    some_files(40)
    log = reading("time.sleep(0.2)")  # type: ignore[operator]
    first = subprocess.Popen([*PREPARE, "--out", "ds", "--workers", "1", "-q"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    second = run("--out", "ds")
    assert second.returncode == 1
    assert "ds is being prepared by another process" in second.stderr
    first.kill()
    first.wait()
    assert run("--out", "ds").returncode == 0  # it takes over the lease of the killed process


@pytest.mark.parametrize("action", ["time.sleep(300)", "import re; re.match('(a+)+$', 'a' * 29 + 'b')"])
def test_decoders_end_with_their_supervisor(reading: object, action: str) -> None:
    """This holds even in C code that keeps the interpreter lock, such as a search with `re`."""
    some_files(10)
    log = reading(action)  # type: ignore[operator]
    supervisor = subprocess.Popen([*PREPARE, "--out", "ds", "--workers", "1", "-q"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    supervisor.kill()
    supervisor.wait()
    with Path("ds/.unfinished/rows-00000.part").open("rb") as rows:
        deadline = time.monotonic() + 5
        while not is_free(rows) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert is_free(rows)


def is_free(file: BinaryIO) -> bool:
    """Whether no process holds the lock of a shard."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_decoders_outlive_the_thread_that_first_used_them(tmp_path: Path) -> None:
    make_png(tmp_path / "a.png", smooth_image(1))
    draft = DatasetDraft(tmp_path / "ds")
    draft.begin({"settings": {}, "inputs": 2, "fingerprint": "x"})
    started = []
    for shard in range(2):
        job = ShardJob(str(draft.folder), shard, [(0, str(tmp_path / "a.png"), "")], Preprocessing(), False, b"", 60.0)
        thread = threading.Thread(target=write_shard, args=(job,))
        thread.start()
        thread.join()
        time.sleep(0.2)  # a process that ends with the thread would have ended by then
        assert draft.is_done(shard)
        started.append(set(DECODERS._all))
    assert started[0] == started[1] != set()


def test_sigterm_ends_at_once_and_the_same_command_continues(reading: object) -> None:
    some_files(100)
    log = reading("time.sleep(0.1)")  # type: ignore[operator]
    running = subprocess.Popen(
        [*PREPARE, "--out", "ds", "--workers", "2", "-q"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(log.read_text().split()) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.terminate()
    assert running.wait(20) == 143
    reading("pass")  # type: ignore[operator]
    assert json.loads(run("--out", "ds").stdout)["used"] == 100
    assert len(log.read_text().split()) <= 102


def test_a_header_that_declares_a_huge_image_is_rejected_quickly() -> None:
    for number in range(3):
        make_png(Path(f"files/{number}.png"), smooth_image(number))
    bomb = make_dicom(Path("files/bomb.dcm"), smooth_image(9)[:10, :10].copy(), bits=8, NumberOfFrames=9999)
    content = bomb.read_bytes()
    for tag in (b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00"):
        at = content.index(tag) + len(tag)
        content = content[:at] + b"\xff\xff" + content[at + 2 :]
    bomb.write_bytes(content)
    start = time.monotonic()
    ran = run("--out", "ds")
    assert json.loads(ran.stdout)["rejected"] == 1
    assert time.monotonic() - start < 20


def test_a_lower_limit_of_memory_is_respected() -> None:
    """The limit of a cluster may be lower than the limit that this program sets."""
    some_files(3)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))

    ran = subprocess.run([*PREPARE, "--out", "ds"], capture_output=True, text=True, preexec_fn=limit, check=False)
    assert json.loads(ran.stdout)["used"] == 3


# ---------------------------------------------------------------------------------------------- the shard on disk


def test_a_shard_continues_after_half_a_line_and_pixels_without_a_line(tmp_path: Path) -> None:
    draft = DatasetDraft(tmp_path / "ds")
    draft.begin({"settings": {}, "inputs": 4, "fingerprint": "x"})
    images = [np.full((1, 4, 4), number, dtype=np.uint8) for number in range(4)]

    def write(numbers: range) -> None:
        with draft.shard(0, (1, 4, 4), 8) as shard:
            for number in numbers:
                if number not in shard.done:
                    shard.append(number, [{"input": number, "row": 0}], [images[number]])
            if numbers.stop == 4:
                shard.finish()

    write(range(2))
    unfinished = tmp_path / "ds" / ".unfinished"
    with (unfinished / "rows-00000.part").open("ab") as rows:
        rows.write(b'{"input": 2, "ima')
    with (unfinished / "rows-00000.pixels").open("ab") as pixels:
        pixels.write(b"half an image")
    write(range(4))
    assert [row["row"] for row in draft.rows(0)] == [0, 1, 2, 3]
    stored = np.frombuffer((tmp_path / "ds" / "images-00000.safetensors").read_bytes()[256:], np.uint8)
    np.testing.assert_array_equal(stored.reshape(4, 1, 4, 4), np.stack(images))


def test_rows_whose_pixels_are_missing_are_written_again(tmp_path: Path) -> None:
    """A power failure may leave a shard in this state."""
    draft = DatasetDraft(tmp_path / "ds")
    draft.begin({"settings": {}, "inputs": 3, "fingerprint": "x"})
    with draft.shard(0, (1, 4, 4), 8) as shard:
        for number in range(3):
            shard.append(number, [{"input": number, "row": 0}], [np.full((1, 4, 4), number, np.uint8)])
    os.truncate(tmp_path / "ds" / ".unfinished" / "rows-00000.pixels", 256 + 20)
    with draft.shard(0, (1, 4, 4), 8) as shard:
        assert (shard.done, shard.images) == ({0}, 1)


def test_a_writer_that_waited_for_a_shard_finds_it_finished(tmp_path: Path) -> None:
    """This happens when a job is retried while its first writer, believed dead, still holds the shard."""
    draft = DatasetDraft(tmp_path / "ds")
    draft.begin({"settings": {}, "inputs": 3, "fingerprint": "x"})
    found = []

    def wait_for_it() -> None:
        with draft.shard(0, (1, 4, 4), 8) as shard:
            found.append((shard.done, shard.images))
            shard.finish()

    with draft.shard(0, (1, 4, 4), 8) as shard:
        for number in range(3):
            shard.append(number, [{"input": number, "row": 0}], [np.full((1, 4, 4), number, np.uint8)])
        second = threading.Thread(target=wait_for_it)
        second.start()
        time.sleep(0.2)
        shard.finish()
        whole = contents(tmp_path / "ds")
    second.join()
    wait_for_it()  # a third writer, after the shard is finished
    assert found == [({0, 1, 2}, 3)] * 2
    after = contents(tmp_path / "ds")
    assert {name: after[name] for name in whole} == whole


def test_a_writer_that_waited_for_a_shard_starts_again_when_its_file_is_gone(tmp_path: Path) -> None:
    draft = DatasetDraft(tmp_path / "ds")
    draft.begin({"settings": {}, "inputs": 1, "fingerprint": "x"})

    def wait_for_it() -> None:
        with draft.shard(0, (1, 4, 4), 8) as shard:
            shard.append(0, [{"input": 0, "row": 0}], [np.ones((1, 4, 4), np.uint8)])
            shard.finish()

    with draft.shard(0, (1, 4, 4), 8):
        second = threading.Thread(target=wait_for_it)
        second.start()
        time.sleep(0.2)
        (tmp_path / "ds/.unfinished/rows-00000.part").unlink()
    second.join()
    assert [row["input"] for row in draft.rows(0)] == [0]


@pytest.mark.parametrize("line", [b"\0" * 50 + b"\n", b"{]\n", b"5\n", b'{"input": 1}\n', b"\xff\xfe\n"])
def test_a_shard_continues_at_a_line_that_is_not_a_row(tmp_path: Path, line: bytes) -> None:
    """A power failure may leave a shard in this state."""
    draft = DatasetDraft(tmp_path / "ds")
    draft.begin({"settings": {}, "inputs": 3, "fingerprint": "x"})
    with draft.shard(0, (1, 4, 4), 8) as shard:
        shard.append(0, [{"input": 0, "row": 0}], [np.ones((1, 4, 4), np.uint8)])
    with (tmp_path / "ds" / ".unfinished" / "rows-00000.part").open("ab") as rows:
        rows.write(line)
    with draft.shard(0, (1, 4, 4), 8) as shard:
        assert (shard.done, shard.images) == ({0}, 1)
        shard.append(1, [{"input": 1, "row": 0}], [np.ones((1, 4, 4), np.uint8)])
        shard.finish()
    assert [row["row"] for row in draft.rows(0)] == [0, 1]


def test_safetensors_reads_the_shards_of_a_dataset(tiny_dataset: Path) -> None:
    from safetensors.numpy import load_file

    for path in sorted(tiny_dataset.glob("images-*")):
        loaded = load_file(path)["images"]
        shard = int(path.stem[-5:])
        rows = np.arange(len(loaded))
        np.testing.assert_array_equal(loaded, StoredDataset(tiny_dataset).images(np.full(len(loaded), shard), rows))
