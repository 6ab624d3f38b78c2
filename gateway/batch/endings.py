"""Items end, and with the last of them their batch: always inside a transaction that holds the batch's row."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.batch.states import COUNT_OF, END_OF, ENDED, BatchState, ItemState
from gateway.database.tables import batch_items, batches
from gateway.webhooks.outbox import announce

_MAX_ENDED = 20_000
"""Items that one transaction ends."""


async def locked(connection: AsyncConnection, batch_id: str) -> "Row[Any] | None":
    """The row of a batch, which nobody else changes before this transaction ends; None where there is none."""
    return (await connection.execute(select(batches).where(batches.c.id == batch_id).with_for_update())).first()


async def end_waiting(connection: AsyncConnection, batch_id: str, now: float) -> bool:
    """Ends items of a batch that is being stopped and that nobody runs; returns whether there are more of them.

    One transaction ends so many of them that others can write meanwhile: a sweep ends the rest.
    """
    row = await locked(connection, batch_id)
    if row is None or row.state not in END_OF:
        return False
    state, _ = END_OF[BatchState(row.state)]
    order = row.last_order + 1
    waiting = (batch_items.c.batch == batch_id) & (batch_items.c.state == ItemState.WAITING)
    by = (batch_items.c.affinity, batch_items.c.place)
    # A bound is found first: a database that has no statistics of new rows yet compares each with each of a list.
    last = (await connection.execute(select(*by).where(waiting).order_by(*by).offset(_MAX_ENDED - 1).limit(1))).first()
    if last is not None:
        waiting &= tuple_(*by) <= tuple_(literal(last.affinity), literal(last.place))
    ended = await connection.execute(
        update(batch_items).where(waiting).values(state=state.value, ended_order=order, lease=None)
    )
    await count(connection, batch_id, {COUNT_OF[state]: ended.rowcount}, ended.rowcount, order, now)
    return last is not None


async def count(
    connection: AsyncConnection, batch_id: str, sums: Mapping[str, int], num_ended: int, last_order: int, now: float
) -> None:
    """Adds up items that ended. The batch ends with its last one."""
    added = {name: batches.c[name] + value for name, value in sums.items()}
    changed = {**added, "num_ended": batches.c.num_ended + num_ended, "last_order": last_order}
    of_batch = batches.c.id == batch_id
    await connection.execute(update(batches).where(of_batch).values(updated_at=now, **changed))
    row = await locked(connection, batch_id)
    if row is None or row.num_ended < row.num_items or row.state in ENDED:
        return
    end = END_OF[BatchState(row.state)][1] if row.state in END_OF else BatchState.COMPLETED
    await connection.execute(update(batches).where(of_batch).values(state=end.value, ended_at=now))
    await announce(connection, row.tenant, f"batch.{end}", _told(row, end, now), now)


def _told(row: Row[Any], end: BatchState, now: float) -> dict[str, Any]:
    """What webhooks are told of a batch that has ended."""
    counts = {name: getattr(row, f"num_{name}") for name in ("completed", "failed", "cancelled", "expired")}
    return {
        "id": row.id,
        "state": end.value,
        "ended_at": now,
        "counts": {"total": row.num_items, **counts},
        "cost_nanos": row.cost,
        "metadata": json.loads(row.options),
        "retry_of": row.retry_of,
    }
