"""Batches are taken in whole or not at all, once a key, within what their tenant may have waiting."""

import asyncio
from typing import Any

import pytest

from paceline import (
    AbortedError,
    AlreadyExistsError,
    Client,
    InvalidArgumentError,
    QuotaExceededError,
)
from paceline.v1 import batch_pb2
from support.batch import PRICES, Stalls, jsonl, line, until_ended
from support.databases import new_sqlite_url
from support.fakes import FakeVerifier, serve_fakes
from support.keys import make_key
from support.system import StartGateway


async def test_what_is_wrong_is_told_by_line_and_nothing_is_kept(start_gateway: StartGateway) -> None:
    wrong: dict[int, tuple[bytes, str]] = {
        2: (b"{", "line"),
        3: (b"[]", "line"),
        4: (b'{"custom_id": "\xff"}', "line"),
        5: (jsonl(line("stream", stream=True)), "body.stream"),
        6: (jsonl(line("first")), "custom_id"),
        7: (jsonl({**line("get"), "method": "GET"}), "method"),
        8: (jsonl({**line("url"), "url": "/v1/embeddings"}), "url"),
        9: (jsonl(line("model", model="other")), "body.model"),
        10: (jsonl(line("adapter", adapter="none")), "body.adapter"),
        11: (jsonl(line("long", prompt="x" * (6 << 20))), "line"),
        12: (jsonl(line("half \ud800")), "custom_id"),
        13: (jsonl(line("odd", top_p=7)), "body.top_p"),
    }
    data = jsonl(line("first")) + b"".join(part.rstrip(b"\n") + b"\n" for part, _ in wrong.values())
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:
        with pytest.raises(InvalidArgumentError) as caught:
            await system.client.create_batch(data)
        for nothing in (b"", b"\n\n"):
            with pytest.raises(InvalidArgumentError, match="at least one line"):
                await system.client.create_batch(nothing)
        assert list((await system.client.list_batches()).batches) == []
    told = [violation.field for violation in caught.value.violations]
    assert sorted(told) == sorted(f"line {number}: {field}" for number, (_, field) in wrong.items())


async def test_an_idempotency_key_makes_one_batch(start_gateway: StartGateway, database_url: str) -> None:
    data = jsonl(line("a"), line("b"))
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], database=database_url) as system:
        client = system.client

        async def submit(lines: bytes = data) -> str:
            while True:
                try:
                    return (await client.create_batch(lines, idempotency_key="k")).batch.id
                except AbortedError as error:
                    assert error.reason == "UPLOAD_IN_PROGRESS"

        assert len(set(await asyncio.gather(*(submit() for _ in range(4))))) == 1
        assert (await client.create_batch(data, idempotency_key="other")).batch.id != await submit()
        with pytest.raises(AlreadyExistsError, match="another batch"):
            await submit(jsonl(line("c")))
        assert len((await client.list_batches()).batches) == 2


async def test_what_waits_is_bounded_and_what_has_ended_is_not_counted(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    key = await make_key(url, "a", max_batch_items=3, max_batch_tokens=100)
    verifier = Stalls()
    settings = {"database": url, "max_batch_streams": 1, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        async with Client(system.gateway, key=key) as client:
            made = await client.create_batch(jsonl(line("a"), line("b")))
            with pytest.raises(QuotaExceededError, match="3 items") as caught:
                await client.create_batch(jsonl(line("c"), line("d")))
            assert caught.value.subject == "a"
            with pytest.raises(QuotaExceededError, match="100 tokens"):
                await client.create_batch(jsonl(line("c", max_tokens=99)))
            await client.cancel_batch(made.batch.id)
            await until_ended(client, made.batch.id)
            verifier.go_on.set()
            await until_ended(client, (await client.create_batch(jsonl(*map(line, "abc")))).batch.id)


async def test_a_batch_that_failed_or_expired_leaves_its_place_to_others(
    start_gateway: StartGateway, database_url: str
) -> None:
    key = await make_key(database_url, "a", max_batch_items=2, max_batch_tokens=100)
    verifier = Stalls()
    settings = {"database": database_url, "max_batch_streams": 1, "batch_lease_seconds": 1.0, "prices": PRICES}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        async with Client(system.gateway, key=key) as client:
            ways: tuple[dict[str, Any], ...] = ({"max_cost_nanos": 1}, {"completion_seconds": 1.0})
            for way, state in zip(ways, ("FAILED", "EXPIRED"), strict=True):
                made = await client.create_batch(jsonl(line("a"), line("b")), **way)
                done = await until_ended(client, made.batch.id)
                assert done.state == batch_pb2.BatchState.Value(f"BATCH_STATE_{state}")
            with pytest.raises(InvalidArgumentError):
                await client.create_batch(jsonl(line("a"), line("b")) + b"{")
            verifier.go_on.set()
            made = await client.create_batch(jsonl(line("a"), line("b")))
            assert (await until_ended(client, made.batch.id)).counts.completed == 2


async def test_a_tenant_over_its_cost_limit_submits_nothing_more(start_gateway: StartGateway) -> None:
    url = new_sqlite_url()
    key = await make_key(url, "a", max_monthly_cost=1)
    async with serve_fakes(FakeVerifier()) as address:
        async with start_gateway([address], database=url, prices=PRICES) as system:
            async with Client(system.gateway, key=key) as client:
                await until_ended(client, (await client.create_batch(jsonl(line("a"), line("b")))).batch.id)
                with pytest.raises(QuotaExceededError, match="cost limit"):
                    await client.create_batch(jsonl(line("c")))


async def test_a_dry_run_says_what_it_would_take_and_keeps_nothing(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], prices=PRICES) as system:
        made = await system.client.create_batch(jsonl(line("abcd"), line("abcdefgh")), dry_run=True)
        assert not (await system.client.list_batches()).batches
    assert (made.estimate.num_prompt_tokens, made.estimate.num_completion_tokens) == (3, 12)
    assert made.estimate.cost_nanos == (3 * 1000 + 12 * 2000) // 2
