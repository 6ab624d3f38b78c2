"""What a role emits, on its way from the engine's thread to the event loop.

Telling the event loop costs the engine's thread more than it seems: the loop's thread wakes at once, takes Python's
lock and works on what has come, while the engine waits for the lock before it can begin its next step. So what nobody
waits for is held until that step computes: its kernel holds no lock, and rings a bell that the event loop listens to. A
forward that is Python itself rings before it computes, which is no better than being told, and no worse.
"""

import asyncio
import os
from collections import abc, deque
from contextlib import suppress
from typing import Generic, TypeVar

E = TypeVar("E")
NO_BELL = -1
"""No file descriptor is negative."""
_RINGS = 4096
"""So many bytes of rings are read at once."""


class Outbox(Generic[E]):
    """Collects events on the engine's thread and delivers them, in order, on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[tuple[abc.Callable[[E], None], E]] = deque()
        self._untold = False
        """Whether there are events that the event loop has not been told of. It is the engine's thread's."""
        self._ear, self._bell = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._bell, False)  # Where there are rings that nobody has read, one more says nothing new.
        loop.add_reader(self._ear, self._hear)

    @property
    def bell(self) -> int:
        """The file descriptor to write to when held events may be delivered; NO_BELL when there are none."""
        return self._bell if self._untold else NO_BELL

    def told(self) -> None:
        """Takes note that the bell was rung."""
        self._untold = False

    def put(self, deliver: abc.Callable[[E], None], event: E) -> None:
        """Has `deliver(event)` called on the event loop, once the bell was rung or the outbox flushed."""
        self._events.append((deliver, event))
        self._untold = True

    def flush(self) -> None:
        """Has everything delivered that is held."""
        if self._untold:
            self._untold = False
            self._loop.call_soon_threadsafe(self._deliver)

    def close(self) -> None:
        """Ends listening, behind what is held. It belongs to the event loop; the engine's thread has ended."""
        if self._bell != NO_BELL:
            self._loop.remove_reader(self._ear)
            os.close(self._ear)
            os.close(self._bell)
            self._bell = NO_BELL
        self._deliver()

    def _hear(self) -> None:
        os.read(self._ear, _RINGS)
        self._deliver()

    def _deliver(self) -> None:
        try:
            while self._events:
                deliver, event = self._events.popleft()
                deliver(event)
        finally:
            if self._events:  # An error in a delivery is the loop's to tell, and no other's.
                self._loop.call_soon(self._deliver)


def ring(bell: int) -> None:
    """Rings a bell, if it is one."""
    if bell != NO_BELL:
        with suppress(BlockingIOError):
            os.write(bell, bytes(1))
