"""Events that a task reports while it works.

Tasks never print. They call `report(event)`; the console shows events, tests collect them, a notebook may plot them.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of work are finished; `total` is None where it is not known in advance.

    `unit` names what is counted, such as "images" or "scans".
    """

    done: int
    total: int | None
    unit: str


@dataclass(frozen=True)
class Note:
    """A message for the user: which data or model is used, a warning, a file that was left out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Step:
    """One optimizer step is done. `losses` holds the value of each objective by name, and their weighted `total`."""

    step: int
    steps: int
    epoch: int
    epochs: int
    losses: dict[str, float]
    lr: float
    images_per_second: float  # 0 before the first measurement
    batch_images: int


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data is done and validated; `val` is empty when there is no validation data."""

    epoch: int  # from 1; 0: the closed form before the first one
    epochs: int
    val: dict[str, float]
    best: bool


Event = Progress | Note | Step | Epoch
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """A report function that ignores every event."""
