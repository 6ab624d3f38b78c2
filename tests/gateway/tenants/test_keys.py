"""Keys: shown once, kept as digests, ended by time or by hand; and what a gateway remembers of them."""

import asyncio

import pytest
from sqlalchemy import select

from gateway.database.database import Database
from gateway.database.tables import api_keys
from gateway.tenants.api_key import Scope
from gateway.tenants.fresh import Fresh
from gateway.tenants.key_store import KeyStore
from gateway.tenants.keys import Keys
from gateway.tenants.plan import Plan
from paceline.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from paceline.v1 import admin_pb2

SCOPES = frozenset({Scope.BATCH, Scope.USAGE})


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


async def test_a_key_is_kept_as_a_digest_alone(database: Database) -> None:
    store = KeyStore(database)
    await store.create_tenant("a", Plan())
    known, key = await store.create_key("a", "mine", SCOPES)
    assert (known.tenant, known.name, known.scopes, known.id) == ("a", "mine", SCOPES, key.id)
    async with database.read() as connection:
        (row,) = (await connection.execute(select(api_keys))).mappings()
    assert not any(
        key.secret in str(value) or key.secret.encode() in bytes(str(value), "utf8") for value in row.values()
    )
    assert len(key.secret) == 64


async def test_what_is_wrong_with_tenants_and_keys_is_said(database: Database) -> None:
    store = KeyStore(database)
    await store.create_tenant("a", Plan())
    with pytest.raises(AlreadyExistsError):
        await store.create_tenant("a", Plan(max_streams=1))
    with pytest.raises(InvalidArgumentError):
        await store.create_tenant("", Plan())
    with pytest.raises(NotFoundError):
        await store.update_tenant("b", Plan())
    with pytest.raises(NotFoundError):
        await store.create_key("b", "", SCOPES)
    with pytest.raises(InvalidArgumentError, match="lifetime"):
        await store.create_key("a", "", SCOPES, 0.5)
    for change in (store.revoke_key("none"), store.rotate_key("none", 1)):
        with pytest.raises(NotFoundError):
            await change
    assert [(tenant.id, tenant.plan) for tenant in await store.tenants()] == [("a", Plan())]


@pytest.mark.parametrize(
    "plan", [{"weight": 0.0}, {"weight": float("nan")}, {"max_priority": 101}, {"max_streams": 1 << 63}]
)
def test_a_plan_out_of_range_is_refused_by_field(plan: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(plan))):
        Plan.read(admin_pb2.Plan(**plan))  # type: ignore[arg-type]


def test_a_plan_survives_its_message() -> None:
    plan = Plan(1, 2, 3, 4, 5, 6, 7, 8.5)
    assert Plan.read(plan.message()) == plan
    assert Plan.read(admin_pb2.Plan()) == Plan()


async def test_keys_end_by_time_and_by_hand(database: Database) -> None:
    clock = Clock()
    store = KeyStore(database, clock)
    keys = Keys(store, 1e-6, 0, clock)
    await store.create_tenant("a", Plan())
    _, short = await store.create_key("a", "", SCOPES, 10)
    _, long = await store.create_key("a", "", SCOPES)
    clock.now += 9
    assert await keys.find(short.text) is not None
    clock.now += 1
    assert await keys.find(short.text) is None
    assert await keys.find(long.text) is not None
    first = await store.revoke_key(long.id)
    clock.now += 5
    assert await store.revoke_key(long.id) == first
    assert await keys.find(long.text) is None


async def test_a_rotated_key_holds_beside_its_successor_for_a_while(database: Database) -> None:
    clock = Clock()
    store = KeyStore(database, clock)
    keys = Keys(store, 1e-6, 0, clock)
    await store.create_tenant("a", Plan())
    _, old = await store.create_key("a", "mine", SCOPES)
    known, new = await store.rotate_key(old.id, 60)
    assert (known.tenant, known.name, known.scopes) == ("a", "mine", SCOPES)
    assert await keys.find(old.text) is not None
    clock.now += 61
    assert await keys.find(old.text) is None
    assert await keys.find(new.text) is not None
    with pytest.raises(NotFoundError):
        await store.rotate_key(old.id, 60)


async def test_what_runs_with_a_key_ends_with_it(database: Database) -> None:
    store = KeyStore(database)
    keys = Keys(store, 0.02, 0)
    await store.create_tenant("a", Plan())
    (_, key), (_, other) = [await store.create_key("a", "", SCOPES) for _ in range(2)]

    async def run(key_id: str) -> None:
        async with keys.while_it_holds(key_id):
            await asyncio.Event().wait()

    watch = asyncio.create_task(keys.watch())
    ends, stays, free = (asyncio.create_task(run(key_id)) for key_id in (key.id, other.id, ""))
    await asyncio.sleep(0)
    await store.revoke_key(key.id)
    with pytest.raises(UnauthenticatedError, match="stopped holding"):
        await ends
    assert not stays.done()
    assert not free.done()
    for task in (watch, stays, free):
        task.cancel()
    await asyncio.gather(watch, stays, free, return_exceptions=True)


async def test_what_is_known_outlives_the_database_for_a_while() -> None:
    clock, asked = Clock(), []

    async def read(key: str) -> str:
        asked.append(key)
        if clock.now > 1e9:
            raise UnavailableError("gone")
        return key.upper()

    fresh = Fresh(read, 2, 60, clock)
    assert [await fresh.get("a"), await fresh.get("a")] == ["A", "A"]
    assert asked == ["a"]
    clock.now += 61
    assert await fresh.get("a") == "A"
    with pytest.raises(UnavailableError):
        await fresh.get("b")
    clock.now += 2
    with pytest.raises(UnavailableError):
        await fresh.get("a")
