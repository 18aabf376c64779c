"""The decoder process: reads the inputs of shards and writes their images and rows (`python -m` starts it).

It takes jobs from stdin and reports its progress on stdout; see `shards.py` for the messages and for the reasons.
"""

import ctypes
import hashlib
import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cyclic_cli.config import Preprocessing
from cyclic_cli.errors import InputError, Rejected, Skipped
from cyclic_cli.imaging import readers
from cyclic_cli.imaging.dicom.header import Identities
from cyclic_cli.imaging.nifti import PAIR
from cyclic_cli.prepare.near_duplicates import perceptual_hash
from cyclic_cli.prepare.shards import Row, ShardJob, row_without_image
from cyclic_cli.prepare.sources import Input
from cyclic_cli.privacy.keys import Keyer, is_placeholder
from cyclic_cli.privacy.scrub import fingerprints
from cyclic_cli.workers import keep_freed_memory

MEMORY = 4 * 2**30  # bytes that a decoder process may allocate; the largest accepted image needs less
PR_SET_PDEATHSIG = 1  # option of prctl(2): signal that the kernel sends when the parent dies


def serve() -> None:
    """Run the jobs that arrive on stdin; end at once when stdin closes, even in the middle of a job."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the supervisor gets these signals too, and decides what to do
    # `_listen` cannot run while a library holds the interpreter lock. On Linux the kernel ends this process with the
    # thread that started it.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)  # the limit of a cluster may be lower than ours
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    keep_freed_memory()
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # output of libraries would be mistaken for messages, and may quote a header
        os.dup2(nowhere, stream)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        message = json.loads(jobs.get())
        message["preprocessing"] = Preprocessing(**message["preprocessing"])
        job = ShardJob(**message | {"secret": bytes.fromhex(message["secret"])})
        try:
            _write(job, lambda message: os.write(answers, message.encode() + b"\n"))
            os.write(answers, b"done\n")
        except BrokenPipeError:
            return
        except OSError as error:
            os.write(answers, f"failed {job.folder} cannot be written: {error.strerror}.\n".encode())


def _listen(jobs: "queue.SimpleQueue[bytes]") -> None:
    """Pass on the lines of stdin. When stdin closes, the supervisor has ended, and nobody needs this process."""
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(0)


def _write(job: ShardJob, answer: Callable[[str], object]) -> None:
    """Write a shard, or continue one that is incomplete; `answer` sends a message to the supervisor."""
    keyer = Keyer(job.secret)
    with job.draft() as draft:
        for number, path, member in job.inputs:
            if number not in draft.done:
                answer(str(number))
                item = Input(Path(path), "", "", member)
                rows, images = _decode(number, item, job, keyer, answer)
                draft.append(number, [row | {"shard": job.shard} for row in rows], images)
        draft.finish()


def _decode(
    number: int, item: Input, job: ShardJob, keyer: Keyer, answer: Callable[[str], object]
) -> tuple[list[Row], list[np.ndarray]]:
    """The rows and images of an input.

    Returns:
        A row for each frame, or a single row with the reason why the input gives no image; and the images
        (1, size, size), uint8 or uint16, of the rows whose status is `used`.
    """
    try:
        content = item.read()
        scan = readers.open_scan(content, job.preprocessing, job.allow_burned_in)
    except InputError as error:
        return [_row_of_error(number, 0, _with_clearer_reason(error, item), keyer)], []
    digest = hashlib.sha256(content).hexdigest()  # SHA-256 is fast: processors have instructions for it
    rows: list[Row] = []
    images: list[np.ndarray] = []
    keys = _header_keys(scan.identities, keyer)
    for frame in scan.frames:
        try:
            picture = scan.picture(frame)
            image = readers.fit(picture, job.preprocessing)
            if image.min() == image.max():
                raise Rejected("blank", "at this size all pixels are equal")
        except InputError as error:
            rows.append(_row_of_error(number, frame, error, keyer))
        else:
            part = (str(frame),) if len(scan.frames) > 1 else ()
            rows.append({
                "input": number, "frame": picture.frame, "status": "used", "row": len(images),
                "sample": keyer.key("sample", digest, *part), "perceptual_hash": perceptual_hash(image[0]),
                "content": hashlib.sha256(image.tobytes()).hexdigest()[:32], "guesses": list(picture.guesses),
                **asdict(picture.facts), **keys,
            })  # fmt: skip
            images.append(image)
        answer("")
    rows[0]["words"] = fingerprints(scan.identities.identifying, keyer)  # once per file is enough
    return rows, images


def _with_clearer_reason(error: InputError, item: Input) -> InputError:
    """The error, with a more specific reason than an unknown format for text files, archives and tables."""
    suffix = Path(item.name).suffix.lower()
    if not isinstance(error, Rejected) or error.reason != "unknown_format":
        return error
    if suffix == ".txt":
        return Rejected("text_without_image")
    if suffix == ".zip":
        return Rejected("broken_archive", "zip archives within zip archives are not read")
    if item.name.lower().endswith((".img", ".img.gz")):  # voxels, whose header is another file
        return Rejected("unknown_format", PAIR)
    if suffix in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return Rejected("unknown_format", "a table in an unexpected place: name it with --reports")
    return error


def _row_of_error(number: int, frame: int, error: InputError, keyer: Keyer) -> Row:
    """The row of an input or frame that gives no image.

    `told` is true for a structured report with a text. The text itself is read later, from the input.
    """
    identities = error.identities if isinstance(error.identities, Identities) else Identities()
    words = fingerprints(identities.identifying, keyer)
    keys = _header_keys(identities, keyer) | {"words": words}
    if isinstance(error, Skipped):
        detail = f"{error.message}: its text is used" if error.text else error.message
        return row_without_image(number, "skipped", error.kind, detail, frame) | keys | {"told": bool(error.text)}
    reason = error.reason if isinstance(error, Rejected) else "unexpected"
    return row_without_image(number, "rejected", reason, error.message, frame) | keys


def _header_keys(identities: Identities, keyer: Keyer) -> Row:
    """Keys of the patient, study, instance and accession in a header; an empty string for what is missing."""

    def key(kind: str, *parts: str) -> str:
        return keyer.key(kind, *parts) if parts and not is_placeholder(parts[0]) else ""

    return {
        "patient": key("patient", *identities.patient),
        "patient_number": key("patient", *identities.patient[:1]),
        "study": key("study", identities.study),
        "instance": key("instance", identities.instance),
        "accession": key("accession", identities.accession),
    }


if __name__ == "__main__":
    serve()
