"""Writes the shards of a dataset with decoder processes, which may crash or hang at any input.

A shard is a fixed range of inputs. Images are decoded by C libraries, and on damaged files these may abort, loop
forever or request absurd amounts of memory. Therefore `write_shard`, which runs in a thread of the command or on a
worker of a cluster, only supervises. A decoder process (`decoder.py`), started once and reused, reads the files and
appends their images and rows to the shard. Pixels leave that process only to the disk. When the process crashes or
hangs, the supervisor rejects the current file, and a new process continues after it.

Messages have one line each. The supervisor sends a job as JSON. The decoder answers with the number of every input that
it begins, with an empty line for every frame, and finally with `done`, or with `failed` and the reason when the shard
could not be written.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.dataset_draft import DatasetDraft, ShardDraft

Row = dict[str, Any]

START = 60.0  # seconds that a process may take to start, as on a slow file system
KILLS = 3  # times that processes may be killed at one input before the input is rejected
OUTSIDE_SIGNALS = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # usually not caused by an input


@dataclass(frozen=True)
class ShardJob:
    """Inputs and settings of one shard. Its secret is sent through pipes and to cluster workers, never to a disk."""

    folder: str  # folder of the dataset
    shard: int  # number of the shard
    inputs: list[tuple[int, str, str]]  # number, path, and name within an archive
    preprocessing: Preprocessing
    allow_burned_in: bool
    secret: bytes  # for keys, see `privacy/keys.py`
    time_limit: float  # seconds that reading one frame may take

    def draft(self) -> ShardDraft:
        """Open the unfinished shard on disk."""
        size = self.preprocessing.size
        return DatasetDraft(Path(self.folder)).shard(self.shard, (1, size, size), self.preprocessing.bits)

    def __repr__(self) -> str:
        return f"ShardJob({self.shard})"


def row_without_image(number: int, status: str, reason: str, detail: str, frame: int = 0) -> Row:
    """The row of an input, or of one of its frames, that gives no image; `status` is rejected or skipped."""
    return {"input": number, "frame": frame, "status": status, "reason": reason, "detail": detail}


class Decoders:
    """The decoder processes that this process has started, both busy and idle ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Decoder] = []
        self._all: set[_Decoder] = set()
        # A decoder ends with the thread that started it (see `decoder.serve`), so this thread must live on.
        self._starter = ThreadPoolExecutor(1)
        self.stopped = False

    def take(self) -> "_Decoder":
        """An idle decoder, or a new one. Raises CyclicError after the work was stopped."""
        with self._lock:
            if self.stopped:
                raise CyclicError("The work was stopped.")
            decoder = self._waiting.pop() if self._waiting else self._starter.submit(_Decoder).result()
            self._all.add(decoder)
            return decoder

    def give_back(self, decoder: "_Decoder") -> None:
        with self._lock:
            self._waiting.append(decoder)

    def drop(self, decoder: "_Decoder") -> None:
        """End a decoder for good."""
        decoder.kill()
        with self._lock:
            self._all.discard(decoder)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """End all decoders at once when the block raises; their shards can be continued later."""
        self.stopped = False
        try:
            yield
        except BaseException:
            with self._lock:
                self.stopped = True
                for decoder in self._all:
                    decoder.kill()
                self._all.clear()
                self._waiting.clear()
            raise


DECODERS = Decoders()


def write_shard(job: ShardJob, begun: Callable[[int], None] = lambda count: None) -> None:
    """Write a shard; inputs at which the decoder process crashes or hangs are rejected.

    Args:
        job: The shard.
        begun: Called with the number of inputs that were begun since the last call.

    Raises:
        CyclicError: the disk is full, the folder cannot be written, or no decoder process can be started.
    """
    killed: Counter[int | None] = Counter()
    while True:
        decoder = DECODERS.take()
        current: int | None = None  # the input that is being read
        try:
            for number in decoder.run(job):
                current = number
                begun(1)
            DECODERS.give_back(decoder)
            return
        except _Ended as end:
            DECODERS.drop(decoder)
            if DECODERS.stopped:
                raise CyclicError("The work was stopped.") from None
            killed[current] += 1
            if current is None and killed[None] >= KILLS:
                raise CyclicError(
                    "The process that decodes images ends right after its start.", "Check the installation."
                ) from end
            if current is not None and (end.reason != "killed" or killed[current] >= KILLS):
                reason = end.reason if end.reason != "killed" else "crashed"
                with job.draft() as draft:
                    if current not in draft.done:
                        draft.append(current, [row_without_image(current, "rejected", reason, end.detail)], [])


class _Ended(Exception):
    """A decoder process ended before its job was done; `reason` is crashed, timeout, or killed (from outside)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Decoder:
    """The supervisor's side of a decoder process."""

    def __init__(self) -> None:
        # -P keeps Python from importing a file such as numpy.py from the working folder.
        command = [sys.executable, "-P", "-m", "cyclic_cli.prepare.decoder"]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the processes already use all cores
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | one_thread
        )
        self._rest = b""
        self._start_time = START  # seconds added to the time limit until the first message arrives

    def run(self, job: ShardJob) -> Iterator[int]:
        """Give the number of each input when it is begun.

        Raises:
            _Ended: the process crashed, hung or was killed.
            CyclicError: the shard cannot be written.
        """
        content = asdict(job) | {"secret": job.secret.hex()}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._end() from None
        while True:
            for message in self._messages(job.time_limit + self._start_time):
                if message == b"done":
                    return
                if message.startswith(b"failed "):
                    raise CyclicError(message[7:].decode(), "Free some space; the same command then continues.")
                if message:  # an empty message means that a frame is done
                    yield int(message)

    def _messages(self, time_limit: float) -> list[bytes]:
        """The next complete messages. Raises _Ended when none arrives within `time_limit` seconds."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], time_limit)
        if not ready:
            raise _Ended("timeout", f"not read within {time_limit:.0f} s")
        self._start_time = 0.0
        received = os.read(self._process.stdout.fileno(), 65536)
        if not received:
            raise self._end()
        *messages, self._rest = (self._rest + received).split(b"\n")
        return messages

    def _end(self) -> _Ended:
        code = self._process.wait()
        if -code in OUTSIDE_SIGNALS:
            return _Ended("killed", "the process was killed, possibly because memory ran out")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Ended("crashed", f"the decoder crashed ({name})")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
