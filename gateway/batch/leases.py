"""Items go to gateways by leases, and come back as results: each is recorded and billed once, whoever ran it how often.

A lease is a number that nobody else has. What is recorded counts only while the item has the lease that it was run
with; what a gateway took and neither brought back nor prolonged in time is given to another one. Time is that of each
gateway's own watch: it is what has stayed the same for so long while it looked.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.batch.budget import affordable
from gateway.batch.endings import count, end_waiting, locked
from gateway.batch.states import COUNT_OF, RUNNABLE, RUNS, STOPPABLE, STOPPING, BatchState, ItemState
from gateway.batch.unchanged import Unchanged
from gateway.clock import time_of_day
from gateway.database.database import Database
from gateway.database.tables import batch_items, batches, tenants
from gateway.tenants.entry import Entry
from gateway.tenants.ledger import Ledger
from paceline.errors import UnavailableError

MAX_PAUSE_SECONDS = 60.0
"""Longest wait of an item that is given back."""
_MAX_BATCHES = 1000
_USED = ("num_prompt_tokens", "num_cached_tokens", "num_completion_tokens", "cost")


@dataclass(frozen=True, slots=True)
class Item:
    """One item that this gateway may run."""

    batch: str
    place: int
    custom_id: str
    is_chat: bool
    request: bytes
    num_attempts: int
    """This one counted."""
    num_crashes: int
    """Verifiers that it may have crashed."""
    lease: str
    tenant: str
    key_id: str
    pins: str

    @property
    def request_id(self) -> str:
        """Id of its request, however often it is run."""
        return f"{self.batch}-{self.place}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How an item ended here."""

    item: Item
    state: ItemState
    line: str
    """JSON of its result or error."""
    entry: Entry | None
    """What it used; None where it never ran."""


class Later(NamedTuple):
    """An item that is to be run again after a while."""

    seconds: float
    num_crashes: int
    is_fault: bool = False
    """Whether this counts as an attempt."""


class Leases:
    """Transactions that move items on."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        seconds: float,
        clock: Callable[[], float] = time_of_day,
        watch: Callable[[], float] = time.monotonic,
    ) -> None:
        """A lease holds for `seconds` by the watch of each that looks, unless it is prolonged."""
        self.seconds = seconds
        self._database = database
        self._ledger = ledger
        self._clock = clock
        self._unchanged: Unchanged[tuple[str, float]] = Unchanged(seconds, watch)

    async def claim(self, most: int) -> list[Item]:
        """Takes items to run: of the tenants who run least for their weight, of a tenant's batch that expires first,
        and there those together whose prompts begin alike.
        """
        now = self._clock()
        async with self._database.read() as connection:
            if not await self._runnable(connection):
                return []
        claimed: list[Item] = []
        async with self._database.write() as connection:
            left: dict[str, list[Any]] = {}
            for row in await self._runnable(connection):
                left.setdefault(row.tenant, []).append(row)
            runs = await self._running(connection)
            while left and len(claimed) < most:
                tenant = min(left, key=lambda name: (runs.get(name, 0) / (left[name][0].weight or 1.0), name))
                share = max(1, (most - len(claimed)) // len(left))
                items = await self._take(connection, left[tenant][0], share, now)
                claimed += items
                runs[tenant] = runs.get(tenant, 0) + len(items)
                if len(items) < share:
                    left[tenant].pop(0)
                    if not left[tenant]:
                        del left[tenant]
        return claimed

    async def renew(self, leases: Sequence[str], *, prolong: bool) -> Mapping[str, BatchState]:
        """How the batches of these leases are that still hold; prolongs them, if that is wanted."""
        held = batch_items.c.lease.in_(leases) & RUNS
        if prolong:
            async with self._database.write() as connection:
                await _change(connection, held, lease_until=self._clock() + self.seconds)
        states = select(batch_items.c.lease, batches.c.state).join(batches).where(held)
        async with self._database.read() as connection:
            return {row.lease: BatchState(row.state) for row in await connection.execute(states)}

    async def record(self, ended: Iterable[Ended]) -> int:
        """Keeps how items ended, with what they used; returns how many still had their leases."""
        now, num_kept = self._clock(), 0
        ordered = sorted(ended, key=lambda each: (each.item.batch, each.item.place))
        groups = {batch_id: list(group) for batch_id, group in groupby(ordered, key=lambda each: each.item.batch)}
        entries: list[Entry] = []
        async with self._database.write() as connection:
            # All rows are locked in the same order by everybody, and those of the ledger after them.
            rows = {batch_id: await locked(connection, batch_id) for batch_id in groups}
            for batch_id, row in rows.items():
                if row is None:
                    continue
                kept, order = [], row.last_order
                for each in groups[batch_id]:
                    if await self._end(connection, each, order + 1):
                        order += 1
                        kept.append(each)
                entries += [each.entry for each in kept if each.entry is not None]
                num_kept += len(kept)
                if kept:
                    await count(connection, batch_id, _sums(kept), len(kept), order, now)
            if entries:
                await self._ledger.write(connection, entries)
        self._ledger.written(entries)
        return num_kept

    async def release(self, items: Mapping[Item, Later]) -> None:
        """Gives items back, to be run again after a while."""
        async with self._database.write() as connection:
            for item, later in items.items():
                values = {
                    "state": ItemState.WAITING.value,
                    "lease": None,
                    "num_attempts": item.num_attempts if later.is_fault else item.num_attempts - 1,
                    "num_crashes": later.num_crashes,
                    "not_before": self._clock() + later.seconds,
                }
                await connection.execute(update(batch_items).where(_held(item)).values(**values))

    async def sweep(self) -> None:
        """Gives back what was not brought back in time, has batches expire, and ends what waits in those that stop."""
        try:
            await self._give_away()
        except UnavailableError:
            self._unchanged.forget()  # Whoever has a lease could not prolong it either.
            raise
        now = self._clock()
        over = batches.c.state.in_([state.value for state in STOPPABLE]) & (batches.c.expires_at <= now)
        stopping = batches.c.state.in_([state.value for state in STOPPING])
        async with self._database.read() as connection:
            changing = list((await connection.execute(select(batches.c.id).where(over | stopping))).scalars())
        for batch_id in sorted(changing):
            has_more = True
            while has_more:
                async with self._database.write() as connection:
                    expired = update(batches).where((batches.c.id == batch_id) & over)
                    await connection.execute(expired.values(state=BatchState.EXPIRING.value))
                    has_more = await end_waiting(connection, batch_id, now)

    async def _give_away(self) -> None:
        """Has items wait again whose leases nobody has prolonged for as long as they hold."""
        held = batch_items.c["lease", "lease_until"]
        async with self._database.read() as connection:
            rows = (await connection.execute(select(*held).where(RUNS))).all()
        if late := self._unchanged.look((row.lease, row.lease_until) for row in rows):
            async with self._database.write() as connection:
                # That a gateway was gone is no fault of the item's.
                waiting = {"state": ItemState.WAITING.value, "num_attempts": batch_items.c.num_attempts - 1}
                await _change(connection, RUNS & tuple_(*held).in_(late), lease=None, **waiting)

    async def _runnable(self, connection: AsyncConnection) -> Sequence[Any]:
        """Batches of which items may begin, those that expire first in front."""
        columns = batches.c["id", "tenant", "key_id", "pins", "state", "max_cost"]
        wanted = select(*columns, tenants.c.weight).outerjoin(tenants, tenants.c.id == batches.c.tenant)
        runnable = wanted.where(batches.c.state.in_([state.value for state in RUNNABLE]))
        return (
            await connection.execute(runnable.order_by(batches.c.expires_at, batches.c.id).limit(_MAX_BATCHES))
        ).all()

    async def _running(self, connection: AsyncConnection) -> dict[str, int]:
        """Items that run, by tenant."""
        counts = select(batches.c.tenant, func.count()).join(batch_items).where(RUNS)
        return {row[0]: row[1] for row in await connection.execute(counts.group_by(batches.c.tenant))}

    async def _take(self, connection: AsyncConnection, batch: Any, most: int, now: float) -> list[Item]:
        if batch.state == BatchState.QUEUED:
            # The batch's row is locked before those of its items, as by all others.
            queued = (batches.c.id == batch.id) & (batches.c.state == BatchState.QUEUED.value)
            begun = {"state": BatchState.RUNNING.value, "started_at": now}
            await connection.execute(update(batches).where(queued).values(**begun))
        waiting = (batch_items.c.batch == batch.id) & (batch_items.c.state == ItemState.WAITING)
        # What is to wait for longer than anything does was given back by a clock that was another one then.
        may_begin = (batch_items.c.not_before <= now) | (batch_items.c.not_before > now + MAX_PAUSE_SECONDS)
        wanted = select(batch_items).where(waiting & may_begin)
        ordered = wanted.order_by(batch_items.c.affinity, batch_items.c.place).limit(most)
        rows: Sequence[Any] = (await connection.execute(ordered.with_for_update(skip_locked=True))).all()
        if batch.max_cost is not None:
            rows = await affordable(connection, batch.id, rows, now)
        taken = [
            Item(
                *(batch.id, row.place, row.custom_id, row.is_chat, row.request, row.num_attempts + 1, row.num_crashes),
                *(secrets.token_hex(16), batch.tenant, batch.key_id, batch.pins),
            )
            for row in rows
        ]
        for item in taken:
            place = (batch_items.c.batch == item.batch) & (batch_items.c.place == item.place)
            values = {"state": ItemState.RUNNING.value, "lease": item.lease, "num_attempts": item.num_attempts}
            await connection.execute(update(batch_items).where(place).values(lease_until=now + self.seconds, **values))
        return taken

    @staticmethod
    async def _end(connection: AsyncConnection, ended: Ended, order: int) -> bool:
        values = {"state": ended.state.value, "line": ended.line, "ended_order": order, "lease": None}
        done = await connection.execute(update(batch_items).where(_held(ended.item)).values(**values))
        return bool(done.rowcount)


def _sums(ended: Sequence[Ended]) -> dict[str, int]:
    """What these items add to their batch's counts."""
    sums = dict.fromkeys((*COUNT_OF.values(), *_USED), 0)
    for each in ended:
        sums[COUNT_OF[each.state]] += 1
        used = each.entry.row() if each.entry is not None else {}
        for name in _USED:
            sums[name] += used.get(name, 0)
    return sums


async def _change(connection: AsyncConnection, which: ColumnElement[bool], **values: Any) -> None:
    """Changes items, but for those that somebody else is changing at this moment."""
    place = batch_items.c["batch", "place"]
    free = select(*place).where(which).with_for_update(skip_locked=True)
    await connection.execute(update(batch_items).where(tuple_(*place).in_(free), which).values(**values))


def _held(item: Item) -> Any:
    """That an item still has the lease."""
    at_place = (batch_items.c.batch == item.batch) & (batch_items.c.place == item.place)
    return at_place & (batch_items.c.lease == item.lease) & RUNS
