"""One shard of a dataset: a fixed run of inputs, decoded, fitted and written by a process that may die of any of them.

Decoders are C libraries fed with files from anywhere: they abort, loop and ask for absurd memory. So each shard has two
sides. `write_shard` watches; it runs in a thread of the command, or on a worker of a cluster. A decoder process, which
it starts once and keeps, reads files and appends what they are worth to the shard; pixels never leave that process but
for the disk. When it dies or hangs, the watcher notes the file at hand as the reason, and a new process goes on after
it.

Messages, a line each: the watcher sends a job as JSON; the decoder answers with the number of every input it begins, an
empty line for every frame, and at the end with `done`, or with `failed` and the reason when writing failed.
"""

import ctypes
import hashlib
import json
import os
import queue
import resource
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

import numpy as np

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import CyclicError, InputError, Rejected, Skipped
from cyclic_cli.imaging import readers
from cyclic_cli.imaging.dicom.header import Identities
from cyclic_cli.prepare.near_duplicates import perceptual_hash
from cyclic_cli.prepare.sources import Input
from cyclic_cli.privacy.keys import Keyer, names_nobody
from cyclic_cli.privacy.scrub import fingerprints
from cyclic_cli.storage.dataset_draft import DatasetDraft, ShardDraft
from cyclic_cli.workers import keep_freed_memory

Row = dict[str, Any]

MEMORY = 4 * 2**30  # bytes a decoder process may hold: the largest picture that is taken needs less
START = 60.0  # seconds that a process may need to start, on a slow file system
PR_SET_PDEATHSIG = 1  # of prctl(2)
KILLS = 3  # times a process may be killed at one input before that counts as the input's fault
OUTSIDE_SIGNALS = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # nobody's fault, at first


@dataclass(frozen=True)
class ShardJob:
    """What a shard is made of. The secret in it goes through pipes, and to a cluster's workers, never to a disk."""

    folder: str  # of the dataset
    shard: int
    inputs: list[tuple[int, str, str]]  # number, path, name within an archive
    preprocessing: Preprocessing
    allow_burned_in: bool
    secret: bytes
    time_limit: float  # seconds a frame may take

    def draft(self) -> ShardDraft:
        """The shard on disk."""
        size = self.preprocessing.size
        return DatasetDraft(Path(self.folder)).shard(self.shard, (1, size, size), self.preprocessing.bits)

    def __repr__(self) -> str:
        return f"ShardJob({self.shard})"


# --------------------------------------------------------------------------------------------------- watcher


class Decoders:
    """The decoder processes of this process: those at work, and those that wait for more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Decoder] = []
        self._all: set[_Decoder] = set()
        self._starter = ThreadPoolExecutor(1)  # a decoder ends with the thread that started it: see `serve`
        self.stopped = False

    def take(self) -> "_Decoder":
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
        decoder.kill()
        with self._lock:
            self._all.discard(decoder)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """When the block ends by an exception all end at once; what they were doing continues some other time."""
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


def write_shard(job: ShardJob, begun: Callable[[int], None] = lambda number: None) -> None:
    """Write a shard, whatever its inputs do to the process that reads them.

    Args:
        job: The shard.
        begun: Called with the number of inputs begun since the last call.

    Raises:
        CyclicError: the disk is full, the folder cannot be written, no decoder process can be started.
    """
    killed: Counter[int | None] = Counter()
    while True:
        decoder = DECODERS.take()
        at_hand: int | None = None
        try:
            for number in decoder.run(job):
                at_hand = number
                begun(1)
            DECODERS.give_back(decoder)
            return
        except _Ended as end:
            DECODERS.drop(decoder)
            if DECODERS.stopped:
                raise CyclicError("The work was stopped.") from None
            killed[at_hand] += 1
            if at_hand is None and killed[None] >= KILLS:
                raise CyclicError(
                    "The process that decodes images ends as it starts.", "Check the installation."
                ) from end
            if at_hand is not None and (end.reason != "killed" or killed[at_hand] >= KILLS):
                reason = end.reason if end.reason != "killed" else "crashed"
                with job.draft() as draft:
                    if at_hand not in draft.done:
                        draft.append(at_hand, [_left_out(at_hand, "rejected", reason, end.detail)], [])


class _Ended(Exception):
    """A decoder process ended before its job did: `reason` is crashed, timeout, or killed from outside."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Decoder:
    """A decoder process, seen from its watcher."""

    def __init__(self) -> None:
        # -P: a file called numpy.py in the working folder is not what is meant
        command = [sys.executable, "-P", "-m", "cyclic_cli.prepare.shards"]
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # processes share the cores, not threads
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | quiet)
        self._rest = b""
        self._patience = START  # seconds, beside the time limit, until it is known to have started

    def run(self, job: ShardJob) -> Iterator[int]:
        """The number of each input as it is begun. Raises _Ended, and CyclicError when the shard cannot be written."""
        message = asdict(job) | {"secret": job.secret.hex()}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._end() from None
        while True:
            for word in self._words(job.time_limit + self._patience):
                if word == b"done":
                    return
                if word.startswith(b"failed "):
                    raise CyclicError(word[7:].decode(), "Free some space; the same command continues.")
                if word:  # an empty one tells of a frame
                    yield int(word)

    def _words(self, time_limit: float) -> list[bytes]:
        """The next messages."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], time_limit)
        if not ready:
            raise _Ended("timeout", f"not read within {time_limit:.0f} s")
        self._patience = 0.0
        received = os.read(self._process.stdout.fileno(), 65536)
        if not received:
            raise self._end()
        *words, self._rest = (self._rest + received).split(b"\n")
        return words

    def _end(self) -> _Ended:
        code = self._process.wait()
        if -code in OUTSIDE_SIGNALS:
            return _Ended("killed", "the process was killed, perhaps for want of memory")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Ended("crashed", f"the decoder crashed ({name})")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------- decoder


def serve() -> None:
    """Be a decoder process: do the jobs that stdin brings, and end when it ends, in the middle of anything."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the watcher gets them too, and decides
    with suppress(OSError, AttributeError):  # `_listen` must wait for a library that keeps the interpreter to itself
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # Linux: with the thread that started this process
    _, most = resource.getrlimit(resource.RLIMIT_DATA)  # a cluster may allow less
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    keep_freed_memory()
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what libraries print is no answer, and may quote a header
        os.dup2(nowhere, stream)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        message = json.loads(jobs.get())
        message["preprocessing"] = Preprocessing(**message["preprocessing"])
        job = ShardJob(**message | {"secret": bytes.fromhex(message["secret"])})
        try:
            _decode(job, lambda word: os.write(answers, word.encode() + b"\n"))
            os.write(answers, b"done\n")
        except BrokenPipeError:
            return
        except OSError as error:
            os.write(answers, f"failed {job.folder} cannot be written: {error.strerror}.\n".encode())


def _listen(jobs: "queue.SimpleQueue[bytes]") -> None:
    """Hand on the lines of stdin. When it ends the watcher is gone, and so is whoever waits for this process."""
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(0)


def _decode(job: ShardJob, answer: Callable[[str], object]) -> None:
    """Write a shard, continued where it was left."""
    keyer = Keyer(job.secret)
    with job.draft() as draft:
        for number, path, member in job.inputs:
            if number not in draft.done:
                answer(str(number))
                item = Input(Path(path), "", "", member)
                rows, fitted = _worth(number, item, job, keyer, answer)
                draft.append(number, [row | {"shard": job.shard} for row in rows], fitted)
        draft.finish()


def _worth(
    number: int, item: Input, job: ShardJob, keyer: Keyer, answer: Callable[[str], object]
) -> tuple[list[Row], list[np.ndarray]]:
    """What an input is worth: a row for each of its frames, or one for the reason why there is none, and the images."""
    try:
        content = item.read()
        scan = readers.open_scan(content, job.preprocessing, job.allow_burned_in)
    except InputError as error:
        return [_refused(number, 0, _better_said(error, item), keyer)], []
    digest = hashlib.sha256(content).hexdigest()  # what processors have an instruction for
    rows: list[Row] = []
    fitted: list[np.ndarray] = []
    keys = _header_keys(scan.identities, keyer)
    for frame in scan.frames:
        try:
            picture = scan.picture(frame)
            image = readers.fit(picture, job.preprocessing)
            if image.min() == image.max():
                raise Rejected("blank", "nothing is left of it at this size")
        except InputError as error:
            rows.append(_refused(number, frame, error, keyer))
        else:
            part = (str(frame),) if len(scan.frames) > 1 else ()
            rows.append({
                "input": number, "frame": frame, "status": "used", "row": len(fitted),
                "sample": keyer.key("sample", digest, *part), "perceptual_hash": perceptual_hash(image[0]),
                "content": hashlib.sha256(image.tobytes()).hexdigest()[:32], **asdict(picture.facts), **keys,
            })  # fmt: skip
            fitted.append(image)
        answer("")
    rows[0]["words"] = fingerprints(scan.identities.identifying, keyer)  # once a file is enough
    return rows, fitted


def _better_said(error: InputError, item: Input) -> InputError:
    """Of text and tables a better word than that their format is unknown."""
    suffix = Path(item.name).suffix.lower()
    if not isinstance(error, Rejected) or error.reason != "unknown_format":
        return error
    if suffix == ".txt":
        return Rejected("text_without_image")
    if suffix == ".zip":
        return Rejected("broken_archive", "a zip archive within another is not read")
    if suffix in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return Rejected("unknown_format", "a table that was not named: give it with --reports")
    return error


def _refused(number: int, frame: int, error: InputError, keyer: Keyer) -> Row:
    """The row of what gives no sample. Of a structured report it says that there is a text, which the join reads."""
    identities = error.identities if isinstance(error.identities, Identities) else Identities()
    words = fingerprints(identities.identifying, keyer)
    known = _header_keys(identities, keyer) | {"words": words}
    if isinstance(error, Skipped):
        said = {"told": bool(error.text)}
        detail = f"{error.message}: its text is taken" if error.text else error.message
        return _left_out(number, "skipped", error.kind, detail, frame) | known | said
    reason = error.reason if isinstance(error, Rejected) else "unexpected"
    return _left_out(number, "rejected", reason, error.message, frame) | known


def _left_out(number: int, status: str, reason: str, detail: str, frame: int = 0) -> Row:
    return {"input": number, "frame": frame, "status": status, "reason": reason, "detail": detail}


def _header_keys(identities: Identities, keyer: Keyer) -> Row:
    """Keys of whom and what a header names; empty where it names none."""

    def key(kind: str, *parts: str) -> str:
        return keyer.key(kind, *parts) if parts and not names_nobody(parts[0]) else ""

    return {
        "patient": key("patient", *identities.patient),
        "patient_number": key("patient", *identities.patient[:1]),
        "study": key("study", identities.study),
        "instance": key("instance", identities.instance),
        "accession": key("accession", identities.accession),
    }


if __name__ == "__main__":
    serve()
