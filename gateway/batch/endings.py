"""Items end, and with the last of them their batch: always inside a transaction that holds the batch's row."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.batch.states import COUNT_OF, END_OF, BatchState, ItemState
from gateway.database.tables import batch_items, batches


async def locked(connection: AsyncConnection, batch_id: str) -> "Row[Any] | None":
    """The row of a batch, which nobody else changes before this transaction ends; None where there is none."""
    return (await connection.execute(select(batches).where(batches.c.id == batch_id).with_for_update())).first()


async def end_waiting(connection: AsyncConnection, batch_id: str, now: float) -> None:
    """Ends the items of a batch that is being stopped and that nobody runs."""
    row = await locked(connection, batch_id)
    if row is None or row.state not in END_OF:
        return
    state, _ = END_OF[BatchState(row.state)]
    order = row.last_order + 1
    waiting = (batch_items.c.batch == batch_id) & (batch_items.c.state == ItemState.WAITING)
    ended = await connection.execute(
        update(batch_items).where(waiting).values(state=state.value, ended_order=order, lease=None)
    )
    await count(connection, batch_id, {COUNT_OF[state]: ended.rowcount}, ended.rowcount, order, now)


async def count(
    connection: AsyncConnection, batch_id: str, sums: Mapping[str, int], num_ended: int, last_order: int, now: float
) -> None:
    """Adds up items that ended. The batch ends with its last one."""
    added = {name: batches.c[name] + value for name, value in sums.items()}
    changed = {**added, "num_ended": batches.c.num_ended + num_ended, "last_order": last_order}
    await connection.execute(update(batches).where(batches.c.id == batch_id).values(updated_at=now, **changed))
    is_done = (batches.c.id == batch_id) & (batches.c.num_ended == batches.c.num_items)
    for state in (BatchState.QUEUED, BatchState.RUNNING, BatchState.PAUSED, *END_OF):
        end = END_OF[state][1] if state in END_OF else BatchState.COMPLETED
        await connection.execute(
            update(batches).where(is_done & (batches.c.state == state.value)).values(state=end.value, ended_at=now)
        )
