"""Leases: whoever runs an item how often, it is recorded and billed once, and the counts add up."""

import asyncio
import json

import pytest
from sqlalchemy import func, insert, select, update

from gateway.batch.batches import Batches
from gateway.batch.leases import Ended, Item, Later, Leases
from gateway.batch.states import BatchState, ItemState
from gateway.database.database import Database
from gateway.database.tables import batch_items, batches, tenants, usage_days
from gateway.tenants.entry import Entry
from gateway.tenants.kind import Kind
from gateway.tenants.ledger import Ledger
from paceline.v1 import inference_pb2
from support.batch import add_batch


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ended(item: Item, state: ItemState = ItemState.COMPLETED) -> Ended:
    usage = inference_pb2.Usage(num_prompt_tokens=2, num_completion_tokens=3)
    account = {"tenant": item.tenant, "key_id": item.key_id, "model": "m", "adapter": "", "kind": Kind.BATCH}
    entry = Entry(request_id=item.request_id, outcome="finished", ended_at=0.0, usage=usage, cost=5, **account)  # type: ignore[arg-type]
    return Ended(item, state, json.dumps({"response": item.place}), entry)


async def billed(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.sum(usage_days.c.num_requests)))).scalar_one() or 0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(database: Database, clock: Clock) -> Leases:
    return Leases(database, Ledger(database), 30, clock, clock)


async def test_two_who_claim_at_once_get_different_items(database: Database, leases: Leases) -> None:
    await add_batch(database, "b", 40)
    claimed = await asyncio.gather(*(leases.claim(15) for _ in range(4)))
    places = [item.place for items in claimed for item in items]
    assert len(places) == len(set(places)) == 40


async def test_what_is_not_brought_back_is_given_away_and_counts_once(
    database: Database, leases: Leases, clock: Clock
) -> None:
    await add_batch(database, "b", 1)
    (first,) = await leases.claim(5)
    await leases.sweep()
    assert await leases.claim(5) == []
    clock.now += 31
    await leases.sweep()
    (second,) = await leases.claim(5)
    assert (second.num_attempts, second.lease == first.lease) == (1, False)
    assert await leases.record([ended(first)]) == 0
    assert await leases.record([ended(second)]) == 1
    assert await leases.record([ended(second)]) == 0
    assert await billed(database) == 1
    row = await Batches(database).get("a", "b")
    assert (row.state, row.num_completed, row.num_ended, row.cost, row.num_prompt_tokens) == ("completed", 1, 1, 5, 2)


async def test_a_prolonged_lease_holds(database: Database, leases: Leases, clock: Clock) -> None:
    await add_batch(database, "b", 1)
    (item,) = await leases.claim(1)
    clock.now += 20
    assert await leases.renew([item.lease], prolong=True) == {item.lease: BatchState.RUNNING}
    clock.now += 20
    await leases.sweep()
    assert await leases.record([ended(item)]) == 1
    assert await leases.renew([item.lease], prolong=True) == {}


async def test_tenants_take_turns_by_weight_and_their_batches_by_expiry(database: Database, leases: Leases) -> None:
    async with database.write() as connection:
        await connection.execute(insert(tenants), [{"id": "heavy", "created_at": 1.0, "weight": 3.0}])
    await add_batch(database, "late", 30, "a", expires_at=9000.0)
    await add_batch(database, "soon", 30, "a", expires_at=8000.0)
    await add_batch(database, "h", 30, "heavy")
    claimed = [item for _ in range(24) for item in await leases.claim(1)]
    assert [sum(item.tenant == name for item in claimed) for name in ("a", "heavy")] == [6, 18]
    assert {item.batch for item in claimed} == {"soon", "h"}
    of_heavy = [item.place % 2 for item in claimed if item.tenant == "heavy"]
    assert of_heavy == sorted(of_heavy)


async def test_what_is_given_back_waits_and_counts_only_where_it_was_a_fault(
    database: Database, leases: Leases, clock: Clock
) -> None:
    await add_batch(database, "b", 2)
    items = await leases.claim(2)
    await leases.release({items[0]: Later(10, 0, is_fault=True), items[1]: Later(10, 0)})
    assert await leases.claim(2) == []
    clock.now += 10
    again = {item.place: item.num_attempts for item in await leases.claim(2)}
    assert again == {items[0].place: 2, items[1].place: 1}


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_stopped_batch_has_an_end_for_each_item(
    database: Database, leases: Leases, clock: Clock, how: str
) -> None:
    found = Batches(database, clock)
    await add_batch(database, "b", 10)
    done, running, lost = await leases.claim(3)
    await leases.sweep()
    await leases.record([ended(done)])
    if how == "cancelled":
        assert (await found.cancel("a", "b")).state == "cancelling"
    else:
        clock.now = 5000.0
    await leases.sweep()
    row = await found.get("a", "b")
    assert (row.num_completed, row.num_cancelled + row.num_expired) == (1, 7 if how == "cancelled" else 9)
    if how == "cancelled":
        assert await leases.renew([running.lease], prolong=False) == {running.lease: BatchState.CANCELLING}
        await leases.record([ended(running, ItemState.CANCELLED)])
        assert (await found.cancel("a", "b")).state == "cancelling"
        clock.now += 31
        await leases.sweep()
        await leases.sweep()
        assert await leases.record([ended(lost)]) == 0
    row = await found.get("a", "b")
    assert (row.state, row.num_ended) == (how, 10)
    assert (await found.cancel("a", "b")).state == how
    assert await billed(database) == (2 if how == "cancelled" else 1)
    async with database.read() as connection:
        left = select(func.count()).where(batch_items.c.state <= ItemState.RUNNING.value)
        assert (await connection.execute(left)).scalar_one() == 0


async def test_batches_go_some_time_after_their_end(
    database: Database, leases: Leases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.batch.removal._MAX_DELETED", 4)
    found = Batches(database, clock)
    await add_batch(database, "done", 10)
    await add_batch(database, "waits", 2, expires_at=1e9)
    await leases.record([ended(item) for item in await leases.claim(10)])
    await found.cancel("a", "done")
    await leases.sweep()
    clock.now += 100
    await found.drop_old(101)
    assert len((await found.page("a", 0, "", ())).rows) == 2
    clock.now += 2
    await found.drop_old(101)
    assert [row.id for row in (await found.page("a", 0, "", ())).rows] == ["waits"]
    async with database.read() as connection:
        left = (await connection.execute(select(func.count()).select_from(batch_items))).scalar_one()
    assert left == 2


async def test_who_records_while_another_cancels_loses_nothing(database: Database, leases: Leases) -> None:
    found = Batches(database)
    async with database.write() as connection:
        await connection.execute(update(batches).values(expires_at=1e18))
    await add_batch(database, "b", 30, expires_at=1e18)
    items = await leases.claim(20)
    await asyncio.gather(*(leases.record([ended(item)]) for item in items), found.cancel("a", "b"), leases.sweep())
    row = await found.get("a", "b")
    assert (row.num_completed, row.num_cancelled, row.num_ended) == (20, 10, 30)
    assert row.state in ("cancelled", "completed")
    assert await billed(database) == 20


async def test_a_batch_is_cancelled_while_it_is_begun_and_prolonged(database: Database, leases: Leases) -> None:
    """All at once, again and again: whoever locks rows does so in one order, and nobody is turned away."""
    found = Batches(database)
    for number in range(20):
        batch_id = f"b{number}"
        await add_batch(database, batch_id, 30, expires_at=1e18)
        claims = [asyncio.create_task(leases.claim(8)) for _ in range(3)]
        claimed, _ = await asyncio.gather(asyncio.gather(*claims), found.cancel("a", batch_id))
        items = [item for some in claimed for item in some]
        await asyncio.gather(
            *(leases.renew([item.lease for item in items[::step]], prolong=True) for step in (1, -1)),
            *(leases.record([ended(item) for item in items[half::2]]) for half in (0, 1)),
            leases.sweep(),
        )
        row = await found.get("a", batch_id)
        assert (row.state, row.num_completed + row.num_cancelled) == ("cancelled", 30)
    assert await leases.claim(1) == []
