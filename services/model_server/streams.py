"""The asyncio end of a sequence: what its role emits, in order, until the sequence or the engine ends."""

import asyncio
import logging
from collections import abc
from contextlib import contextmanager
from typing import Generic, TypeVar

from paceline.errors import AbortedError, PacelineError, ResourceExhaustedError, UnavailableError

E = TypeVar("E")
_RETRY_AFTER_SECONDS = 1.0
_log = logging.getLogger(__name__)
SEQUENCE_FAILED = "SEQUENCE_FAILED"


class OpenStreams:
    """Counts open streams and refuses what is over the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0
        self.num_opened = self.num_failed = 0
        """Those that were ever opened, and those of them that ended with an error."""
        self.num_begun = 0
        """Those whose sequences are in the engine; the others wait for an adapter or for blocks of the prefix cache."""

    def __enter__(self) -> "OpenStreams":
        if self.count >= self._limit:
            raise ResourceExhaustedError(
                f"{self.count} sequences are open, which is the limit", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        self.count += 1
        self.num_opened += 1
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self.count -= 1
        self.num_failed += isinstance(error, Exception)

    @contextmanager
    def begun(self) -> abc.Iterator[None]:
        """Counts an open stream as begun while the block lasts."""
        self.num_begun += 1
        try:
            yield
        finally:
            self.num_begun -= 1


class EventStream(Generic[E]):
    """Events of one sequence, from the engine's thread to a stream of the service. It belongs to the event loop."""

    def __init__(self) -> None:
        # Bounded by what a sequence can emit: at most one event a token of its context.
        self._events: asyncio.Queue[E | BaseException | None] = asyncio.Queue()

    def emit(self, event: E | BaseException) -> None:
        """Takes an event, or the error that ended the sequence."""
        self._events.put_nowait(event)

    def fail(self, error: Exception) -> None:
        """Ends the stream with what went wrong with its sequence."""
        if not isinstance(error, PacelineError):
            _log.error("a sequence failed", exc_info=error)
            error = AbortedError("this text cannot be computed; the server's log says more", SEQUENCE_FAILED)
        self.emit(error)

    @contextmanager
    def ends_with(self, stopped: "asyncio.Future[None]") -> abc.Iterator[None]:
        """Ends the stream when the engine has ended, whether or not its role has heard of the sequence by then."""

        def tell(_: object) -> None:
            self.emit(UnavailableError("the engine has ended"))

        stopped.add_done_callback(tell)
        try:
            yield
        finally:
            stopped.remove_done_callback(tell)

    def end(self) -> None:
        """Ends the stream behind the events that there are."""
        self._events.put_nowait(None)

    async def __aiter__(self) -> abc.AsyncIterator[E]:
        """Yields events; raises what ended the sequence, UnavailableError when the engine has failed."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, PacelineError):
                raise event
            if isinstance(event, BaseException):
                raise UnavailableError("the engine failed; the process is ending") from event
            yield event
