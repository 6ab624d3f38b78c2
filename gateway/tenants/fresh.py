"""What was read of the database a moment ago, so that not every request reads it again."""

import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

from paceline.errors import UnavailableError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_log = logging.getLogger(__name__)
_MAX_KEPT = 1 << 14


class Fresh(Generic[K, V]):
    """Answers by what they were asked for, each read again when it is older than `seconds`.

    While the database is away an answer is used for `outage_seconds` more; then UnavailableError is raised.
    """

    def __init__(
        self,
        read: Callable[[K], Awaitable[V]],
        seconds: float,
        outage_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._seconds = seconds
        self._outage_seconds = outage_seconds
        self._clock = clock
        self._kept: LRUCache[K, tuple[float, V]] = LRUCache(_MAX_KEPT)

    async def get(self, key: K) -> V:
        """The answer, at most as old as was said."""
        kept, now = self._kept.get(key), self._clock()
        if kept is not None and now < kept[0] + self._seconds:
            return kept[1]
        try:
            value = await self._read(key)
        except UnavailableError:
            if kept is None or now >= kept[0] + self._seconds + self._outage_seconds:
                raise
            return kept[1]
        self._kept[key] = (now, value)
        return value

    def expire(self, key: K) -> None:
        """Has an answer read anew, if it can be."""
        if key in self._kept:
            self._kept[key] = (self._clock() - self._seconds, self._kept[key][1])

    def keep(self, key: K, value: V) -> None:
        """Takes what was read elsewhere."""
        self._kept[key] = (self._clock(), value)
