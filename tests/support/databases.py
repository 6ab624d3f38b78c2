"""Databases to test with: made once and copied, a fresh one a test."""

import asyncio
import atexit
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import pytest

from gateway.database.database import Database
from gateway.database.migrate import migrate
from support.postgres_server import PostgresServer

_TEMPLATE = "template_paceline"
_numbers = count()


def _run_apart(work: Coroutine[None, None, None]) -> None:
    """Runs it to its end on a loop of its own: whoever asks may be on one already."""
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    thread.join()


async def migrated(url: str) -> None:
    """Brings a database to the newest migration."""
    database = Database(url)
    await migrate(database)
    await database.close()


@cache
def _template() -> Path:
    """An SQLite file at the newest migration, for the whole run."""
    folder = tempfile.mkdtemp(prefix="paceline-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "template.sqlite"
    _run_apart(migrated(f"sqlite:///{path}"))
    return path


def new_sqlite_url(folder: Path | None = None) -> str:
    """Address of a new SQLite file at the newest migration; without a folder it lies where the run's own lie."""
    template = _template()
    path = (folder or template.parent) / f"gateway-{next(_numbers)}.sqlite"
    return f"sqlite:///{shutil.copy(template, path)}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with a template at the newest migration."""
    server = PostgresServer()

    async def prepare() -> None:
        await server.start()
        await server.execute(f"CREATE DATABASE {_TEMPLATE}")
        await migrated(server.url(_TEMPLATE))

    _run_apart(prepare())
    yield server
    server.stop()


async def new_postgres_url(server: PostgresServer, *, template: str = _TEMPLATE) -> str:
    """Address of a new database of a server."""
    name = f"test_{next(_numbers)}"
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a fresh database of either kind."""
    if request.param == "sqlite":
        return new_sqlite_url(tmp_path)
    return await new_postgres_url(request.getfixturevalue("postgres"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh database of either kind."""
    made = Database(database_url)
    yield made
    await made.close()
