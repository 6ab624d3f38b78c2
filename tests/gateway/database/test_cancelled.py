"""Whoever is cancelled in a transaction, at whatever moment, leaves neither a lock nor a connection behind."""

import asyncio
import gc
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import insert, select, text, update

from gateway.database.database import Database
from gateway.database.tables import tenants

_AT_ONCE_SECONDS = 5.0
"""Less than what a lock is waited for."""
_LAST_OF_MANY = text(
    "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 1000000) "
    "SELECT value FROM n WHERE value > 999000"
)
"""Takes a while to its first row, and has more."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector comes by late where there is much to look through."""
    gc.disable()
    yield
    gc.enable()


async def _check_free(database_url: str, database: Database) -> None:
    """Others can write at once, and all connections are back."""
    other = Database(database_url)
    async with asyncio.timeout(_AT_ONCE_SECONDS), other.write() as connection:
        await connection.execute(update(tenants).values(created_at=2.0))
    await other.close()
    assert database._engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_collector")
async def test_a_reader_cancelled_before_its_first_row_holds_no_lock(database_url: str, database: Database) -> None:
    begun = asyncio.Event()

    async def write() -> None:
        async with database.write() as connection:
            await connection.execute(insert(tenants), [{"id": "a", "created_at": 1.0}])
            begun.set()
            await connection.execute(_LAST_OF_MANY)

    task = asyncio.create_task(write())
    await begun.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _check_free(database_url, database)


@pytest.mark.usefixtures("no_collector")
async def test_whenever_one_is_cancelled_others_write_at_once(database_url: str, database: Database) -> None:
    chance = random.Random(7)
    async with database.write() as connection:
        await connection.execute(insert(tenants), [{"id": f"{number}", "created_at": 1.0} for number in range(300)])

    async def work() -> None:
        async with database.write() as connection:
            await connection.execute(select(tenants))
            await connection.execute(update(tenants).values(created_at=chance.random()))
            await connection.execute(select(tenants))
        async with database.read() as connection:
            await connection.execute(select(tenants))

    for _ in range(100):
        tasks = [asyncio.create_task(work()) for _ in range(2)]
        await asyncio.sleep(chance.uniform(0, 0.02))
        for task in tasks:
            task.cancel()
        for _ in range(chance.randrange(8)):  # Some are cancelled once more while they give their connection back.
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _check_free(database_url, database)
