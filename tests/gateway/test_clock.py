"""Somebody sets the clock by an hour while batches run: what happens when depends on it where docs say so, and nothing
is lost, run twice or left waiting for the hour to pass.
"""

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select

from gateway.batch.acceptance import Acceptance
from gateway.batch.leases import Later, Leases
from gateway.database.database import Database
from gateway.database.tables import usage_days, usage_requests
from gateway.tenants.entry import DAY_SECONDS, Entry
from gateway.tenants.identity import Caller
from gateway.tenants.kind import Kind
from gateway.tenants.ledger import Ledger
from gateway.tenants.limits import Limits
from gateway.tenants.plan import Plan
from gateway.tenants.shared_use import SharedUse
from paceline import AbortedError, QuotaExceededError
from paceline.v1 import batch_pb2, inference_pb2
from support.batch import Stalls, add_batch, expected, jsonl, line, read, texts, until_ended
from support.books import check_books
from support.fakes import serve_fakes
from support.system import StartGateway

HOUR = 3600.0


class SetClock:
    """In the place of the module `time`: a clock that is wrong by so much."""

    ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    made = SetClock()
    monkeypatch.setattr("gateway.clock.time", made)
    return made


class Hand:
    """A time that stands until it is moved."""

    now = 100_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_what_runs_goes_on_and_nothing_runs_twice(
    start_gateway: StartGateway, database_url: str, clock: SetClock, jump: float
) -> None:
    verifier, names = Stalls(), [f"{number}" for number in range(8)]
    settings = {"database": database_url, "max_batch_streams": 2, "batch_lease_seconds": 9.0}
    async with serve_fakes(verifier) as address:
        async with start_gateway([address], **settings) as system, start_gateway([address], **settings):
            made = await system.client.create_batch(jsonl(*map(line, names)))
            while verifier.num_open < 4:
                await asyncio.sleep(0.01)
            clock.ahead += jump
            await asyncio.sleep(3.0)  # So that whoever gives items away has looked for some.
            assert len(verifier.opens) == verifier.num_open == 4
            verifier.go_on.set()
            done = await until_ended(system.client, made.batch.id)
            lines = await read(system.client, made.batch.id)
            by_end = [json.loads(each) for each in await _finished(system.client, made.batch.id)]
    assert done.state == batch_pb2.BATCH_STATE_COMPLETED
    assert len(verifier.opens) == len(names)
    assert texts(lines) == {name: expected(name) for name in names}
    assert sorted(each["custom_id"] for each in by_end) == names
    database = Database(database_url)
    await check_books(database, made.batch.id, lines, names)
    await database.close()


@pytest.mark.parametrize(("jump", "state"), [(HOUR, "expired"), (-HOUR, "completed")])
async def test_a_batch_expires_by_the_clock_with_an_end_for_each_line(
    start_gateway: StartGateway, database_url: str, clock: SetClock, jump: float, state: str
) -> None:
    verifier, names = Stalls(), ["a", "b", "c"]
    settings = {"database": database_url, "max_batch_streams": 1, "batch_lease_seconds": 1.0}
    async with serve_fakes(verifier) as address, start_gateway([address], **settings) as system:
        made = await system.client.create_batch(jsonl(*map(line, names)), completion_seconds=HOUR / 2)
        await verifier.opened.wait()
        clock.ahead += jump
        if jump < 0:
            verifier.go_on.set()
        done = await until_ended(system.client, made.batch.id)
        lines = await read(system.client, made.batch.id)
    assert done.state == batch_pb2.BatchState.Value(f"BATCH_STATE_{state.upper()}")
    database = Database(database_url)
    await check_books(database, made.batch.id, lines, names)
    await database.close()


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_what_a_gateway_leaves_is_given_away_by_the_watch(database: Database, jump: float) -> None:
    clock, watch = Hand(), Hand()
    ledger = Ledger(database)
    gone, other = (Leases(database, ledger, 30, clock, watch) for _ in range(2))
    await add_batch(database, "b", 1, expires_at=1e9)
    (left,) = await gone.claim(1)
    await other.sweep()
    clock.now += jump
    watch.now += 29
    await other.sweep()
    assert await other.claim(1) == []
    watch.now += 2
    await other.sweep()
    (item,) = await other.claim(1)
    assert item.place == left.place


async def test_what_waits_for_a_moment_does_not_wait_for_an_hour(database: Database) -> None:
    clock = Hand()
    leases = Leases(database, Ledger(database), 30, clock)
    await add_batch(database, "b", 1, expires_at=1e9)
    (item,) = await leases.claim(1)
    await leases.release({item: Later(10, 0)})
    assert await leases.claim(1) == []
    clock.now -= HOUR
    assert len(await leases.claim(1)) == 1


async def test_an_upload_is_abandoned_by_the_watch(database: Database) -> None:
    clock, watch = Hand(), Hand()
    acceptance, caller = Acceptance(database, clock, watch), Caller("a", "")
    batch_id = await acceptance.begin(caller, 60, "k", {}, None)
    assert batch_id is not None
    for jump in (HOUR, -HOUR):
        clock.now += jump
        await acceptance.drop_abandoned()
        await acceptance.add(batch_id, [])
    await acceptance.drop_abandoned()
    watch.now += 121
    await acceptance.drop_abandoned()
    with pytest.raises(AbortedError):
        await acceptance.add(batch_id, [])
    assert await acceptance.begin(caller, 60, "k", {}, None) is not None


async def test_each_request_is_in_the_day_of_its_end_and_once(database: Database) -> None:
    midnight, clock = 20_000 * DAY_SECONDS, Hand()
    ledger = Ledger(database, clock)
    entries = []
    for number, moment in enumerate((-60, 60 + HOUR, -HOUR, 60, -1)):
        clock.now = midnight + moment
        entries.append(_entry(f"{number}", clock.now))
    async with ledger.running():
        for each in (*entries, *entries[::-1]):
            clock.now = midnight + HOUR if each.ended_at < midnight else midnight - HOUR
            ledger.record(each)
    async with database.read() as connection:
        sums = select(usage_days.c.day, func.sum(usage_days.c.num_requests)).group_by(usage_days.c.day)
        by_day = {row[0]: int(row[1]) for row in await connection.execute(sums)}
        rows = (await connection.execute(select(usage_requests.c["day", "ended_at"]))).all()
    days = [datetime.fromtimestamp(midnight + seconds, UTC).date().isoformat() for seconds in (-1, 0)]
    assert by_day == {days[0]: 3, days[1]: 2}
    assert all((row.day == days[1]) == (row.ended_at >= midnight) for row in rows)


async def test_what_a_gateway_told_before_the_clock_was_set_back_counts_no_longer_than_it(database: Database) -> None:
    clock, plan = Hand(), Plan(max_streams=1)
    limits = [Limits(), Limits()]
    one, other = (SharedUse(database, each, clock) for each in limits)
    with limits[0].request("a", plan):
        await one.exchange()
    limits[1].use("a")
    await other.exchange()
    with pytest.raises(QuotaExceededError), limits[1].request("a", plan):
        pass
    clock.now -= HOUR
    await other.exchange()
    with limits[1].request("a", plan):
        pass


def _entry(request_id: str, ended_at: float) -> Entry:
    usage = inference_pb2.Usage(num_prompt_tokens=1, num_completion_tokens=1)
    account = {"tenant": "a", "key_id": "k", "model": "m", "adapter": "", "kind": Kind.INTERACTIVE}
    return Entry(request_id=request_id, outcome="finished", ended_at=ended_at, usage=usage, cost=1, **account)  # type: ignore[arg-type]


async def _finished(client: Any, batch_id: str) -> list[str]:
    return [each.line async for each in client.batch_results(batch_id, finished_order=True)]
