"""Servers in tasks of their own, so that a test can tell one to stop and look on while it does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Lasting:
    """A server that lasts until it is told to stop."""

    address: str = ""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def running(cls, server: AbstractAsyncContextManager[str]) -> "AsyncIterator[Lasting]":
        """One that has begun; at the end of the block it stops, if it was not told to before."""
        lasting, began = cls(), asyncio.Event()

        async def run() -> None:
            try:
                async with server as lasting.address:
                    began.set()
                    await lasting.stopping.wait()
            finally:
                began.set()
                lasting.stopped.set()

        task = asyncio.create_task(run())
        await began.wait()
        try:
            yield lasting
        finally:
            lasting.stopping.set()
            await task


StartLasting = Callable[..., AbstractAsyncContextManager[Lasting]]
"""Starts one."""
