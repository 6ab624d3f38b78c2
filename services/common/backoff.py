"""How long something that failed is left alone: ever longer while it fails, and by chance, so that not all come back at
once (exponential backoff with full jitter, https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter).
"""

import random
import time
from collections.abc import Callable


class Backoff:
    """The pauses of one thing. Times are seconds of time.monotonic."""

    def __init__(self, first: float, most: float, jitter: Callable[[float], float] | None = None) -> None:
        """The longest pause is `first` and doubles up to `most`; `jitter` takes a pause out of the longest one."""
        self._first = first
        self._most = most
        self._jitter = jitter or (lambda longest: random.uniform(0, longest))
        self._longest = first
        self.until = 0.0
        """When the pause is over."""

    @property
    def is_off(self) -> bool:
        """Whether it is to be left alone now."""
        return time.monotonic() < self.until

    def worked(self) -> None:
        """Says that it did what it was asked for: there is no pause, and the next one is short again."""
        self._longest, self.until = self._first, 0.0

    def failed(self) -> float:
        """Says that it failed, and returns how long the pause is that begins."""
        pause = self._jitter(self._longest)
        self.until = time.monotonic() + pause
        self._longest = min(self._most, 2 * self._longest)
        return pause
