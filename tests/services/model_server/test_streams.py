"""A stream ends with its sequence, and with the engine whatever the engine has heard of it."""

import asyncio

import pytest

from paceline.errors import UnavailableError
from services.model_server.streams import EventStream


async def _read(stream: EventStream[int]) -> list[int]:
    return [event async for event in stream]


async def test_a_stream_that_the_engine_never_heard_of_ends_with_the_engine() -> None:
    stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    stream = EventStream[int]()
    with stream.ends_with(stopped):
        reading = asyncio.create_task(_read(stream))
        stream.emit(1)
        stopped.set_result(None)
        with pytest.raises(UnavailableError, match="has ended"):
            await asyncio.wait_for(reading, 10)


async def test_an_engine_that_has_ended_before_ends_a_stream_at_once() -> None:
    stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    stopped.set_result(None)
    stream = EventStream[int]()
    with stream.ends_with(stopped), pytest.raises(UnavailableError):
        await asyncio.wait_for(_read(stream), 10)


async def test_a_stream_that_is_over_hears_nothing_more() -> None:
    stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    stream = EventStream[int]()
    with stream.ends_with(stopped):
        stream.emit(1)
        stream.end()
        assert await _read(stream) == [1]
    stopped.set_result(None)
    await asyncio.sleep(0)
    stream.end()
    assert await _read(stream) == []
