"""What a task says while it works. Tasks never print: they call `report(event)`; the console draws events,
tests collect them, a notebook may plot them.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of work are finished (`unit`: "images", "scans"); None where the end is not known."""

    done: int
    total: int | None
    unit: str


@dataclass(frozen=True)
class Note:
    """Something the user should know: which data or model was taken, a warning, a file left out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Step:
    """One optimizer step is done. `losses` holds each objective's value under its name, and their weighted `total`."""

    step: int
    steps: int
    epoch: int
    epochs: int
    losses: dict[str, float]
    lr: float
    images_per_second: float  # 0 before it is known
    batch_images: int


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data is done and validated; `val` is empty when there is no validation data."""

    epoch: int
    epochs: int
    val: dict[str, float]
    best: bool


Event = Progress | Note | Step | Epoch
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """A report that nobody reads."""
