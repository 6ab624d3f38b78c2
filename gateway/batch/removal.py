"""Batches go away: from callers at once, and from the database bit by bit, so that others write meanwhile."""

from typing import Any

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.batch.states import BatchState
from gateway.database.database import Database
from gateway.database.tables import batch_items, batches

NOBODY = ""
"""Tenant of what is being deleted."""
_HIDDEN: dict[str, Any] = {"tenant": NOBODY, "idempotency_key": None, "state": BatchState.CANCELLED.value}
_MAX_DELETED = 20_000
"""Items that one transaction deletes."""


async def hide(connection: AsyncConnection, which: ColumnElement[bool]) -> None:
    """From here on nobody has these batches, nor are their idempotency keys taken; what is left of them is deleted by
    `remove`, or by the next sweep.
    """
    await connection.execute(update(batches).where(which).values(**_HIDDEN))


async def remove(database: Database, batch_id: str) -> None:
    """Deletes a batch with all of its items. Raises UnavailableError; the rest is for another time then."""
    of_batch = batch_items.c.batch == batch_id
    others = batch_items.alias()
    some = select(others.c.place).where(others.c.batch == batch_id).limit(_MAX_DELETED)
    while True:
        async with database.write() as connection:
            gone = await connection.execute(delete(batch_items).where(of_batch, batch_items.c.place.in_(some)))
            if gone.rowcount < _MAX_DELETED:
                await connection.execute(delete(batches).where(batches.c.id == batch_id))
                return
