"""Work on texts that takes long, beside the event loop: in threads, few at once."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_MAX_AT_ONCE = 2
"""A text of some megabytes takes a hundred times its size for seconds."""
_NICENESS = 10


class Background:
    """Where the event loop has done what would hold it up. Results and errors come back to whoever asked."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MAX_AT_ONCE, "long-texts", _give_way)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns, once it was its turn. What has begun goes on although nobody may wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))


def _give_way() -> None:
    """Has the event loop's thread go before this one, where the system knows threads by number."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
