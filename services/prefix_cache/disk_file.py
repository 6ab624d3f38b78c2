"""An SQLite file that is there again after a restart, whole after a crash, and begun anew when it is damaged.

SQLite's write-ahead log keeps the file consistent whenever the process ends; `max_page_count` bounds its size. The last
file that was damaged is kept beside the new one, for whoever wants to know what happened to the disk.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_log = logging.getLogger(__name__)
_PAGE_BYTES = 1 << 16
_SLACK = 1.25
"""The file may be larger than what is in it: pages are not always full."""
_SPARE_PAGES = 64
_DAMAGED = "damaged-"
_PARTS = ("", "-wal", "-shm")
"""Ends of the names of the files that a database consists of."""
T = TypeVar("T")


class DiskFile:
    """One database and the thread that uses it."""

    def __init__(
        self, path: Path, capacity_bytes: int, schema: str, recount: Callable[[sqlite3.Connection], None]
    ) -> None:
        """`recount` is called, on the thread, whenever what is in the file is not what was done to it."""
        self._path = path
        self._capacity_bytes = capacity_bytes
        self._schema = schema
        self._recount = recount
        self._database: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "disk-store")

    async def open(self) -> None:
        """Opens the file, or begins a new one. Raises OSError when its folder cannot be made."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await self.do(lambda _: None, None)

    async def do(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Runs work as one transaction on the thread; `otherwise` when that fails."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work, otherwise)

    async def close(self) -> None:
        """Ends it; everything is on stable storage then."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()

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
            _log.error("the disk store is damaged (%s); it is set aside, and a new one begun", error)
            self._begin_anew()
        return otherwise

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            database = sqlite3.connect(self._path, check_same_thread=False)
            self._database = database
            database.executescript(f"PRAGMA page_size = {_PAGE_BYTES}; PRAGMA journal_mode = WAL;")
            database.executescript("PRAGMA synchronous = NORMAL; PRAGMA cell_size_check = ON; PRAGMA cache_size = 64;")
            pages = int(self._capacity_bytes * _SLACK) // _PAGE_BYTES + _SPARE_PAGES
            database.execute(f"PRAGMA max_page_count = {pages}")
            database.executescript(self._schema)
            self._recount(database)
        return self._database

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _begin_anew(self) -> None:
        self._disconnect()
        for part in _PARTS:
            path = self._path.with_name(self._path.name + part)
            aside = self._path.with_name(_DAMAGED + path.name)
            try:
                aside.unlink(missing_ok=True)
                if path.exists():
                    path.rename(aside)
            except OSError as error:
                _log.error("%s could not be set aside: %s", path.name, error)
        try:
            self._connect()
        except sqlite3.Error as error:
            _log.error("no new disk store could be begun: %s", error)
