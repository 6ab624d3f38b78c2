"""What a batch may cost: items begin only where its budget has room for the most that all which run may cost."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.batch.endings import end_waiting
from gateway.batch.states import RUNNABLE, RUNS, BatchState
from gateway.database.tables import batch_items, batches


async def affordable(
    connection: AsyncConnection, batch_id: str, rows: Sequence[Row[Any]], now: float
) -> Sequence[Row[Any]]:
    """As many of the next items, from the first on, as the budget has room for.

    When it has none for the first, and none runs that may leave some of what was set aside for it, the batch ends.
    """
    free = batches.c.state.in_([state.value for state in RUNNABLE])
    of_batch = select(batches.c.cost, batches.c.max_cost).where(batches.c.id == batch_id, free)
    # Somebody else who has the row is changing what was spent: the batch's turn comes again.
    batch = (await connection.execute(of_batch.with_for_update(skip_locked=True))).first()
    if batch is None or not rows:
        return []
    running = select(func.sum(batch_items.c.max_cost)).where(batch_items.c.batch == batch_id, RUNS)
    set_aside = (await connection.execute(running)).scalar_one()
    left = batch.max_cost - batch.cost - int(set_aside or 0)
    count = 0
    while count < len(rows) and rows[count].max_cost <= left:
        left -= rows[count].max_cost
        count += 1
    if not count and set_aside is None:
        finalizing = update(batches).where(batches.c.id == batch_id)
        await connection.execute(finalizing.values(state=BatchState.FINALIZING.value))
        await end_waiting(connection, batch_id, now)
    return rows[:count]
