"""A batch does not pass its budget: what it has no room for fails by name."""

from typing import Any

import pytest

from paceline import AlreadyExistsError
from paceline.v1 import batch_pb2
from support.batch import PRICES, jsonl, line, read, until_ended
from support.fakes import FakeVerifier, serve_fakes
from support.system import StartGateway

_ITEM = (1 * 1000 + 6 * 2000) // 2
"""What an item of one token, and six that are produced, costs."""


@pytest.mark.parametrize("room", [0, 1, 3, 5])
async def test_what_a_budget_has_no_room_for_fails_by_name(
    start_gateway: StartGateway, database_url: str, room: int
) -> None:
    settings: dict[str, Any] = {"database": database_url, "prices": PRICES, "max_batch_streams": 2}
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address], **settings) as system:
        budget = room * _ITEM + _ITEM - 1
        made = await system.client.create_batch(jsonl(*map(line, "abcde")), max_cost_nanos=budget)
        done = await until_ended(system.client, made.batch.id)
        lines = await read(system.client, made.batch.id)
        errors = [each["error"]["code"] for each in lines if each["error"]]
        usage = (await system.client.usage()).total
    assert done.state == (batch_pb2.BATCH_STATE_COMPLETED if room == 5 else batch_pb2.BATCH_STATE_FAILED)
    assert (done.counts.completed, done.counts.failed) == (room, 5 - room)
    assert errors == ["budget_exceeded"] * (5 - room)
    assert done.usage.cost_nanos == usage.cost_nanos == room * _ITEM <= done.max_cost_nanos == budget


async def test_what_was_set_aside_and_not_used_is_there_for_others(start_gateway: StartGateway) -> None:
    """Every item may produce 60 tokens, and the verifier ends each after six."""
    verifier = FakeVerifier(script=[65] * 6)
    settings: dict[str, Any] = {"prices": PRICES, "max_batch_streams": 8}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        lines = [line(name, max_tokens=60) for name in "abcde"]
        most = (1000 + 60 * 2000) // 2 + 4 * _ITEM
        made = await system.client.create_batch(jsonl(*lines), max_cost_nanos=most)
        done = await until_ended(system.client, made.batch.id)
        assert verifier.most_open == 1
        assert (done.state, done.counts.completed) == (batch_pb2.BATCH_STATE_COMPLETED, 5)


async def test_the_same_key_with_another_budget_is_another_batch(start_gateway: StartGateway) -> None:
    async with serve_fakes(FakeVerifier()) as address, start_gateway([address]) as system:
        for _ in range(2):
            await system.client.create_batch(jsonl(line("a")), idempotency_key="k", max_cost_nanos=5)
        with pytest.raises(AlreadyExistsError):
            await system.client.create_batch(jsonl(line("a")), idempotency_key="k")
