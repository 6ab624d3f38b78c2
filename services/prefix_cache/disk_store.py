"""Blocks in an SQLite file: bounded, there again after a restart, whole after a crash.

SQLite's write-ahead log keeps the file consistent whenever the process ends; `max_page_count` bounds its size.
A file that is damaged is put away and a new one begun: what is lost was computed once and can be again. Single damaged
blocks are found by their checksums.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from services.prefix_cache.block import Block
from services.prefix_cache.store import Usage

_log = logging.getLogger(__name__)
_PAGE_BYTES = 1 << 16
_SLACK = 1.25
"""The file may be larger than the blocks in it: pages are not always full."""
_SPARE_PAGES = 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, key BLOB NOT NULL, checksum INTEGER NOT NULL,
    size INTEGER NOT NULL, hit INTEGER NOT NULL DEFAULT 0, used REAL NOT NULL, UNIQUE (namespace, key));
CREATE INDEX IF NOT EXISTS by_worth ON blocks (namespace, hit, used);
CREATE TABLE IF NOT EXISTS data (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
"""
T = TypeVar("T")


class DiskStore:
    """The second tier. Blocks never asked for go before those that were, the longest unused first."""

    name = "disk"

    def __init__(self, folder: Path, capacity_bytes: int, quota_bytes: int) -> None:
        self._path = folder / "blocks.sqlite"
        self._capacity_bytes = capacity_bytes
        self._quota_bytes = min(quota_bytes, capacity_bytes)
        self._usages: dict[str, Usage] = {}
        self._database: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "disk-store")

    async def open(self) -> None:
        """Opens the file, or begins a new one. Raises OSError when the folder cannot be made."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await self._do(lambda _: None, None)

    async def get(self, namespace: str, key: bytes) -> Block | None:
        """See Store."""

        def read(database: sqlite3.Connection) -> Block | None:
            row = database.execute(
                "SELECT blocks.id, checksum, data FROM blocks JOIN data ON data.id = blocks.id "
                "WHERE namespace = ? AND key = ?",
                (namespace, key),
            ).fetchone()
            if row is None:
                return None
            database.execute("UPDATE blocks SET hit = 1, used = ? WHERE id = ?", (time.time(), row[0]))
            self._usage(namespace).num_hits += 1
            return Block(key, row[2], row[1] & (1 << 64) - 1)

        return await self._do(read, None)

    async def has(self, namespace: str, key: bytes) -> bool:
        """See Store."""

        def read(database: sqlite3.Connection) -> bool:
            query = "SELECT 1 FROM blocks WHERE namespace = ? AND key = ?"
            return database.execute(query, (namespace, key)).fetchone() is not None

        return await self._do(read, False)

    async def put(self, namespace: str, block: Block) -> bool:
        """See Store."""

        def write(database: sqlite3.Connection) -> bool:
            query = "SELECT 1 FROM blocks WHERE namespace = ? AND key = ?"
            if database.execute(query, (namespace, block.key)).fetchone():
                return True
            size = block.num_bytes
            if not self._make_room(database, namespace, size):
                return False
            signed = block.checksum - (1 << 64) if block.checksum >> 63 else block.checksum
            cursor = database.execute(
                "INSERT INTO blocks (namespace, key, checksum, size, used) VALUES (?, ?, ?, ?, ?)",
                (namespace, block.key, signed, size, time.time()),
            )
            database.execute("INSERT INTO data (id, data) VALUES (?, ?)", (cursor.lastrowid, block.data))
            usage = self._usage(namespace)
            usage.num_blocks += 1
            usage.num_bytes += size
            return True

        return await self._do(write, False)

    async def drop(self, namespace: str, key: bytes) -> None:
        """See Store."""

        def delete(database: sqlite3.Connection) -> None:
            row = database.execute(
                "SELECT id, size FROM blocks WHERE namespace = ? AND key = ?", (namespace, key)
            ).fetchone()
            if row is not None:
                self._delete(database, namespace, *row)
                self._usage(namespace).num_corrupt += 1

        await self._do(delete, None)

    async def clear(self, namespace: str) -> int:
        """See Store."""

        def delete(database: sqlite3.Connection) -> int:
            database.execute("DELETE FROM data WHERE id IN (SELECT id FROM blocks WHERE namespace = ?)", (namespace,))
            count = database.execute("DELETE FROM blocks WHERE namespace = ?", (namespace,)).rowcount
            usage = self._usage(namespace)
            usage.num_blocks = usage.num_bytes = 0
            return count

        return await self._do(delete, 0)

    async def usage(self, namespace: str) -> Usage:
        """See Store."""
        return self._usage(namespace)

    async def close(self) -> None:
        """See Store."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()

    async def _do(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Runs work as one transaction on the store's thread; `otherwise` when that fails."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work, otherwise)

    def _transact(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        try:
            database = self._connect()
            try:
                with database:
                    return work(database)
            except sqlite3.Error:
                self._recount(database)  # What the transaction had counted was not done.
                raise
        except sqlite3.OperationalError as error:
            _log.warning("the disk store could not do its work: %s", error)
        except sqlite3.DatabaseError as error:
            _log.error("the disk store is damaged (%s); beginning a new one", error)
            self._begin_anew()
        return otherwise

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect(self._path, check_same_thread=False)
            database.executescript(f"PRAGMA page_size = {_PAGE_BYTES}; PRAGMA journal_mode = WAL;")
            database.executescript("PRAGMA synchronous = NORMAL; PRAGMA cell_size_check = ON; PRAGMA cache_size = 64;")
            pages = int(self._capacity_bytes * _SLACK) // _PAGE_BYTES + _SPARE_PAGES
            database.execute(f"PRAGMA max_page_count = {pages}")
            database.executescript(_SCHEMA)
            self._recount(database)
            self._database = database
        return self._database

    def _recount(self, database: sqlite3.Connection) -> None:
        for usage in self._usages.values():
            usage.num_blocks = usage.num_bytes = 0
        rows = database.execute("SELECT namespace, COUNT(*), SUM(size) FROM blocks GROUP BY namespace")
        for namespace, count, size in rows:
            usage = self._usage(namespace)
            usage.num_blocks, usage.num_bytes = count, size

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _begin_anew(self) -> None:
        self._disconnect()
        self._usages.clear()
        for path in self._path.parent.glob(self._path.name + "*"):
            path.unlink(missing_ok=True)

    def _usage(self, namespace: str) -> Usage:
        return self._usages.setdefault(namespace, Usage())

    def _make_room(self, database: sqlite3.Connection, namespace: str, size: int) -> bool:
        usage = self._usage(namespace)
        others = sum(other.num_bytes for name, other in self._usages.items() if name != namespace)
        room = min(self._quota_bytes, self._capacity_bytes - others)
        if size > room:
            return False
        while usage.num_bytes + size > room:
            row = database.execute(
                "SELECT id, size FROM blocks WHERE namespace = ? ORDER BY hit, used LIMIT 1", (namespace,)
            ).fetchone()
            if row is None:
                return False
            self._delete(database, namespace, *row)
            usage.num_evictions += 1
        return True

    def _delete(self, database: sqlite3.Connection, namespace: str, row_id: int, size: int) -> None:
        database.execute("DELETE FROM data WHERE id = ?", (row_id,))
        database.execute("DELETE FROM blocks WHERE id = ?", (row_id,))
        usage = self._usage(namespace)
        usage.num_blocks -= 1
        usage.num_bytes -= size
