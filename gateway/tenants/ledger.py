"""What was used, and what it cost: each request once, however often it is written.

Entries are written behind the requests' backs, many in one transaction. While the database is away they wait in memory.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.clock import time_of_day
from gateway.database.database import Database
from gateway.database.tables import SUMS, usage_days, usage_requests
from gateway.tenants.entry import DAY_SECONDS, Entry, day_of
from gateway.tenants.fresh import Fresh
from gateway.tenants.resumed import write_late, write_resumed
from paceline.errors import UnavailableError
from services.common.backoff import Backoff

_log = logging.getLogger(__name__)
_MAX_WAITING = 100_000
"""Entries that are kept while the database is away; those beyond are logged, which is all that is left of them."""
_MAX_AT_ONCE = 500
_MAX_SPENT_SECONDS = 2.0
_PRUNE_SECONDS = 600.0
_MAX_PRUNED = 10_000
"""Rows that one transaction deletes."""
_SPARE_SECONDS = DAY_SECONDS
"""Rows are kept so much longer than entries wait to be written: clocks differ, and who repeats one has to find it."""
_ACCOUNT = ("tenant", "day", "key_id", "model", "adapter", "kind")


class Ledger:
    """Takes entries in, and answers what was spent."""

    def __init__(
        self, database: Database, clock: Callable[[], float] = time_of_day, keep_seconds: float = float("inf")
    ) -> None:
        """Requests are known for `keep_seconds` and a day after their end; then their sums are what is left."""
        self._database = database
        self._clock = clock
        self._keep_seconds = keep_seconds
        self._waiting: list[Entry] = []
        self._has_some = asyncio.Event()
        self._num_recorded = self._num_written = 0
        self._changed = asyncio.Condition()
        self._spent: Fresh[tuple[str, str], int] = Fresh(self._read_spent, _MAX_SPENT_SECONDS, float("inf"))

    def record(self, entry: Entry) -> None:
        """Has an entry written soon."""
        if len(self._waiting) >= _MAX_WAITING:
            _log.error("the ledger is full; not written: %s", entry.row())
            return
        self._waiting.append(entry)
        self._num_recorded += 1
        self._has_some.set()

    async def write(self, connection: AsyncConnection, entries: Sequence[Entry]) -> None:
        """Writes entries in a transaction of the caller's: each once, whatever was written before."""
        counted = await self._write_begun([entry for entry in entries if entry.resumed is None], connection)
        for entry in entries:
            if entry.resumed is not None:
                counted += await write_resumed(connection, self._database, entry, entry.resumed)
        sums: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in counted:
            account = tuple(row[name] for name in _ACCOUNT)
            total = sums.setdefault(account, dict(zip(_ACCOUNT, account, strict=True)) | dict.fromkeys(SUMS, 0))
            for name in SUMS:
                total[name] += row[name]
        if sums:
            ordered = [sums[account] for account in sorted(sums, key=repr)]
            await connection.execute(self._database.insert_or_add(usage_days, SUMS), ordered)

    async def _write_begun(self, entries: Sequence[Entry], connection: AsyncConnection) -> list[dict[str, Any]]:
        """Writes what was begun here; returns the rows that are new."""
        if not entries:
            return []
        by_id = {entry.request_id: entry for entry in sorted(entries, key=lambda entry: entry.request_id)}
        # Who writes the same request meanwhile waits for this transaction, or this one for theirs.
        new = self._database.insert_new(usage_requests).returning(usage_requests.c.request_id)
        rows = {request_id: entry.row() for request_id, entry in by_id.items()}
        written = set((await connection.execute(new, list(rows.values()))).scalars())
        others = [entry for request_id, entry in by_id.items() if request_id not in written]
        late = await write_late(connection, self._database, others) if others else []
        return [*late, *(row for request_id, row in rows.items() if request_id in written)]

    def written(self, entries: Sequence[Entry]) -> None:
        """Says that a transaction with these entries was committed: what was spent is read anew."""
        for tenant in {entry.tenant for entry in entries if entry.cost}:
            self._spent.expire((tenant, day_of(self._clock())[:7]))

    async def flushed(self, seconds: float) -> None:
        """Returns once all that was recorded so far is written, or after a while."""
        target = self._num_recorded
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self._num_written >= target)

    @asynccontextmanager
    async def running(self, last_seconds: float = 5.0) -> AsyncIterator[None]:
        """Writes while the block lasts, and what is left after it."""
        writer = asyncio.create_task(self._run())
        try:
            yield
        finally:
            await self.flushed(last_seconds)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            for entry in self._waiting:
                _log.error("the database is away; not written: %s", entry.row())

    async def spent_this_month(self, tenant: str) -> int:
        """What a tenant's requests of this month (UTC) cost so far, what waits to be written included."""
        month = day_of(self._clock())[:7]
        waiting = sum(entry.cost for entry in self._waiting if entry.tenant == tenant)
        return await self._spent.get((tenant, month)) + waiting

    async def prune(self) -> None:
        """Deletes rows of requests that ended long ago, again and again, for as long as it is let."""
        while True:
            try:
                while await self.prune_some() == _MAX_PRUNED:
                    pass
            except UnavailableError as error:
                _log.warning("old rows of the ledger are deleted later: %s", error)
            await asyncio.sleep(_PRUNE_SECONDS)

    async def prune_some(self) -> int:
        """Deletes some of them, and returns how many: others write meanwhile."""
        old = usage_requests.c.ended_at < self._clock() - self._keep_seconds - _SPARE_SECONDS
        some = select(usage_requests.c.request_id).where(old).limit(_MAX_PRUNED)
        async with self._database.write() as connection:
            gone = await connection.execute(delete(usage_requests).where(usage_requests.c.request_id.in_(some)))
            return gone.rowcount

    async def _run(self) -> None:
        backoff = Backoff(0.1, 2.0)
        while True:
            await self._has_some.wait()
            entries = self._waiting[:_MAX_AT_ONCE]
            known = [entry for entry in entries if self._is_known(entry)]
            try:
                async with self._database.write() as connection:
                    await self.write(connection, known)
            except UnavailableError:
                await asyncio.sleep(backoff.failed())
                continue
            except Exception:
                # One that cannot be written must not keep the others from being so.
                entries = entries[: entries.index(known[0]) + 1]
                await self._write_alone(known[0])
            backoff.worked()
            self.written(entries)
            del self._waiting[: len(entries)]
            if not self._waiting:
                self._has_some.clear()
            async with self._changed:
                self._num_written += len(entries)
                self._changed.notify_all()

    def _is_known(self, entry: Entry) -> bool:
        """Whether it would be known if it was written before: what was begun to be written may have been."""
        is_known = entry.ended_at >= self._clock() - self._keep_seconds
        if not is_known:
            _log.error("has waited too long to be written to the ledger: %s", entry.row())
        return is_known

    async def _write_alone(self, entry: Entry) -> None:
        try:
            async with self._database.write() as connection:
                await self.write(connection, [entry])
        except Exception:
            _log.exception("cannot be written to the ledger: %s", entry.row())

    async def _read_spent(self, key: tuple[str, str]) -> int:
        tenant, month = key
        of_month = usage_days.c.day.between(f"{month}-01", f"{month}-31")
        total = select(func.sum(usage_days.c.cost)).where(usage_days.c.tenant == tenant, of_month)
        async with self._database.read() as connection:
            return int((await connection.execute(total)).scalar_one() or 0)
