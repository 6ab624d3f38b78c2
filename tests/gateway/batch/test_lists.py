"""Who sees which batches."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.tenants.api_key import Scope
from paceline import (
    Client,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from paceline.v1 import batch_pb2
from support.batch import jsonl, line, read, until, until_ended
from support.databases import new_sqlite_url
from support.fakes import FakeVerifier, serve_fakes
from support.keys import make_key
from support.system import StartGateway


async def test_anothers_batch_does_not_exist(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    mine, theirs = await make_key(url, "a"), await make_key(url, "b")
    without = await make_key(url, "c", frozenset({Scope.INFERENCE}))
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], database=url) as system:
        async with Client(system.gateway, key=mine) as owner, Client(system.gateway, key=theirs) as other:
            made = await owner.create_batch(jsonl(line("a")))
            await until_ended(owner, made.batch.id)
            calls: list[Callable[[str], Awaitable[Any]]] = [
                other.get_batch, other.cancel_batch, other.pause_batch, other.resume_batch, other.delete_batch,
                lambda batch_id: read(other, batch_id),
            ]  # fmt: skip
            for call in calls:
                messages = set()
                for batch_id in (made.batch.id, "batch_none"):
                    with pytest.raises(NotFoundError) as caught:
                        await call(batch_id)
                    messages.add(str(caught.value).replace(batch_id, "ID"))
                assert len(messages) == 1
            assert list((await other.list_batches()).batches) == []
            assert len(await read(owner, made.batch.id)) == 1
        async with Client(system.gateway, key=without) as client:
            with pytest.raises(PermissionDeniedError, match="'batch'"):
                await client.create_batch(jsonl(line("a")))


async def test_pages_stay_what_they_are_while_batches_are_added(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:
        client = system.client
        made = [(await client.create_batch(jsonl(line("a")))).batch.id for _ in range(5)]
        page = await client.list_batches(2)
        await client.create_batch(jsonl(line("a")))
        seen = [each.id for each in page.batches]
        while page.next_page_token:
            page = await client.list_batches(2, page.next_page_token)
            seen += [each.id for each in page.batches]
        assert seen == made[::-1]
        for batch_id in made:
            await until(client, batch_id, batch_pb2.BATCH_STATE_COMPLETED)
        assert len((await client.list_batches(states=["completed"])).batches) >= 5
        assert not (await client.list_batches(states=["paused"])).batches
        assert not (await client.list_batches(states=["paused"] * 30_000)).batches
        with pytest.raises(InvalidArgumentError):
            await client.list_batches(2, "nonsense")
