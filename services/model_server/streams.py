"""The asyncio end of a sequence: opens it on the engine's thread and yields what its role emits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from services.common.errors import PacelineError, ResourceExhaustedError, UnavailableError
from services.engine.engine_loop import EngineLoop, Role

R = TypeVar("R", bound=Role)
_RETRY_AFTER_SECONDS = 1.0


class OpenStreams:
    """Counts open streams and refuses what is over the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    def __enter__(self) -> "OpenStreams":
        if self.count >= self._limit:
            raise ResourceExhaustedError(
                f"{self.count} sequences are open, which is the limit", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        self.count += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class EventStream(Generic[R]):
    """Events of one sequence, from the engine's thread to a stream of the service."""

    def __init__(self, engine_loop: EngineLoop[R]) -> None:
        self._engine_loop = engine_loop
        # Bounded by what a sequence can emit: at most one event a token of its context.
        self._events: asyncio.Queue[object] = asyncio.Queue()

    def emit(self, event: object) -> None:
        """Takes an event; called on the event loop."""
        self._events.put_nowait(event)

    def submit(self, command: Callable[[R], None]) -> None:
        """Has a command run on the engine's thread."""
        self._engine_loop.submit(command)

    async def __aiter__(self) -> AsyncIterator[object]:
        """Yields events; raises what ended the sequence, UnavailableError when the engine has failed."""
        while True:
            event = await self._events.get()
            if isinstance(event, PacelineError):
                raise event
            if isinstance(event, BaseException):
                raise UnavailableError("the engine failed; the process is ending") from event
            yield event
