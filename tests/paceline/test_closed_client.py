"""A client that is closed while others use it: they hear it in a sentence, and are not taken for cancelled."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from paceline import Client, ClosedError
from paceline.upload import CONFIG_NAME, WEIGHTS_NAME
from support.gateway import FakeGateway, serve_gateway


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with serve_gateway(FakeGateway()) as address:
        yield address


async def read(client: Client, began: asyncio.Event) -> None:
    async for _ in client.generate("x"):
        began.set()


@pytest.fixture(params=[1, 2], ids=["one address", "two addresses"])
async def client(request: pytest.FixtureRequest, address: str) -> AsyncIterator[Client]:
    async with Client([address] * request.param) as client:
        yield client


async def test_whoever_reads_a_stream_hears_that_it_was_closed(client: Client) -> None:
    began = asyncio.Event()
    reading = asyncio.create_task(read(client, began))
    await began.wait()
    await client.close()
    with pytest.raises(ClosedError, match="the client was closed before this was over"):
        await reading


async def test_a_stream_that_is_read_by_who_closes_ends_so_too(client: Client) -> None:
    with pytest.raises(ClosedError):
        async for _ in client.generate("x"):
            await client.close()


async def test_whoever_waits_for_an_answer_hears_it(client: Client) -> None:
    waiting = asyncio.create_task(client.tokenize("hang"))
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(ClosedError):
        await waiting


async def test_whoever_uploads_hears_it(client: Client, tmp_path: Path) -> None:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (tmp_path / name).write_bytes(b"{}")
    uploading = asyncio.create_task(client.upload_adapter(tmp_path, "hang"))
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(ClosedError):
        await uploading


async def test_whoever_is_cancelled_is_cancelled(client: Client) -> None:
    began = asyncio.Event()
    reading = asyncio.create_task(read(client, began))
    waiting = asyncio.create_task(client.tokenize("hang"))
    await began.wait()
    for task in (reading, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.tokenize("hang")
