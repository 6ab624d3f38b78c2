"""Batches go away: from callers at once, and from the database bit by bit, so that others write meanwhile."""

from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
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
    first = select(func.min(batch_items.c.place)).where(of_batch)
    while True:
        async with database.write() as connection:
            place = (await connection.execute(first)).scalar()
            if place is None:
                await connection.execute(delete(batches).where(batches.c.id == batch_id))
                return
            await connection.execute(delete(batch_items).where(of_batch, batch_items.c.place < place + _MAX_DELETED))
