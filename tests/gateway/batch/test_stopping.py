"""Batches are cancelled, expire and pause: what was produced is kept and billed."""

import asyncio

import pytest

from paceline import (
    FailedPreconditionError,
    NotFoundError,
)
from paceline.v1 import batch_pb2
from support.batch import Stalls, jsonl, line, read, text_of, until_ended
from support.fakes import serve_fakes
from support.system import StartGateway


async def test_a_cancelled_batch_keeps_and_bills_what_was_produced(
    start_gateway: StartGateway, database_url: str
) -> None:
    verifier = Stalls()
    settings = {"database": database_url, "max_batch_streams": 2, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        client = system.client
        made = await client.create_batch(jsonl(*[line(f"{number}") for number in range(5)]))
        while verifier.num_open < 2:
            await asyncio.sleep(0.01)
        first = await client.cancel_batch(made.batch.id)
        assert first.state == batch_pb2.BATCH_STATE_CANCELLING
        await client.cancel_batch(made.batch.id)
        done = await until_ended(client, made.batch.id)
        lines = await read(client, made.batch.id)
        (used,) = (await client.usage(groups=["kind"])).rows
        await verifier.all_closed.wait()
        assert (await client.cancel_batch(made.batch.id)).state == batch_pb2.BATCH_STATE_CANCELLED
    assert (done.state, done.counts.cancelled) == (batch_pb2.BATCH_STATE_CANCELLED, 5)
    assert [each["error"]["code"] for each in lines] == ["batch_cancelled"] * 5
    partial = [each["partial"]["usage"]["completion_tokens"] for each in lines if "partial" in each]
    assert sum(partial) == used.num_completion_tokens == done.usage.num_completion_tokens
    assert used.num_requests == 2


async def test_an_expired_batch_can_be_read(start_gateway: StartGateway) -> None:
    verifier = Stalls()
    settings = {"max_batch_streams": 1, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        made = await system.client.create_batch(jsonl(line("a"), line("b")), completion_seconds=1)
        done = await until_ended(system.client, made.batch.id)
        lines = await read(system.client, made.batch.id)
    assert (done.state, done.counts.expired) == (batch_pb2.BATCH_STATE_EXPIRED, 2)
    assert [each["error"]["code"] for each in lines] == ["batch_expired"] * 2


async def test_a_paused_batch_begins_nothing_until_it_is_resumed(start_gateway: StartGateway) -> None:
    verifier = Stalls()
    async with serve_fakes(verifier) as address, start_gateway([address], max_batch_streams=1) as system:
        client = system.client
        made = await client.create_batch(jsonl(*[line(f"{number}") for number in range(4)]))
        await verifier.opened.wait()
        assert (await client.pause_batch(made.batch.id)).state == batch_pb2.BATCH_STATE_PAUSED
        verifier.go_on.set()
        while (found := await client.get_batch(made.batch.id)).counts.completed < 1:
            await asyncio.sleep(0.01)
        assert found.state == batch_pb2.BATCH_STATE_PAUSED
        assert [each["custom_id"] for each in await read(client, made.batch.id, finished_order=True)] == [
            text_of(verifier.opens[0].token_ids)
        ]
        with pytest.raises(FailedPreconditionError, match="cancel it first"):
            await client.delete_batch(made.batch.id)
        await client.resume_batch(made.batch.id)
        await until_ended(client, made.batch.id)
        assert len(verifier.opens) == 4
        for change in (client.pause_batch, client.resume_batch):
            with pytest.raises(FailedPreconditionError, match="has ended"):
                await change(made.batch.id)
        await client.delete_batch(made.batch.id)
        with pytest.raises(NotFoundError):
            await client.get_batch(made.batch.id)
