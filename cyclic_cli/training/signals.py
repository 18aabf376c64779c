"""Handles the signals that stop a run.

The first signal only sets a flag; all processes agree on the step at which they stop. A second signal ends the process
at once.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives the first stopping signal. A second one ends the process, with exit code 128 + its number.

    A thread counts the signals, because Python runs no handler while the main thread waits for other processes.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)

    def count(pipe: int) -> None:
        numbers = iter(lambda: os.read(pipe, 1), b"")
        for earlier, (number,) in enumerate(byte for byte in numbers if byte[0] in SIGNALS):
            if earlier:
                os._exit(128 + number)
        os.close(pipe)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=count, args=(reading,), daemon=True).start()
    pipe_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(pipe_before)
        os.close(writing)


def stop_or_save(ranks: Ranks, received: list[int], save: bool) -> tuple[signal.Signals | None, bool]:
    """The stopping signal that any process received, and whether a save is due in the first process.

    All processes call it together, and get the same answer.
    """
    flags = torch.tensor([*(number in received for number in SIGNALS), save and ranks.is_main], dtype=torch.float32)
    *signals, save = ranks.summed(flags.to(ranks.fabric.device)).bool().tolist()
    return next((number for number, sent in zip(SIGNALS, signals, strict=True) if sent), None), save


def stopped(number: signal.Signals, step: int, steps: int) -> Stopped:
    """The error that ends a run after its state is saved, or before its first step (`step` 0)."""
    said = (
        (f"at step {step} of {steps}, state saved", "The same command with --resume auto continues.")
        if step
        else (
            "before the first step",
            "Repeat the command. Encoded samples that are in the cache are not encoded again.",
        )
    )
    error = Stopped(f"Stopped by {number.name} {said[0]}.", said[1], 130 if number == signal.SIGINT else 143)
    error.everywhere = True
    return error
