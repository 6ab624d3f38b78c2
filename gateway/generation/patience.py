"""Ends the request of a client that takes nothing of what it is sent, so that its place goes to one that does.

A transport asks for the next event once it has got rid of the last. Until a client reads again, or goes away, it stands
there, and what is held for the request stands with it: so it is ended from the side.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from paceline.errors import DeadlineExceededError

T = TypeVar("T")


async def while_read(run: AbstractAsyncContextManager[AsyncIterator[T]], seconds: float) -> AsyncGenerator[T, None]:
    """The events of a run, which is left as soon as the last one is had, the generator closed, or nothing taken for so
    long. Then DeadlineExceededError is raised to whoever asks for more.
    """
    events = await run.__aenter__()
    patience = _Patience(run, seconds)
    error: BaseException | None = None
    try:
        async for event in events:
            patience.begin()
            yield event
            patience.end()
    except BaseException as raised:
        error = raised
        raise
    finally:
        await patience.leave(error)


class _Patience:
    """One run, and since when an event of it waits to be taken."""

    def __init__(self, run: AbstractAsyncContextManager[AsyncIterator[T]], seconds: float) -> None:
        self._run = run
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._error: DeadlineExceededError | None = None
        self._ending: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(seconds, self._look)

    def begin(self) -> None:
        """An event is handed out."""
        self._since = self._loop.time()

    def end(self) -> None:
        """It was taken, in time or not."""
        self._since = None
        if self._error is not None:
            raise self._error

    async def leave(self, error: BaseException | None) -> None:
        """Leaves the run with an error or without one, if it was not left."""
        self._timer.cancel()
        if self._ending is not None:
            await asyncio.wait([self._ending])
        else:
            await self._run.__aexit__(None if error is None else type(error), error, None)

    def _look(self) -> None:
        now = self._loop.time()
        since = now if self._since is None else self._since
        left = since + self._seconds - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self._error = DeadlineExceededError(f"the client took nothing for {self._seconds:g} s")
        self._ending = asyncio.create_task(self._end(self._error))

    async def _end(self, error: DeadlineExceededError) -> None:
        await self._run.__aexit__(type(error), error, None)
