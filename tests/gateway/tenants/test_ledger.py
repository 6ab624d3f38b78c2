"""The ledger: each request once, whatever happens to the database or to who writes."""

import asyncio
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gateway.database.database import Database
from gateway.database.migrate import migrate
from gateway.database.tables import usage_requests
from gateway.settings import PriceSettings
from gateway.tenants.entry import Entry, Resumed
from gateway.tenants.kind import Kind
from gateway.tenants.ledger import Ledger
from gateway.tenants.prices import Prices
from gateway.tenants.usage import EVERYBODY, read_usage
from paceline.errors import InvalidArgumentError
from paceline.v1 import inference_pb2, usage_pb2
from support.postgres_server import PostgresServer

NOW = 1_790_000_000.0  # 2026-09-21
USAGE = inference_pb2.Usage(
    num_prompt_tokens=10, num_cached_tokens=4, num_completion_tokens=5, num_drafted_tokens=3, num_accepted_tokens=2
)


def entry(request_id: str, **fields: Any) -> Entry:
    known: dict[str, Any] = {"tenant": "a", "key_id": "k", "model": "m", "adapter": "", "kind": Kind.INTERACTIVE}
    known |= {"outcome": "finished", "ended_at": NOW, "usage": USAGE, "cost": 7, **fields}
    return Entry(request_id=request_id, **known)


async def total(database: Database, tenant: str = "a", **asked: Any) -> usage_pb2.GetUsageResponse:
    request = usage_pb2.GetUsageRequest(**asked)
    return await read_usage(database, tenant, request, date.fromtimestamp(NOW), "USD")


async def test_a_request_counts_once_however_often_it_is_written(database: Database) -> None:
    ledgers = [Ledger(database, lambda: NOW) for _ in range(2)]

    async def write(ledger: Ledger) -> None:
        async with ledger.running():
            for number in range(20):
                for _ in range(2):
                    ledger.record(entry(f"{number}"))

    await asyncio.gather(*map(write, ledgers))
    found = (await total(database)).total
    assert (found.num_requests, found.num_prompt_tokens, found.cost_nanos) == (20, 200, 140)
    assert (found.num_cached_tokens, found.num_drafted_tokens, found.num_accepted_tokens) == (80, 60, 40)
    assert await ledgers[0].spent_this_month("a") == 140


async def test_usage_is_told_apart_as_asked(database: Database) -> None:
    ledger = Ledger(database)
    rows = [
        entry("1"), entry("2", model="n"), entry("3", ended_at=NOW - 86400), entry("4", kind=Kind.BATCH, key_id="l"),
        entry("5", tenant="b", adapter="x"), entry("6", ended_at=NOW - 40 * 86400),
    ]  # fmt: skip
    async with ledger.running():
        for row in rows:
            ledger.record(row)
    by_default = await total(database)
    assert [(row.day, row.model, row.num_requests) for row in by_default.rows] == [
        ("2026-09-20", "m", 1), ("2026-09-21", "m", 2), ("2026-09-21", "n", 1)
    ]  # fmt: skip
    by_kind = await total(database, groups=[usage_pb2.USAGE_GROUP_KIND, usage_pb2.USAGE_GROUP_KEY])
    assert [(row.kind, row.key_id, row.num_requests) for row in by_kind.rows] == [
        ("batch", "l", 1), ("interactive", "k", 3)
    ]  # fmt: skip
    everybody = await total(database, EVERYBODY, start_day="2026-01-01", groups=[usage_pb2.USAGE_GROUP_TENANT])
    assert [(row.tenant, row.num_requests) for row in everybody.rows] == [("a", 5), ("b", 1)]
    assert everybody.total.num_requests == 6
    assert await ledger.spent_this_month("nobody") == 0
    for wrong in ({"start_day": "yesterday"}, {"groups": [99]}):
        with pytest.raises(InvalidArgumentError):
            await total(database, **wrong)


async def test_entries_wait_while_the_database_is_away() -> None:
    server = PostgresServer()
    await server.start()
    database = Database(server.url())
    await migrate(database)
    ledger = Ledger(database, lambda: NOW)
    async with ledger.running(last_seconds=30):
        ledger.record(entry("1"))
        await ledger.flushed(30)
        server.stop()
        ledger.record(entry("2"))
        await ledger.flushed(0.05)
        await server.start()
    assert (await total(database)).total.num_requests == 2
    await database.close()
    server.stop()


async def test_old_requests_are_deleted_and_are_not_billed_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.tenants.ledger._MAX_PRUNED", 2)
    now, day = NOW, 86400.0
    ledger = Ledger(database, lambda: now, keep_seconds=2 * day)
    entries = [entry(f"{number}", ended_at=NOW + number * day) for number in range(5)]
    async with ledger.running():
        for each in entries:
            ledger.record(each)
        await ledger.flushed(30)
        now = NOW + 6.5 * day
        assert [await ledger.prune_some() for _ in range(3)] == [2, 2, 0]
        for each in entries:
            ledger.record(each)
        await ledger.flushed(30)
    async with database.read() as connection:
        left = list((await connection.execute(select(usage_requests.c.request_id))).scalars())
    assert left == ["4"]
    found = (await total(database, start_day="2026-01-01", end_day="2026-12-31")).total
    assert (found.num_requests, found.cost_nanos) == (5, 35)


async def test_what_cannot_be_written_is_logged_and_keeps_nothing_up(database: Database, caplog: Any) -> None:
    ledger = Ledger(database)
    async with ledger.running():
        ledger.record(entry("1"))
        ledger.record(entry("2", cost=1 << 70))
        ledger.record(entry("3"))
    assert (await total(database)).total.num_requests == 2
    assert "cannot be written" in caplog.text


def test_costs_are_whole_billionths_by_kind_of_token() -> None:
    settings = PriceSettings(
        prompt=Decimal("0.5"), cached=Decimal("0.05"), completion=Decimal(2), adapter_surcharge=0.5, batch_discount=0.5
    )
    prices = Prices({"m": settings}, "EUR")
    plain = 6 * 500 + 4 * 50 + 5 * 2000
    assert prices.cost("m", "", Kind.INTERACTIVE, USAGE) == plain
    assert prices.cost("m", "x", Kind.INTERACTIVE, USAGE) == plain * 3 // 2
    assert prices.cost("m", "", Kind.BATCH, USAGE) == plain // 2
    assert prices.cost("other", "", Kind.INTERACTIVE, USAGE) == 0
    message = prices.message("m")
    assert message is not None
    assert (message.currency, message.prompt_nanos, message.cached_nanos) == ("EUR", 500_000_000, 50_000_000)
    assert prices.message("other") is None


def test_without_a_price_of_its_own_a_cached_token_costs_as_another() -> None:
    prices = Prices({"m": PriceSettings(prompt=Decimal(1), completion=Decimal(0))}, "USD")
    assert prices.cost("m", "", Kind.INTERACTIVE, USAGE) == 10_000


async def test_what_a_file_holds_is_there_for_the_next(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.sqlite'}"
    for number in range(2):
        database = Database(url)
        await migrate(database)
        ledger = Ledger(database, lambda: NOW)
        async with ledger.running():
            ledger.record(entry("one" if number else "other"))
        found = (await total(database)).total.num_requests
        await database.close()
    assert found == 2


def resumed(request_id: str, received: int, produced: int, **fields: Any) -> Entry:
    """A request of which a client had received some tokens before, and more were produced."""

    def usage(count: int, prompt: int = 10) -> inference_pb2.Usage:
        return inference_pb2.Usage(num_prompt_tokens=prompt, num_completion_tokens=count)

    def price(used: inference_pb2.Usage) -> int:
        return used.num_prompt_tokens + 100 * used.num_completion_tokens

    prompt = fields.pop("prompt", 10)
    total = usage(received + produced, prompt)
    more = {"prompt_digest": f"of {prompt}", **fields}
    return entry(request_id, usage=total, cost=price(total), resumed=Resumed(usage(received, 0), price), **more)


def begun(produced: int, **fields: Any) -> Entry:
    used = inference_pb2.Usage(num_prompt_tokens=10, num_completion_tokens=produced)
    more = {"outcome": "cancelled", "prompt_digest": "of 10", **fields}
    return entry("1", usage=used, cost=10 + 100 * produced, **more)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        # The gateway that began it died, or records what it had begun only afterwards.
        ([resumed("1", 5, 20)], (1, 10, 25)),
        ([resumed("1", 5, 20), begun(5)], (1, 10, 25)),
        # It lives: what was computed counts, and never what was received a second time.
        ([begun(5), resumed("1", 5, 20)], (1, 10, 25)),
        ([begun(7), resumed("1", 5, 20)], (1, 10, 27)),
        ([begun(3), resumed("1", 5, 20)], (1, 10, 25)),
        # Twice.
        ([resumed("1", 5, 20), resumed("1", 25, 4, ended_at=NOW + 1)], (1, 10, 29)),
        ([begun(5), resumed("1", 5, 20), resumed("1", 25, 4, ended_at=NOW + 1)], (1, 20, 29)),
        # Who claims an id for another prompt, or to have received nothing, pays for what is computed.
        ([begun(5), resumed("1", 0, 20, prompt=900)], (1, 910, 25)),
        ([begun(5), *(resumed("1", 0, 8, ended_at=NOW + at) for at in range(3))], (1, 30, 29)),
        ([begun(5), resumed("1", 5, 20, prompt_digest="another")], (1, 20, 25)),
        # Nor may it wipe out what is still running.
        ([resumed("1", 0, 1), begun(1000)], (1, 10, 1001)),
        ([resumed("1", 5, 20), begun(9)], (1, 10, 29)),
        # While nobody can go on with it, no try costs anything.
        ([begun(5), *(resumed("1", 5, 0, ended_at=NOW + at) for at in range(4))], (1, 10, 5)),
        # Somebody else's id is of no use.
        ([entry("1", tenant="b"), resumed("1", 5, 20)], (1, 10, 25)),
        ([resumed("1", 5, 20, tenant="b"), resumed("1", 5, 20, ended_at=NOW + 1)], (1, 10, 25)),
        ([resumed("1", 5, 20, tenant="b"), begun(30)], (1, 10, 30)),
    ],
)
async def test_a_request_that_two_gateways_served_counts_once(
    database: Database, entries: list[Entry], expected: tuple[int, int, int]
) -> None:
    ledger = Ledger(database, lambda: NOW)
    for one in entries:
        for _ in range(2):  # Whoever does not know whether it was written writes it again.
            async with database.write() as connection:
                await ledger.write(connection, [one])
    found = (await total(database)).total
    assert (found.num_requests, found.num_prompt_tokens, found.num_completion_tokens) == expected
    assert found.cost_nanos == expected[1] + 100 * expected[2]


async def test_goings_on_that_are_written_at_once_all_count(database: Database) -> None:
    ledgers = [Ledger(database, lambda: NOW) for _ in range(4)]

    async def write(number: int, ledger: Ledger) -> None:
        async with database.write() as connection:
            await ledger.write(connection, [resumed("1", 0, 10, ended_at=NOW + number)])

    await asyncio.gather(*(write(number, ledger) for number, ledger in enumerate(ledgers)))
    assert (await total(database)).total.num_completion_tokens == 40
