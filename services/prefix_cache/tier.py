"""A store that may be slow: it is waited for as long as there is time, and left alone for a while when it takes longer.

Nobody's answer is worse than without the tier, and no failure of one tier is one of the others.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from services.prefix_cache.block import Block
from services.prefix_cache.store import Store
from services.prefix_cache.turns import Turns

_log = logging.getLogger(__name__)
_MAX_SECONDS = 1.0
_SHARE = 0.5
"""Of the time that a caller has left. The other tiers and the way back need some too."""
_SLOW_SECONDS = 0.1
"""A store that was given so long and did not answer is slow. Less says something about the caller alone."""
_FIRST_PAUSE = 1.0
_MAX_PAUSE = 30.0
TimeLeft = Callable[[], float | None]
"""Seconds until a caller gives up; None for never."""
T = TypeVar("T")


class Tier:
    """Asks one store."""

    def __init__(self, store: Store, turns: Turns) -> None:
        self.store = store
        self._turns = turns
        self._asked: set[asyncio.Task[Any]] = set()
        self._pause = _FIRST_PAUSE
        self._until = 0.0

    @property
    def is_off(self) -> bool:
        """Whether it is left alone now."""
        return time.monotonic() < self._until

    async def which(self, namespace: str, keys: Sequence[bytes], time_left: TimeLeft) -> set[bytes]:
        """Those of the keys whose blocks it says in time that it has."""
        return await self._ask(self.store.which(namespace, keys), time_left, set())

    async def find(self, namespace: str, keys: Sequence[bytes], time_left: TimeLeft) -> list[Block | None]:
        """The blocks that it gives in time. Noting that they were used is a write, which clearing waits for."""

        async def find() -> list[Block | None]:
            with self._turns.writing(namespace):
                return await self.store.find(namespace, keys)

        return await self._ask(find(), time_left, [None] * len(keys))

    async def _ask(self, asking: Coroutine[Any, Any, T], time_left: TimeLeft, otherwise: T) -> T:
        """What a store answers in time. What takes longer goes on, so that a connection that is slow to open opens."""
        if self.is_off:
            asking.close()
            return otherwise
        left = time_left()
        seconds = _MAX_SECONDS if left is None else min(_MAX_SECONDS, _SHARE * left)
        task = asyncio.create_task(asking)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            self._pause = _FIRST_PAUSE
            return task.result()
        if seconds >= _SLOW_SECONDS:
            _log.warning("the %s tier is slow; left alone for %.0f s", self.store.name, self._pause)
            self._until = time.monotonic() + self._pause
            self._pause = min(_MAX_PAUSE, 2 * self._pause)
        return otherwise
