"""Blocks in an SQLite file: bounded, there again after a restart.

What is lost with a damaged file was computed once and can be again. Single damaged blocks are found by their checksums.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from services.prefix_cache.block import Block
from services.prefix_cache.disk_file import DiskFile
from services.prefix_cache.shares import Held, Shares
from services.prefix_cache.store import Store, Usage, Usages

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, key BLOB NOT NULL, checksum INTEGER NOT NULL,
    size INTEGER NOT NULL, hit INTEGER NOT NULL DEFAULT 0, used REAL NOT NULL, UNIQUE (namespace, key));
CREATE INDEX IF NOT EXISTS by_worth ON blocks (namespace, hit, used);
CREATE TABLE IF NOT EXISTS data (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
"""
_EXPIRED_AT_ONCE = 256
"""Others have their turns on the thread between."""


class DiskStore(Store):
    """The second tier. Whose block goes when it is full: see shares.py.

    Of those the blocks never asked for go before those that were, the longest unused first.
    """

    name = "disk"

    def __init__(
        self,
        folder: Path,
        capacity_bytes: int,
        quota_bytes: int,
        idle_seconds: float = float("inf"),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._shares = Shares(capacity_bytes, quota_bytes)
        self._usages = Usages()
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._file = DiskFile(folder / "blocks.sqlite", capacity_bytes, _SCHEMA, self._recount)

    async def open(self) -> None:
        """Opens the file, or begins a new one. Raises OSError when the folder cannot be made."""
        await self._file.open()

    async def find(self, namespace: str, keys: Sequence[bytes]) -> list[Block | None]:
        """See Store."""

        def read(database: sqlite3.Connection) -> list[Block | None]:
            return [self._read(database, namespace, key) for key in keys]

        return await self._file.do(read, [None] * len(keys))

    async def which(self, namespace: str, keys: Sequence[bytes]) -> set[bytes]:
        """See Store."""

        def read(database: sqlite3.Connection) -> set[bytes]:
            query = "SELECT 1 FROM blocks WHERE namespace = ? AND key = ?"
            return {key for key in keys if database.execute(query, (namespace, key)).fetchone()}

        return await self._file.do(read, set())

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
                (namespace, block.key, signed, size, self._clock()),
            )
            database.execute("INSERT INTO data (id, data) VALUES (?, ?)", (cursor.lastrowid, block.data))
            self._shares.add(namespace, size)
            return True

        return await self._file.do(write, False)

    async def drop(self, namespace: str, key: bytes) -> None:
        """See Store."""

        def delete(database: sqlite3.Connection) -> None:
            query = "SELECT id, size FROM blocks WHERE namespace = ? AND key = ?"
            row = database.execute(query, (namespace, key)).fetchone()
            if row is not None:
                self._delete(database, namespace, *row)
                self._usages[namespace].num_corrupt += 1

        await self._file.do(delete, None)

    async def clear(self, namespace: str) -> int:
        """See Store."""

        def delete(database: sqlite3.Connection) -> int:
            database.execute("DELETE FROM data WHERE id IN (SELECT id FROM blocks WHERE namespace = ?)", (namespace,))
            count = database.execute("DELETE FROM blocks WHERE namespace = ?", (namespace,)).rowcount
            self._recount(database)
            return count

        return await self._file.do(delete, 0)

    async def expire(self) -> None:
        """See Store."""

        def delete(database: sqlite3.Connection) -> int:
            query = "SELECT namespace, id, size FROM blocks WHERE used < ? LIMIT ?"
            rows = database.execute(query, (self._clock() - self._idle_seconds, _EXPIRED_AT_ONCE)).fetchall()
            for row in rows:
                self._delete(database, *row)
            return len(rows)

        while await self._file.do(delete, 0):
            continue

    async def usage(self, namespace: str) -> Usage:
        """See Store. The accounts are the thread's."""

        def read(_: sqlite3.Connection) -> Usage:
            held = self._shares[namespace]
            return replace(self._usages[namespace], num_blocks=held.num_blocks, num_bytes=held.num_bytes)

        return await self._file.do(read, Usage())

    async def close(self) -> None:
        """See Store."""
        await self._file.close()

    def _read(self, database: sqlite3.Connection, namespace: str, key: bytes) -> Block | None:
        row = database.execute(
            "SELECT blocks.id, checksum, data FROM blocks JOIN data ON data.id = blocks.id "
            "WHERE namespace = ? AND key = ?",
            (namespace, key),
        ).fetchone()
        if row is None:
            return None
        database.execute("UPDATE blocks SET hit = 1, used = ? WHERE id = ?", (self._clock(), row[0]))
        self._usages[namespace].num_hits += 1
        return Block(key, row[2], row[1] & (1 << 64) - 1)

    def _recount(self, database: sqlite3.Connection) -> None:
        rows = database.execute("SELECT namespace, COUNT(*), SUM(size) FROM blocks GROUP BY namespace")
        self._shares.replace({namespace: Held(count, size) for namespace, count, size in rows})

    def _make_room(self, database: sqlite3.Connection, namespace: str, size: int) -> bool:
        if not self._shares.fits(size):
            return False
        while (giving := self._shares.gives_way(namespace, size)) is not None:
            query = "SELECT id, size FROM blocks WHERE namespace = ? ORDER BY hit, used LIMIT 1"
            row = database.execute(query, (giving,)).fetchone()
            if row is None:
                return False
            self._delete(database, giving, *row)
            self._usages[giving].num_evictions += 1
        return True

    def _delete(self, database: sqlite3.Connection, namespace: str, row_id: int, size: int) -> None:
        database.execute("DELETE FROM data WHERE id = ?", (row_id,))
        database.execute("DELETE FROM blocks WHERE id = ?", (row_id,))
        self._shares.remove(namespace, size)
