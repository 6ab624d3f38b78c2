"""A database that has no room for more, and room again: for SQLite in another process, and for PostgreSQL."""

import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

_TABLES = ("batches", "batch_items", "usage_requests")


@asynccontextmanager
async def full_disk(url: str, pid: int) -> AsyncIterator[None]:
    """While the block lasts nothing is written to the database, by this process where it is SQLite's file."""
    if not url.startswith("sqlite"):
        async with _refusing(url):
            yield
        return
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@asynccontextmanager
async def _refusing(url: str) -> AsyncIterator[None]:
    """A server whose tables refuse all that would make them longer, as those on a full disk do."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
    )
    for table in _TABLES:
        await connection.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
        )
    try:
        yield
    finally:
        await connection.execute("DROP FUNCTION refuse CASCADE")
        await connection.close()
