"""What has stayed the same for a while, by the watch of whoever looks: no clock is compared with another machine's, and
none that somebody sets.
"""

import time
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Unchanged(Generic[K]):
    """Remembers since when it has seen what it sees. Whoever is alive changes what is his before `seconds` are over."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._since: dict[K, float] = {}

    def look(self, seen: Iterable[K]) -> list[K]:
        """Takes all that is there now; returns what was there for so long, at every look."""
        now = self._clock()
        self._since = {each: self._since.get(each, now) for each in seen}
        return [each for each, since in self._since.items() if now - since > self._seconds]

    def forget(self) -> None:
        """Begins anew: nobody could change anything."""
        self._since = {}
