"""What outlives a gateway: SQLite in a file, or PostgreSQL that gateways share, behind the same statements.

A writing transaction of SQLite takes the file's one lock at its beginning, so that it never fails half way for want of
it; writers of one process wait for each other in order, and those of others in the lock's own queue.
"""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Connection, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from paceline.errors import UnavailableError

_log = logging.getLogger(__name__)
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_LOCK_SECONDS = 30.0
"""How long another process may keep SQLite's lock."""
_LOG_TRIES = 100
_CONNECTIONS = 5
_CONNECT_SECONDS = 5.0
_COMMAND_SECONDS = 30.0
_RETRY_AFTER_SECONDS = 1.0
_PASSING = ("08", "40", "53", "57", "58")
"""Classes of PostgreSQL's errors that no statement is to blame for: connections, transactions that met, want of room or
memory, operators, the system."""
_DISK_FULL = "53100"
_WRITES = "paceline_writes"
_INSERT: TypeAlias = "sqlite.Insert | postgresql.Insert"


class Database:
    """One database. What it cannot do for now is UnavailableError."""

    def __init__(self, url: str) -> None:
        """`url` is "sqlite:///FILE" or "postgresql://USER:PASSWORD@HOST/NAME". Raises ValueError for another kind."""
        parsed = _parsed(url)
        driver = _DRIVERS[parsed.drivername]
        self.is_sqlite = driver.startswith("sqlite")
        self._writing = asyncio.Lock()
        self._away: tuple[type[Exception], ...] = (
            OperationalError, InterfaceError, InternalError, PoolTimeoutError, OSError, TimeoutError,
        )  # fmt: skip
        if self.is_sqlite:
            self._engine = create_async_engine(
                _on_disk(parsed.set(drivername=driver)),
                hide_parameters=True,
                pool_size=_CONNECTIONS,
                connect_args={"factory": _SqliteConnection},
            )
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
        else:
            import asyncpg

            # What is raised while it connects is not wrapped.
            self._away += (asyncpg.PostgresError, asyncpg.InterfaceError)
            self._engine = create_async_engine(
                parsed.set(drivername=driver),
                hide_parameters=True,
                pool_size=2 * _CONNECTIONS,
                pool_pre_ping=True,
                pool_timeout=_CONNECT_SECONDS,
                connect_args={"timeout": _CONNECT_SECONDS, "command_timeout": _COMMAND_SECONDS},
            )

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads: one state of the database."""
        with self._told():
            async with self._engine.connect() as connection:
                if not self.is_sqlite:  # Else each statement sees what was committed before it.
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed with the end of the block, or not at all where the block raises."""
        async with AsyncExitStack() as stack:
            if self.is_sqlite:
                await stack.enter_async_context(self._writing)
            stack.enter_context(self._told())
            connection = await stack.enter_async_context(self._engine.connect())
            await connection.execution_options(**{_WRITES: True})
            await stack.enter_async_context(connection.begin())
            yield connection

    def insert_new(self, table: Table) -> _INSERT:
        """An insertion that leaves rows out which are there already, by any of their unique columns."""
        return self._insert(table).on_conflict_do_nothing()

    def insert_or_add(self, table: Table, sums: Sequence[str]) -> _INSERT:
        """An insertion that adds these columns to those of the row of the same primary key, where there is one."""
        insert = self._insert(table)
        added = {name: table.c[name] + insert.excluded[name] for name in sums}
        return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=added)

    def insert_or_replace(self, table: Table, columns: Sequence[str]) -> _INSERT:
        """An insertion that sets these columns of the row of the same primary key, where there is one."""
        insert = self._insert(table)
        set_ = {name: insert.excluded[name] for name in columns}
        return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=set_)

    async def close(self) -> None:
        """Ends all connections."""
        await self._engine.dispose()

    def _insert(self, table: Table) -> _INSERT:
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Has everyone be told the same of a database that is away: drivers name users and hosts."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, self._away) and not _passes(error):
                raise
            _log.warning("the database failed: %s", error)
            problem = "has no room for more" if _is_full(error) else "cannot be used"
            raise UnavailableError(f"the database {problem} for now", _RETRY_AFTER_SECONDS) from error


class _SqliteConnection(sqlite3.Connection):
    """Ends its transaction when it is closed. SQLite itself keeps that, and the file's lock, while a cursor has rows
    left to read: that of a reader who was cancelled has them until the garbage collector comes by.
    """

    def close(self) -> None:
        with suppress(sqlite3.Error):  # It may be closed already.
            self.rollback()
        super().close()


def check_url(url: str) -> None:
    """Raises ValueError for what is no address of a database that can be used."""
    _parsed(url)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("the address of a database is no URL") from error
    if parsed.drivername not in _DRIVERS:
        raise ValueError(f"a database is sqlite:///FILE or postgresql://..., not {parsed.drivername}://")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("sqlite:///FILE has to name a file")
    return parsed


def _passes(error: Exception) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or str(_code(error)).startswith(_PASSING)


def _is_full(error: Exception) -> bool:
    return _code(error) in (_DISK_FULL, sqlite3.SQLITE_FULL)


def _code(error: Exception) -> str | int | None:
    """PostgreSQL's code of an error, or SQLite's."""
    raised = error.orig if isinstance(error, DBAPIError) else error
    code: str | int | None = getattr(raised, "sqlstate", None) or getattr(raised, "sqlite_errorcode", None)
    return code


def _on_disk(url: URL) -> URL:
    """Makes the folder of the file, which holds digests of keys: it is its owner's alone."""
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return url


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Transactions begin where we say so, changes of tables included.
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(_LOCK_SECONDS * 1000)}")
    _keep_a_log(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _keep_a_log(cursor: Any) -> None:
    """Has SQLite write ahead to a log. The change to it, of a new file, fails at once where others are at the file."""
    for tries_left in range(_LOG_TRIES, -1, -1):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if not tries_left:
                raise
            cursor.execute("BEGIN IMMEDIATE")  # This waits for them.
            cursor.execute("COMMIT")
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
