"""What was read of the database a moment ago, so that not every request reads it again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from cachetools import LRUCache

from paceline.errors import UnavailableError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_MAX_KEPT = 1 << 14
_PATIENCE_SECONDS = 1.0
"""How long a database may take to answer where what it said before will do."""


class _Kept(NamedTuple, Generic[V]):
    value: V
    read_at: float
    asked_at: float
    """When it was last tried to read it again."""


class Fresh(Generic[K, V]):
    """Answers by what they were asked for, each read again when it is older than `seconds`.

    While the database is away, or does not answer, what is known is used for `outage_seconds` more; then
    UnavailableError is raised.
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
        self._kept: LRUCache[K, _Kept[V]] = LRUCache(_MAX_KEPT)

    async def get(self, key: K) -> V:
        """The answer, at most as old as was said."""
        kept, now = self._kept.get(key), self._clock()
        may_use = kept is not None and now < kept.read_at + self._seconds + self._outage_seconds
        if kept is not None and may_use and now < kept.asked_at + self._seconds:
            return kept.value
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS if may_use else None):
                value = await self._read(key)
        except (UnavailableError, TimeoutError):
            if kept is None or not may_use:
                raise
            latest = self._kept.get(key, kept)  # Others may have heard of a change meanwhile.
            if latest is kept:
                self._kept[key] = kept._replace(asked_at=self._clock())
            return latest.value
        self._kept[key] = _Kept(value, now, now)
        return value

    def expire(self, key: K) -> None:
        """Has an answer read anew, if it can be."""
        if key in self._kept:
            long_ago = self._clock() - self._seconds
            self._kept[key] = self._kept[key]._replace(read_at=long_ago, asked_at=long_ago)

    def keep(self, key: K, value: V) -> None:
        """Takes what was read elsewhere."""
        now = self._clock()
        self._kept[key] = _Kept(value, now, now)
