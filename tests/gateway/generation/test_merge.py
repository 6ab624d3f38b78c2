"""Several sources as one: all items, the first error, and an end for every source."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.generation.merge import merge
from paceline.errors import UnavailableError


class Source:
    """Yields numbers, then breaks or waits for ever, as told."""

    def __init__(self, *items: int, error: Exception | None = None, endless: bool = False) -> None:
        self.items, self.error, self.endless = items, error, endless
        self.is_closed = False

    async def read(self) -> AsyncIterator[int]:
        try:
            for item in self.items:
                await asyncio.sleep(0)
                yield item
            if self.error is not None:
                raise self.error
            if self.endless:
                await asyncio.Event().wait()
        finally:
            self.is_closed = True


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_all_items_come_in_the_order_of_each_source(count: int) -> None:
    sources = [Source(*range(10 * n, 10 * n + 5)) for n in range(count)]
    async with merge([source.read() for source in sources]) as items:
        found = [item async for item in items]
    assert sorted(found) == [item for source in sources for item in source.items]
    for source in sources:
        assert [item for item in found if item in source.items] == list(source.items)


@pytest.mark.parametrize("count", [1, 3])
async def test_the_first_error_is_raised_and_ends_all(count: int) -> None:
    sources = [Source(1, error=ValueError("broken")), *(Source(2, endless=True) for _ in range(count - 1))]
    with pytest.raises(ValueError, match="broken"):
        async with merge([source.read() for source in sources]) as items:
            async for _ in items:
                pass
    assert all(source.is_closed for source in sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_leaving_the_block_ends_all_before_it_is_left(count: int) -> None:
    sources = [Source(*range(200), endless=True) for _ in range(count)]
    async with merge([source.read() for source in sources]) as items:
        await anext(aiter(items))
    assert all(source.is_closed for source in sources)


async def test_a_source_that_is_cancelled_by_itself_ends_all_instead_of_leaving_them_waiting() -> None:
    async def cancelled() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    other = Source(endless=True)
    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError):
            async with merge([cancelled(), other.read()]) as items:
                async for _ in items:
                    pass
    assert other.is_closed
