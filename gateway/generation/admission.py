"""How many requests are served at once, and how many may wait. What is over both is refused at once."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from paceline.errors import ResourceExhaustedError

_RETRY_AFTER_SECONDS = 1.0


class Admission:
    """A bounded number of places and a bounded queue for them: larger priority first, then order of arrival."""

    def __init__(self, max_active: int, max_queued: int) -> None:
        self._max_active = max_active
        self._max_queued = max_queued
        self._arrivals = itertools.count()
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self.active = 0

    @property
    def is_full(self) -> bool:
        """Whether a request that comes now has to wait."""
        return self.active >= self._max_active

    @property
    def will_wait(self) -> bool:
        """Whether a request that comes now has to wait, and may."""
        return self.is_full and self.queued < self._max_queued

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @asynccontextmanager
    async def place(self, priority: int) -> AsyncIterator[None]:
        """Waits for a place and holds it. Raises ResourceExhaustedError when the queue is full."""
        if self.is_full:
            await self._wait(priority)
        else:
            self.active += 1
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, priority: int) -> None:
        if self.queued >= self._max_queued:
            raise ResourceExhaustedError(
                f"{self.active} requests are active and {self.queued} wait, which are the limits",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (-priority, next(self._arrivals), turn)
        heapq.heappush(self._queue, waiting)
        try:
            await turn
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
                heapq.heapify(self._queue)
            else:
                self._leave()
            raise

    def _leave(self) -> None:
        """Hands the place to the next in the queue, or frees it."""
        if self._queue:
            *_, turn = heapq.heappop(self._queue)
            turn.set_result(None)
        else:
            self.active -= 1
