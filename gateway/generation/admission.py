"""How much is served at once, and how many requests may wait. What is over both is refused at once."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from paceline.errors import ResourceExhaustedError

_RETRY_AFTER_SECONDS = 1.0


class _Waiting(NamedTuple):
    """A request in the queue. Larger priority comes first, then order of arrival."""

    order: tuple[int, int]
    num_places: int
    turn: "asyncio.Future[None]"


class Admission:
    """A bounded number of places, one a sequence, and a bounded queue for them.

    A request takes places for all of its choices at once. While the first in the queue waits for enough of them, nobody
    behind it is let past: it would wait for ever.
    """

    def __init__(self, max_active: int, max_queued: int) -> None:
        self._max_active = max_active
        self._max_queued = max_queued
        self._arrivals = itertools.count()
        self._queue: list[_Waiting] = []
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.active = 0
        """Places that are taken."""

    @property
    def is_full(self) -> bool:
        """Whether a request of one sequence that comes now has to wait."""
        return self.active >= self._max_active or bool(self._queue)

    @property
    def will_wait(self) -> bool:
        """Whether a request that comes now has to wait, and may."""
        return self.is_full and self.queued < self._max_queued

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    async def has_room(self) -> None:
        """Returns once a request of one sequence that came now would not have to wait."""
        await self._has_room.wait()

    @asynccontextmanager
    async def place(self, priority: int, num_sequences: int = 1) -> AsyncIterator[None]:
        """Waits for places and holds them: all there are for a request of more sequences.

        Raises ResourceExhaustedError when the queue is full.
        """
        num_places = min(num_sequences, self._max_active)
        if self._queue or self.active + num_places > self._max_active:
            await self._wait(priority, num_places)
        else:
            self.active += num_places
        self._note()
        try:
            yield
        finally:
            self._leave(num_places)

    async def _wait(self, priority: int, num_places: int) -> None:
        if self.queued >= self._max_queued:
            raise ResourceExhaustedError(
                f"{self.active} sequences are active and {self.queued} requests wait, which are the limits",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting((-priority, next(self._arrivals)), num_places, turn)
        heapq.heappush(self._queue, waiting)
        self._note()
        try:
            self._admit()
            await turn
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
                heapq.heapify(self._queue)
                self._admit()
            elif not turn.cancelled():
                self._leave(num_places)
            raise

    def _leave(self, num_places: int) -> None:
        """Frees places and hands them on."""
        self.active -= num_places
        self._admit()

    def _admit(self) -> None:
        """Gives places to those in the queue for whom there are enough, in its order."""
        while self._queue and self.active + self._queue[0].num_places <= self._max_active:
            _, num_places, turn = heapq.heappop(self._queue)
            if not turn.cancelled():
                self.active += num_places
                turn.set_result(None)
        self._note()

    def _note(self) -> None:
        if self.is_full:
            self._has_room.clear()
        else:
            self._has_room.set()
