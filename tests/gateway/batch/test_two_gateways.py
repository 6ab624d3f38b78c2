"""Two gateways share a database: they make one batch of one key, and lose nothing of what the other one does."""

import asyncio

import pytest

from gateway.database.database import Database
from paceline import AbortedError, AlreadyExistsError, Client
from paceline.v1 import batch_pb2
from support.batch import Stalls, expected, jsonl, line, read, texts, until_ended
from support.books import check_books
from support.fakes import FakeVerifier, serve_fakes
from support.system import StartGateway


async def test_a_key_that_comes_to_both_at_once_makes_one_batch(start_gateway: StartGateway, database_url: str) -> None:
    names = [f"{number}" for number in range(3000)]
    data = jsonl(*map(line, names))

    async def submit(client: Client) -> str:
        while True:
            try:
                return (await client.create_batch(data, idempotency_key="k")).batch.id
            except AbortedError as error:
                assert error.reason == "UPLOAD_IN_PROGRESS"

    settings = {"database": database_url, "max_batch_streams": 0}
    async with serve_fakes(FakeVerifier()) as address:
        async with start_gateway([address], **settings) as one, start_gateway([address], **settings) as other:
            made = await asyncio.gather(*(submit(system.client) for system in (one, other) for _ in range(3)))
            assert len(set(made)) == 1
            for system in (one, other):
                (batch,) = (await system.client.list_batches()).batches
                assert (batch.id, batch.counts.total) == (made[0], len(names))
                with pytest.raises(AlreadyExistsError, match="another batch"):
                    await system.client.create_batch(jsonl(line("c")), idempotency_key="k")


async def test_what_both_record_is_all_there(start_gateway: StartGateway, database_url: str) -> None:
    names = [f"{number}" for number in range(60)]
    settings = {"database": database_url, "max_batch_streams": 4}
    verifiers = [FakeVerifier(), FakeVerifier()]
    async with serve_fakes(verifiers[0]) as first, serve_fakes(verifiers[1]) as second:
        async with start_gateway([first], **settings) as one, start_gateway([second], **settings) as other:
            made = await one.client.create_batch(jsonl(*map(line, names)))
            again = await other.client.create_batch(jsonl(*map(line, names)))
            for batch_id in (made.batch.id, again.batch.id):
                done = await until_ended(one.client, batch_id)
                assert done.state == batch_pb2.BATCH_STATE_COMPLETED
                lines = await read(other.client, batch_id)
                assert texts(lines) == {name: expected(name) for name in names}
                database = Database(database_url)
                await check_books(database, batch_id, lines, names)
                await database.close()
    assert min(len(verifier.opens) for verifier in verifiers) > 0
    assert sum(len(verifier.opens) for verifier in verifiers) == 2 * len(names)


async def test_an_expired_batch_is_read_by_another_gateway_later(
    start_gateway: StartGateway, database_url: str
) -> None:
    """What was done in time is there, beside an error for what was not."""
    verifier, names = Stalls(), ["a", "b", "c", "d"]
    settings = {"database": database_url, "max_batch_streams": 1, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address:
        async with start_gateway([address], **settings) as system:
            made = await system.client.create_batch(jsonl(*map(line, names)), completion_seconds=4)
            await verifier.opened.wait()
            verifier.go_on.set()
            while (await system.client.get_batch(made.batch.id)).counts.completed < 1:
                await asyncio.sleep(0.005)
                verifier.go_on.clear()
            await until_ended(system.client, made.batch.id)
        async with start_gateway([address], **settings, max_active_requests=1) as system:
            done = await system.client.get_batch(made.batch.id)
            lines = await read(system.client, made.batch.id)
            assert await read(system.client, made.batch.id) == lines
    assert done.state == batch_pb2.BATCH_STATE_EXPIRED
    assert done.counts.completed >= 1
    assert done.counts.completed + done.counts.expired == len(names)
    database = Database(database_url)
    await check_books(database, made.batch.id, lines, names)
    await database.close()
