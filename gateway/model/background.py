"""Work on texts that takes long, beside the event loop: in threads, few at once, and the memory is given back."""

import asyncio
import contextlib
import ctypes
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_MAX_AT_ONCE = 2
"""A text of some megabytes takes a hundred times its size for seconds."""


class Background:
    """Where the event loop has done what would hold it up. Results and errors come back to whoever asked."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_MAX_AT_ONCE)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns. It waits for its turn, and goes on to its end although nobody may wait for it."""
        await self._places.acquire()
        running = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
        running.add_done_callback(self._done)
        return await asyncio.shield(running)

    def _done(self, task: "asyncio.Task[T]") -> None:
        self._places.release()
        if not task.cancelled():
            task.exception()  # Seen: whoever awaits it gets it, and nobody may.


def give_back_memory() -> None:
    """Returns what was freed to the system. The C library keeps it else: some hundred megabytes after a large text."""
    with contextlib.suppress(AttributeError, OSError):  # There is no such function outside of glibc.
        ctypes.CDLL(None).malloc_trim(0)
