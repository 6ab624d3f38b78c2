"""Places for uploads: few at once, fair between tenants.

A namespace holds no more than its bound, whatever is free. Whoever finds no place waits for one: of the namespaces that
wait, the one that holds fewest goes first, and of those alike the one whose turn was longest ago.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from paceline.errors import ResourceExhaustedError

_MAX_WAITING_EACH = 8
_RETRY_AFTER_SECONDS = 2.0


class UploadPlaces:
    """Gives places to namespaces. Keeps nothing of those that neither hold one nor wait."""

    def __init__(self, count: int, count_each: int, wait_seconds: float) -> None:
        """`count` in all, `count_each` of them for one namespace."""
        self._num_free = count
        self._count_each = count_each
        self._wait_seconds = wait_seconds
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, namespace: str) -> AsyncIterator[None]:
        """A place until the block ends. Raises ResourceExhaustedError when none came free in time, or too many wait."""
        await self._enter(namespace)
        try:
            yield
        finally:
            self._leave(namespace)

    async def _enter(self, namespace: str) -> None:
        """Waits for a place. Whoever gives it away counts it for the one who gets it."""
        waiting = self._waiting.setdefault(namespace, deque())
        if len(waiting) >= _MAX_WAITING_EACH:
            raise ResourceExhaustedError(
                f"{len(waiting)} uploads wait already, which is the limit", _RETRY_AFTER_SECONDS
            )
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        self._give()
        try:
            async with asyncio.timeout(self._wait_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave(namespace)  # It came in the moment of giving up.
            else:
                self._forget(namespace, turn)
            if isinstance(error, TimeoutError):
                description = f"no place for an upload came free within {self._wait_seconds:g} s"
                raise ResourceExhaustedError(description, _RETRY_AFTER_SECONDS) from error
            raise

    def _leave(self, namespace: str) -> None:
        self._num_free += 1
        self._held[namespace] -= 1
        if not self._held[namespace]:
            del self._held[namespace]
        self._give()

    def _give(self) -> None:
        """Gives free places to those who wait."""
        while self._num_free:
            held = {name: self._held[name] for name in self._waiting if self._held[name] < self._count_each}
            if not held:
                return
            namespace = min(held, key=held.__getitem__)
            turn = self._waiting[namespace][0]
            self._forget(namespace, turn)
            if namespace in self._waiting:
                self._waiting.move_to_end(namespace)
            if not turn.cancelled():
                self._num_free -= 1
                self._held[namespace] += 1
                turn.set_result(None)

    def _forget(self, namespace: str, turn: "asyncio.Future[None]") -> None:
        waiting = self._waiting.get(namespace, deque())
        if turn in waiting:
            waiting.remove(turn)
        if not waiting:
            self._waiting.pop(namespace, None)
