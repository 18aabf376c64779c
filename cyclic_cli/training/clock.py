"""Measures how long an attempt takes, and how many images per second its training loop processes."""

import time


class Clock:
    """The seconds of an attempt, and those of its training loop alone.

    The rate leaves out the first step, which warms up the hardware, and the validation.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds = 0.0
        self._images = 0
        self._first_rate: float | None = None  # images/s of the first step, for runs of one step
        self._since: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the attempt began."""
        return time.monotonic() - self._began

    def start(self) -> None:
        """Start, or restart, counting the seconds of the training loop."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Pause counting."""
        self._seconds += self._running()
        self._since = None

    def count(self, images: int) -> None:
        """Count the images of a step that has just ended."""
        if self._first_rate is None:
            self._first_rate = images / self._running()
            self.start()
        else:
            self._images += images

    def rate(self) -> float:
        """Images/s; 0 before the first step."""
        if not self._images:
            return self._first_rate or 0.0
        return self._images / (self._seconds + self._running())

    def _running(self) -> float:
        return time.monotonic() - self._since if self._since is not None else 0.0
