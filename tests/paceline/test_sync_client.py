"""The blocking client can do what the other can, from any thread, and ends what nobody reads."""

import asyncio
import inspect
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest

from paceline import Client, InvalidArgumentError, NotFoundError, SyncClient
from paceline.sync_client import _close, _next
from support.gateway import FakeGateway, serve_gateway


@pytest.fixture
async def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
async def address(gateway: FakeGateway) -> AsyncIterator[str]:
    async with serve_gateway(gateway) as address:
        yield address


async def blocking(address: str, use: Callable[[SyncClient], Any]) -> Any:
    """What a function in a thread makes of a client."""

    def run() -> Any:
        with SyncClient(address) as client:
            return use(client)

    return await asyncio.to_thread(run)


def test_every_method_of_the_client_is_there_with_its_parameters() -> None:
    names = [name for name in vars(Client) if not name.startswith("_")]
    assert len(names) > 10
    for name in names:
        ours, theirs = inspect.signature(getattr(SyncClient, name)), inspect.signature(getattr(Client, name))
        assert ours.parameters == theirs.parameters, name
        assert not inspect.iscoroutinefunction(getattr(SyncClient, name)), name
        assert not inspect.isasyncgenfunction(getattr(SyncClient, name)), name


async def test_calls_and_streams_answer(address: str) -> None:
    def use(client: SyncClient) -> tuple[object, ...]:
        texts = [event.delta.text for event in client.chat([{"role": "user", "content": "hi"}, ("user", "bye")])]
        numbers = [token_id for event in client.generate("x", max_tokens=5) for token_id in event.delta.token_ids]
        (adapter,) = client.list_adapters()
        return texts, numbers, client.detokenize(client.tokenize("abc")), adapter.name

    assert await blocking(address, use) == (["[hi]", "[bye]", ""], [0, 1, 2, 3, 4], "abc", "mine")


async def test_errors_are_raised_as_they_were(address: str) -> None:
    def use(client: SyncClient) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            client.detokenize([256])
        assert caught.value.violations[0].field == "token_ids"
        with pytest.raises(NotFoundError) as missing:
            list(client.generate("x", model="nope"))
        assert missing.value.resource_name == "nope"

    await blocking(address, use)
    async with Client(address) as client:
        with pytest.raises(NotFoundError):
            await anext(client.generate("x", model="nope"))


async def test_a_misspelt_option_fails_at_the_call(address: str, gateway: FakeGateway) -> None:
    def use(client: SyncClient) -> None:
        for call in (client.generate, client.chat):
            with pytest.raises(TypeError, match="did you mean 'temperature'"):
                call([], temprature=1)  # type: ignore[operator]

    await blocking(address, use)
    async with Client(address) as client:
        for call in (client.generate, client.chat):
            with pytest.raises(TypeError, match="did you mean 'temperature'"):
                call([], temprature=1)  # type: ignore[operator]
    assert not gateway.requests


@pytest.mark.parametrize("end", ["break", "close", "client"])
async def test_a_stream_that_nobody_reads_any_more_is_ended(address: str, gateway: FakeGateway, end: str) -> None:
    def use(client: SyncClient) -> None:
        stream = client.generate("x")
        for event in stream:
            if event.delta.token_ids[0] == 3:
                break
        if end == "close":
            stream.close()
        elif end == "client":
            client.close()
            with pytest.raises(RuntimeError, match="closed"):
                next(stream)

    await blocking(address, use)
    await gateway.idle.wait()


async def test_a_call_that_waits_ends_with_its_client(address: str) -> None:
    client = await asyncio.to_thread(SyncClient, address)
    waiting = asyncio.create_task(asyncio.to_thread(client.tokenize, "hang"))
    await asyncio.to_thread(client.list_models)
    await asyncio.to_thread(client.close)
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.tokenize("a")


async def test_several_threads_use_one_client(address: str) -> None:
    def use(client: SyncClient) -> list[list[int]]:
        found: list[list[int]] = []

        def read() -> None:
            found.append([event.delta.token_ids[0] for event in client.generate("x", max_tokens=50)])

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert await blocking(address, use) == [list(range(50))] * 8


async def test_closing_while_others_read_leaves_no_thread_waiting(address: str) -> None:
    for _ in range(20):
        client = await asyncio.to_thread(SyncClient, address)

        def read(client: SyncClient = client) -> None:
            with pytest.raises(RuntimeError, match="closed"):
                for _ in client.generate("x"):
                    pass

        reading = [asyncio.create_task(asyncio.to_thread(read)) for _ in range(4)]
        await asyncio.to_thread(client.list_models)
        closing = [asyncio.create_task(asyncio.to_thread(client.close)) for _ in range(2)]
        async with asyncio.timeout(20):
            await asyncio.gather(*reading, *closing)


async def test_a_stream_that_is_collected_on_the_clients_own_thread_ends(address: str, gateway: FakeGateway) -> None:
    def use(client: SyncClient) -> list[int]:
        stream = client.generate("x")
        next(stream)

        async def collect(dropped: list[Any]) -> None:
            dropped.clear()

        dropped = [stream]
        del stream
        asyncio.run_coroutine_threadsafe(collect(dropped), client._loop).result(10)
        return client.tokenize("abc")

    assert await asyncio.wait_for(blocking(address, use), 20)
    await gateway.idle.wait()


def test_a_stream_that_is_interrupted_while_it_is_read_is_closed_once_its_reading_has_ended() -> None:
    waits, ended = threading.Event(), threading.Event()

    async def events() -> AsyncGenerator[int, None]:
        try:
            yield 1
            waits.set()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)  # As a call takes a moment to be cancelled.
            ended.set()

    def press() -> None:
        waits.wait(20)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with SyncClient("127.0.0.1:1") as client:
            stream = client._iterate(events())
            assert next(stream) == 1
            pressing = threading.Thread(target=press)
            pressing.start()
            with pytest.raises(KeyboardInterrupt):
                next(stream)
            assert ended.is_set()
            pressing.join()
    finally:
        signal.signal(signal.SIGINT, before)


async def test_a_reading_that_nobody_has_cancelled_ends_before_its_stream_is_closed() -> None:
    waits, ended = asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[int, None]:
        try:
            waits.set()
            await asyncio.sleep(60)
            yield 1
        finally:
            ended.set()

    stream, readings = events(), set[asyncio.Task[Any]]()
    reading = asyncio.create_task(_next(stream, readings))
    await waits.wait()
    await _close(stream, readings)
    assert reading.cancelled()
    assert ended.is_set()
    assert not readings
