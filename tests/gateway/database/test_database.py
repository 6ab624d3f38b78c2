"""SQLite and PostgreSQL alike: migrations, transactions, and what happens when the database is away."""

import asyncio
import sys
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import DBAPIError

from gateway.database.database import Database
from gateway.database.migrate import migrate
from gateway.database.tables import SUMS, metadata, tenants, usage_days
from paceline.errors import FailedPreconditionError, UnavailableError
from support.databases import new_postgres_url, new_sqlite_url
from support.postgres_server import PostgresServer

ROW = {"tenant": "a", "day": "2026-01-01", "key_id": "k", "model": "m", "adapter": "", "kind": "interactive"}


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/folder/gateway.sqlite"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    await postgres.execute("DROP DATABASE IF EXISTS fresh")
    await postgres.execute("CREATE DATABASE fresh")
    return postgres.url("fresh")


async def test_migrations_lead_to_the_tables(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_processes_that_start_at_once_migrate_once(empty_url: str, repository: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from gateway.database.database import Database\n"
        "from gateway.database.migrate import migrate\n"
        "async def run():\n"
        "    database = Database(sys.argv[1])\n"
        "    await asyncio.gather(migrate(database), migrate(database))\n"
        "    await database.close()\n"
        "asyncio.run(run())"
    )
    command = (sys.executable, "-c", code, empty_url)
    running = [await asyncio.create_subprocess_exec(*command, cwd=repository) for _ in range(2)]
    assert [await process.wait() for process in running] == [0, 0]
    database = Database(empty_url)
    async with database.read() as connection:
        assert (await connection.execute(select(tenants))).all() == []
    await database.close()


async def test_a_database_of_a_newer_version_is_left_alone(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPreconditionError, match="newer version: 9999"):
        await migrate(database)


async def test_what_raises_changes_nothing(database: Database) -> None:
    with pytest.raises(KeyError):
        async with database.write() as connection:
            await connection.execute(insert(tenants), [{"id": "a", "created_at": 1.0}])
            raise KeyError
    async with database.read() as connection:
        assert (await connection.execute(select(tenants))).all() == []


async def test_writers_wait_for_each_other(database_url: str) -> None:
    first, second = Database(database_url), Database(database_url)
    sums = dict.fromkeys(SUMS, 1)

    async def add(database: Database) -> None:
        async with database.write() as connection:
            await connection.execute(database.insert_or_add(usage_days, SUMS), [{**ROW, **sums}])

    await asyncio.gather(*(add(database) for database in (first, second) for _ in range(10)))
    async with first.read() as connection:
        (row,) = (await connection.execute(select(usage_days.c["cost", "num_requests"]))).all()
    assert tuple(row) == (20, 20)
    await first.close()
    await second.close()


async def test_a_server_that_is_away_is_unavailable_and_used_again() -> None:
    server = PostgresServer()
    await server.start()
    database = Database(server.url())
    await migrate(database)
    server.stop()
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            async with database.read() as connection:
                await connection.execute(select(tenants))
        assert "127.0.0.1" not in str(caught.value)
    await server.start()
    async with database.write() as connection:
        await connection.execute(insert(tenants), [{"id": "a", "created_at": 1.0}])
    await database.close()
    server.stop()


async def test_a_full_disk_is_unavailable_and_changes_nothing(tmp_path: Path) -> None:
    database = Database(new_sqlite_url(tmp_path))
    with pytest.raises(UnavailableError, match="no room"):
        async with database.write() as connection:
            pages = (await connection.execute(text("PRAGMA page_count"))).scalar_one()
            await connection.execute(text(f"PRAGMA max_page_count = {pages}"))
            rows = [{"id": f"{number:0128}", "created_at": 1.0} for number in range(1000)]
            await connection.execute(insert(tenants), rows)
    async with database.read() as connection:
        assert (await connection.execute(select(tenants))).all() == []
    await database.close()


@pytest.mark.parametrize(
    ("code", "said"), [("53100", "no room"), ("40P01", "used"), ("40001", "used"), ("57P01", "used"), ("53200", "used")]
)
async def test_what_no_statement_is_to_blame_for_passes(postgres: PostgresServer, code: str, said: str) -> None:
    database = Database(await new_postgres_url(postgres))
    with pytest.raises(UnavailableError, match=said):
        async with database.write() as connection:
            await connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"))
    with pytest.raises(DBAPIError, match="syntax"):
        async with database.write() as connection:
            await connection.execute(text("SELEKT"))
    await database.close()


@pytest.mark.parametrize("url", ["mysql://host/name", "nothing", "sqlite://", "sqlite:///:memory:"])
def test_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"database|sqlite"):
        Database(url)


async def test_a_reader_sees_one_state_whatever_is_written_meanwhile(database: Database) -> None:
    names = select(tenants.c.id)
    async with database.read() as reading:
        before = (await reading.execute(names)).scalars().all()
        async with database.write() as writing:
            await writing.execute(insert(tenants).values(id="new", created_at=0.0, weight=1.0))
        assert (await reading.execute(names)).scalars().all() == before
    async with database.read() as reading:
        assert "new" in (await reading.execute(names)).scalars().all()
