"""Totals of `cyclic embed`, and the messages about its progress."""

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from cyclic_cli.errors import REASONS
from cyclic_cli.events import Note, Progress, Report
from cyclic_cli.imaging.guesses import count_guesses, lines_of
from cyclic_cli.inference.embed_inputs import Chunk


@dataclass
class EmbedSummary:
    """Totals of `cyclic embed`. inputs = used + skipped + rejected.

    An input is a file, a text, or a sample of a dataset.
    """

    output: str | None = None
    model: str = ""  # fingerprint
    dimensions: int = 0
    inputs: int = 0
    used: int = 0
    skipped: int = 0
    rejected: int = 0
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    vectors: int = 0
    images: int = 0
    texts: int = 0
    guessed: dict[str, int] = field(default_factory=dict)  # images read by this call, by the key of `guesses.GUESSES`
    unread_texts: int = 0  # of which the model knows no word: their embeddings mean nothing
    seconds: float = 0.0
    vectors_per_second: float = 0.0

    def count(self, chunk: Chunk) -> None:
        """Add a chunk to the totals."""
        self.inputs += chunk.input_count
        self.skipped += chunk.without_encoder
        reasons = Counter(self.rejected_by_reason)
        for left_out in chunk.left_out:
            self.skipped += left_out["status"] == "skipped"
            self.rejected += left_out["status"] == "rejected"
            reasons.update([left_out["reason"]] if left_out["status"] == "rejected" else [])
        self.rejected_by_reason = dict(sorted(reasons.items()))
        count_guesses(self.guessed, chunk.guesses)
        self.used = self.inputs - self.skipped - self.rejected
        self.images += sum(encoder_input.kind == "image" for encoder_input in chunk.encoder_inputs)
        self.texts += sum(encoder_input.kind == "text" for encoder_input in chunk.encoder_inputs)
        self.unread_texts += chunk.unread_texts
        self.vectors = self.images + self.texts

    def replace_counts(self, totals: Counter[str], left_out: list[dict[str, str]]) -> None:
        """Replace the counts of this process by those of all parts of a file; no vector is written yet.

        Args:
            totals: `inputs`, `skipped`, `images` and `unread_texts`.
            left_out: Inputs that are not used, with `status` and `reason`.
        """
        reasons = Counter(one["reason"] for one in left_out if one["status"] == "rejected")
        self.inputs, self.skipped, self.images = (totals[name] for name in ("inputs", "skipped", "images"))
        self.unread_texts = totals["unread_texts"]
        self.rejected, self.rejected_by_reason = reasons.total(), dict(sorted(reasons.items()))
        self.used = self.inputs - self.skipped - self.rejected
        self.vectors = self.texts = 0

    def warn(self, report: Report) -> None:
        """Tell what was guessed about images, and warn of texts of which the model knows no word.

        The words are not named: the texts may be reports.
        """
        for line in lines_of(self.guessed):
            report(Note(line))
        if self.unread_texts:
            texts = f"{self.unread_texts} of {self.texts} texts"
            report(Note(f"the model knows no word of {texts}: their embeddings mean nothing", warning=True))

    def measure_time(self, began: float) -> None:
        """Set the duration and the throughput; `began` is a time of `time.monotonic`."""
        self.seconds = round(time.monotonic() - began, 3)
        self.vectors_per_second = round(self.vectors / max(self.seconds, 1e-9), 1)


def record_chunk(
    chunk: Chunk, embeddings: np.ndarray, summary: EmbedSummary, total: int | None, began: float, report: Report
) -> None:
    """Count a chunk, warn about each input that was left out, and report the progress."""
    for left_out in chunk.left_out:
        reason = left_out["detail"] or REASONS.get(left_out["reason"], left_out["reason"])
        report(Note(f"{left_out['source']}: {reason}", warning=True))
    summary.count(chunk)
    summary.dimensions = embeddings.shape[1] or summary.dimensions
    summary.measure_time(began)
    report(Progress(summary.inputs, total, "inputs"))
