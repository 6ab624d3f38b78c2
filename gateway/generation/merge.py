"""Several asynchronous iterators as one, in order of arrival, with a bounded buffer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from paceline.errors import UnavailableError

T = TypeVar("T")
_MAX_BUFFERED = 64


@asynccontextmanager
async def merge(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[AsyncIterator[T]]:
    """Yields an iterator over all sources. The first error is raised; leaving the block ends all sources."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:  # type: ignore[type-var]
            yield only
        return
    queue: asyncio.Queue[T | None] = asyncio.Queue(_MAX_BUFFERED)
    errors: list[Exception] = []

    async def drain(source: AsyncIterator[T]) -> None:
        try:
            async with aclosing(source) as items:  # type: ignore[type-var]
                async for item in items:
                    await queue.put(item)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            errors.append(UnavailableError(f"a source ended by itself: {error!r}"))
        except Exception as error:
            errors.append(error)
        await queue.put(None)

    async def merged() -> AsyncIterator[T]:
        for _ in sources:
            while (item := await queue.get()) is not None:
                yield item
            if errors:
                raise errors[0]

    tasks = [asyncio.create_task(drain(source)) for source in sources]
    try:
        yield merged()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
