"""What a role emits, on its way from the engine's thread to the event loop."""

import asyncio
from collections import abc
from typing import Generic, TypeVar

E = TypeVar("E")


class Outbox(Generic[E]):
    """Collects events on the engine's thread and delivers them on the event loop, one call a flush."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: list[tuple[abc.Callable[[E], None], E]] = []

    def put(self, deliver: abc.Callable[[E], None], event: E) -> None:
        """Has `deliver(event)` called on the event loop."""
        self._events.append((deliver, event))

    def flush(self) -> None:
        """Hands over everything collected since the last flush."""
        if self._events:
            events, self._events = self._events, []
            self._loop.call_soon_threadsafe(_deliver, events)


def _deliver(events: list[tuple[abc.Callable[[E], None], E]]) -> None:
    for deliver, event in events:
        deliver(event)
