"""A disk that is full is told in words, and costs nothing that was accepted; with room again all goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from gateway.database.database import Database
from gateway.database.tables import batch_items
from paceline import AbortedError, Client, UnavailableError
from support.batch import expected, jsonl, line, read, texts, until_ended, upload
from support.books import check_books
from support.full_disk import full_disk
from support.processes import Process
from support.system import collect

_LEASE_SECONDS = 1.0
FULL = "the database (has no room for more|cannot be used) for now"


@asynccontextmanager
async def serving(url: str, tokenizer: Path, **settings: Any) -> AsyncIterator[Process]:
    """A gateway in a process of its own, in front of a verifier that takes its time."""
    verifier = Process(("support.fake_process", "verifier"))
    models = [{"id": "fake", "tokenizer": str(tokenizer), "verifiers": [verifier.address]}]
    common = {"models": models, "telemetry": {"log_level": "WARNING"}, "batch_lease_seconds": _LEASE_SECONDS}
    gateway = Process(("paceline", "serve", "gateway", "--settings", "-"), {**common, "database": url, **settings})
    try:
        await verifier.start()
        await gateway.start()
        async with Client(gateway.address) as client:
            while True:
                try:
                    if (await client.list_models())[0].available:
                        break
                except UnavailableError:
                    await asyncio.sleep(0.05)
        yield gateway
    finally:
        await gateway.kill()
        await verifier.kill()


async def test_an_upload_that_finds_the_disk_full_can_be_made_again(database_url: str, tokenizer_folder: Path) -> None:
    """Also with its idempotency key: what is left of the first one does not hold on to it."""
    names = [f"{number}" for number in range(2500)]
    first, rest = jsonl(*map(line, names)), jsonl(line("last"))
    database = Database(database_url)
    some = select(batch_items.c.place).limit(1)

    async def pieces() -> AsyncIterator[bytes]:
        yield first
        while not await _has_rows(database, some):
            await asyncio.sleep(0.01)
        await stack.enter_async_context(full_disk(database_url, gateway.pid))
        yield rest

    async with serving(database_url, tokenizer_folder, max_batch_streams=0) as gateway:
        async with Client(gateway.address) as client:
            async with AsyncExitStack() as stack:
                with pytest.raises(UnavailableError, match=FULL):
                    await upload(gateway.address, pieces(), idempotency_key="k")
                with pytest.raises(UnavailableError, match=FULL):
                    await client.create_batch(jsonl(line("small")))
                assert not list((await client.list_batches(states=["queued"])).batches)
            while True:
                try:
                    made = await client.create_batch(first + rest, idempotency_key="k")
                    break
                except (AbortedError, UnavailableError):
                    await asyncio.sleep(0.1)
            while [batch.id for batch in (await client.list_batches()).batches] != [made.batch.id]:
                await asyncio.sleep(0.1)
    assert made.batch.counts.total == 2501
    await database.close()


async def test_results_wait_for_room_and_are_recorded_once(database_url: str, tokenizer_folder: Path) -> None:
    names = [f"{number}" for number in range(30)]
    database = Database(database_url)
    async with serving(database_url, tokenizer_folder, max_batch_streams=4) as gateway:
        async with Client(gateway.address) as client:
            made = await client.create_batch(jsonl(*map(line, names)))
            while (await client.get_batch(made.batch.id)).counts.completed < 4:
                await asyncio.sleep(0.01)
            async with full_disk(database_url, gateway.pid):
                there = (await client.get_batch(made.batch.id)).counts.completed
                reply = await collect(client.generate("beside", max_tokens=6))
                await asyncio.sleep(3 * _LEASE_SECONDS)
                assert (await client.get_batch(made.batch.id)).counts.completed <= there + 4
                assert await _num_executions(database) <= there + 3 * 4
            await until_ended(client, made.batch.id)
            lines = await read(client, made.batch.id)
            while len(used := {row.kind: row for row in (await client.usage(groups=["kind"])).rows}) < 2:
                await asyncio.sleep(0.05)
    assert reply.text == expected("beside")
    assert used["interactive"].num_requests == 1
    assert texts(lines) == {name: expected(name) for name in names}
    await check_books(database, made.batch.id, lines, names)
    await database.close()


async def _num_executions(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.sum(batch_items.c.num_attempts)))).scalar_one())


async def _has_rows(database: Database, query: Any) -> bool:
    async with database.read() as connection:
        return (await connection.execute(query)).first() is not None
