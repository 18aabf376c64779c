"""Reads and writes the folder of a training run.

model.safetensors          the checkpoint with the best validation
config.yaml                all settings
metrics.jsonl              one line every few steps and after every epoch
summary.json               the results; exists when the run is finished
encoders/                  frozen pretrained encoders, by fingerprint (see `pretrained/stored.py`)
state/step-00000120/       model.safetensors (latest weights), optimizer.safetensors, progress.json
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.checkpoint import (
    CHECKPOINT_FORMAT,
    Checkpoint,
    facts_of,
    fingerprint_of,
    read_checkpoint,
    write_checkpoint,
)
from cyclic_cli.storage.files import (
    LEASE,
    checksum,
    holds_more_than_drafts,
    read_tensors,
    write_tensors,
    write_text,
    writing,
)
from cyclic_cli.storage.lease import SILENCE, hold

STATES_KEPT = 2  # the newest saved state and the one before it


class RunFolder:
    """The folder of a training run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = folder / "model.safetensors"
        self.config = folder / "config.yaml"
        self.metrics = folder / "metrics.jsonl"
        self.summary = folder / "summary.json"
        self.encoders = folder / "encoders"

    def exists(self) -> bool:
        """Whether the path exists and is more than an empty folder. A lease does not count."""
        return self.folder.exists() and (
            not self.folder.is_dir() or any(path.name != LEASE for path in self.folder.iterdir())
        )

    def states(self) -> list[Path]:
        """The saved states, oldest first."""
        return sorted((self.folder / "state").glob("step-*"))

    def save_state(
        self, step: int, checkpoint: Checkpoint, optimizer: dict[str, np.ndarray], progress: dict[str, Any]
    ) -> None:
        """Save all that resuming needs as one folder, atomically. Of the earlier states only the newest is kept."""
        final = self.folder / "state" / f"step-{step:08d}"
        draft, past = (final.with_name(f".{final.name}.{os.getpid()}{part}.tmp") for part in ("", ".past"))
        shutil.rmtree(draft, ignore_errors=True)
        try:
            write_checkpoint(draft / "model.safetensors", checkpoint)
            header = {"format": CHECKPOINT_FORMAT, "fingerprint": fingerprint_of({}, optimizer)}
            write_tensors(draft / "optimizer.safetensors", optimizer, {"cyclic": json.dumps(header)})
            write_text(draft / "progress.json", json.dumps({"progress": progress, "checksum": checksum(progress)}))
            if final.exists():  # the step was saved before, and is saved again after its validation
                os.replace(final, past)
            os.replace(draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(past, ignore_errors=True)
        states = self.states()
        earlier = [state for state in states if state.name <= final.name]
        for old in set(states) - set(earlier[-STATES_KEPT:]):  # later states are damaged ones that resuming skipped
            shutil.rmtree(old)

    def load_state(self, state: Path) -> tuple[Checkpoint, dict[str, np.ndarray], dict[str, Any]]:
        """Checkpoint, optimizer tensors and progress of a saved state. Raises CyclicError if one of them is damaged."""
        try:
            saved = json.loads((state / "progress.json").read_text(encoding="utf-8"))
            optimizer, header = read_tensors(state / "optimizer.safetensors")
            fingerprint = json.loads(header["cyclic"])["fingerprint"]
            if saved["checksum"] != checksum(saved["progress"]) or fingerprint != fingerprint_of({}, optimizer):
                raise ValueError("the checksum does not match")
            checkpoint = read_checkpoint(state / "model.safetensors")
        except (OSError, ValueError, KeyError, TypeError, CyclicError) as error:
            raise CyclicError(f"The saved state {state} is damaged.", "The one before it can be used.") from error
        return checkpoint, optimizer, saved["progress"]

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the lease of the run while the block runs. Raises CyclicError when a living process holds it.

        For a holder on another host it waits, because a killed and requeued job may have been moved to this host.
        """
        with ExitStack() as held:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                work = f"The run {self.folder} is being trained"
                held.enter_context(hold(self.folder / LEASE, work, patience=1.5 * SILENCE))
                self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove temporary files that killed processes left. Only the holder of the lease may call it."""
        for draft in self.folder.glob(".*.tmp"):
            draft.unlink(missing_ok=True)
        for draft in (self.folder / "state").glob(".*.tmp"):
            shutil.rmtree(draft, ignore_errors=True)

    def is_foreign(self) -> bool:
        """Whether the path exists and is something other than a run."""
        return (
            self.exists()
            and not self.config.exists()
            and (not self.folder.is_dir() or holds_more_than_drafts(self.folder))
        )

    def remove_if_empty(self) -> None:
        """Remove the folder if it holds nothing."""
        with suppress(OSError):
            self.folder.rmdir()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the summary, which marks the run as finished."""
        write_text(self.summary, json.dumps(summary))

    def read_summary(self) -> dict[str, Any]:
        """The summary of a finished run. Raises CyclicError when the summary or the best checkpoint is damaged."""
        read_checkpoint(self.best)
        try:
            return dict(json.loads(self.summary.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CyclicError(
                f"{self.summary} is damaged.", "Remove it: the run then finishes again from its last state."
            ) from error

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`. Raises CyclicError when the disk is full or the file cannot be written."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def metrics_size(self) -> int:
        """The size of `metrics.jsonl` in bytes; a state records it for `cut_metrics`."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def cut_metrics(self, size: int) -> None:
        """Cut `metrics.jsonl` to `size` bytes: drop the lines written after the resumed state was saved."""
        if self.metrics_size() > size:
            os.truncate(self.metrics, size)

    def point_latest(self) -> None:
        """Make `runs/latest` a link to this run. Does nothing unless the run lies in a folder named `runs`."""
        if self.folder.absolute().parent.name != "runs":
            return
        link = self.folder.absolute().parent / "latest"
        if link.exists() and not link.is_symlink():
            return  # a file or folder of the user
        draft = link.with_name(f".latest.{os.getpid()}.tmp")
        draft.unlink(missing_ok=True)
        draft.symlink_to(self.folder.name)
        os.replace(draft, link)


def encoders_of(checkpoint: Path) -> Path:
    """The folder of the pretrained encoders of a checkpoint: that of its run, also for one of a saved state."""
    in_state = checkpoint.parent.parent.name == "state"
    return (checkpoint.parent.parent.parent if in_state else checkpoint.parent) / "encoders"


def describe(path: Path) -> dict[str, Any]:
    """The output of `cyclic info` for a run. Raises CyclicError when its best checkpoint is damaged."""
    run = RunFolder(path)
    states = [state.name for state in run.states()]
    checkpoint = facts_of(run.best) if run.best.exists() else None
    return {
        "kind": "run",
        "path": str(path),
        "finished": run.summary.exists(),
        "states": states,
        "checkpoint": checkpoint,
    }
