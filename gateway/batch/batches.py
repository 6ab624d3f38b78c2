"""Tenants' batches as they see them: looked at, listed, cancelled, paused, deleted. Another's do not exist."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, select, tuple_, update

from gateway.batch.endings import end_waiting, locked
from gateway.batch.removal import NOBODY, hide, remove
from gateway.batch.states import ENDED, RUNNABLE, STOPPABLE, STOPPING, BatchState
from gateway.clock import time_of_day
from gateway.database.database import Database
from gateway.database.tables import batches
from paceline.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

_MAX_PAGE = 100
_PAGE = 20


class Page(NamedTuple):
    """Some of a tenant's batches, newest first."""

    rows: Sequence[Row[Any]]
    next_token: str
    """Empty on the last page."""


class Batches:
    """Reads and changes, each a transaction of its own. Rows are those of the table."""

    def __init__(self, database: Database, clock: Callable[[], float] = time_of_day) -> None:
        self._database = database
        self._clock = clock

    async def get(self, tenant: str, batch_id: str) -> Row[Any]:
        """Raises NotFoundError."""
        of_tenant = (batches.c.id == batch_id) & (batches.c.tenant == tenant)
        async with self._database.read() as connection:
            row = (await connection.execute(select(batches).where(of_tenant))).first()
        if row is None:
            raise NotFoundError("batch", batch_id)
        return row

    async def find_by_key(self, tenant: str, idempotency_key: str) -> "Row[Any] | None":
        """The one that was made with this key, if there is one."""
        made = (batches.c.tenant == tenant) & (batches.c.idempotency_key == idempotency_key)
        async with self._database.read() as connection:
            return (await connection.execute(select(batches).where(made))).first()

    async def page(self, tenant: str, size: int, token: str, states: Sequence[BatchState]) -> Page:
        """A page that stays what it is while batches are added. Raises InvalidArgumentError for a token of no page."""
        size = min(size or _PAGE, _MAX_PAGE)
        wanted = select(batches).where(batches.c.tenant == tenant)
        if states:
            wanted = wanted.where(batches.c.state.in_([state.value for state in states]))
        if token:
            created, _, last = token.partition("/")
            try:
                wanted = wanted.where(tuple_(batches.c.created_at, batches.c.id) < tuple_(float(created), last))
            except ValueError as error:
                raise InvalidArgumentError("page_token", "is none that a page has said") from error
        ordered = wanted.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(size + 1)
        async with self._database.read() as connection:
            rows = (await connection.execute(ordered)).all()
        more = len(rows) > size
        return Page(rows[:size], f"{rows[size - 1].created_at!r}/{rows[size - 1].id}" if more else "")

    async def cancel(self, tenant: str, batch_id: str) -> Row[Any]:
        """Has a batch stop; one that has ended or is stopping stays as it is.

        Raises NotFoundError, and FailedPreconditionError for one that is being uploaded.
        """
        await self.get(tenant, batch_id)
        now = self._clock()
        async with self._database.write() as connection:
            row = await locked(connection, batch_id)
            if row is not None and row.state == BatchState.VALIDATING:
                raise FailedPreconditionError(f"batch {batch_id} is being uploaded; end the upload instead")
            if row is not None and row.state in STOPPABLE:
                await connection.execute(
                    update(batches)
                    .where(batches.c.id == batch_id)
                    .values(state=BatchState.CANCELLING.value, cancelled_at=now)
                )
                await end_waiting(connection, batch_id, now)
        return await self.get(tenant, batch_id)

    async def pause(self, tenant: str, batch_id: str) -> Row[Any]:
        """Has no more items begin. Raises NotFoundError, FailedPreconditionError."""
        return await self._switch(tenant, batch_id, RUNNABLE, lambda _: BatchState.PAUSED, BatchState.PAUSED)

    async def resume(self, tenant: str, batch_id: str) -> Row[Any]:
        """Has a paused batch go on. Raises NotFoundError, FailedPreconditionError."""

        def before(row: Row[Any]) -> BatchState:
            return BatchState.QUEUED if row.started_at is None else BatchState.RUNNING

        return await self._switch(tenant, batch_id, (BatchState.PAUSED,), before, *RUNNABLE)

    async def delete(self, tenant: str, batch_id: str) -> None:
        """Deletes a batch that has ended. Raises NotFoundError, FailedPreconditionError."""
        await self.get(tenant, batch_id)
        async with self._database.write() as connection:
            row = await locked(connection, batch_id)
            if row is not None and row.state not in ENDED:
                raise FailedPreconditionError(f"batch {batch_id} is {row.state}; cancel it first")
            await hide(connection, batches.c.id == batch_id)
        await remove(self._database, batch_id)

    async def drop_old(self, seconds: float) -> None:
        """Deletes batches that ended so long ago, and what is left of those that nobody has any more."""
        old = batches.c.state.in_([state.value for state in ENDED]) & (batches.c.ended_at < self._clock() - seconds)
        async with self._database.read() as connection:
            found = select(batches.c.id).where(old | (batches.c.tenant == NOBODY)).limit(_MAX_PAGE)
            ids = list((await connection.execute(found)).scalars())
        for batch_id in ids:
            await remove(self._database, batch_id)

    async def _switch(
        self,
        tenant: str,
        batch_id: str,
        possible: Sequence[BatchState],
        state: Callable[[Row[Any]], BatchState],
        *already: BatchState,
    ) -> Row[Any]:
        await self.get(tenant, batch_id)
        async with self._database.write() as connection:
            row = await locked(connection, batch_id)
            if row is None:
                raise NotFoundError("batch", batch_id)
            if row.state in possible:
                of_batch = batches.c.id == batch_id
                await connection.execute(update(batches).where(of_batch).values(state=state(row).value))
            elif row.state not in already:
                verb = "has ended" if row.state in ENDED else "is ending" if row.state in STOPPING else "is uploaded"
                raise FailedPreconditionError(f"batch {batch_id} {verb}: it is {row.state}")
        return await self.get(tenant, batch_id)
