"""How the ledger counts a request that one gateway began and another went on with: once.

A gateway that died recorded nothing: then all counts that the client had received, and what came after. One that lives
recorded what it had produced when its client went away: then what came after counts, and what was received beyond that.
Its prompt counts once for the first going on, and again for each further: no id makes prompts free.

Each going on has a row of its own, by which it is counted once however often it is written: no two of a request end in
the same moment. The row of the request itself is taken where there is none, so that a gateway that records later what
it had begun counts nothing twice.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.database.database import Database
from gateway.database.tables import SUMS, usage_requests
from gateway.tenants.entry import Entry, Resumed
from paceline.v1 import inference_pb2

_PROMPT = ("num_prompt_tokens", "num_cached_tokens")
_PRODUCED = ("num_completion_tokens", "num_drafted_tokens", "num_accepted_tokens")
_LOST = "lost"
_MOST = 64
"""Rows that a request may have; what goes on with one more often is a request of its own each time."""


async def write_resumed(
    connection: AsyncConnection, database: Database, entry: Entry, resumed: Resumed
) -> dict[str, Any] | None:
    """Writes what an entry adds to its request in a transaction; returns it as a row, None if it was written before."""
    ids = [entry.request_id, *(f"{entry.request_id}.{number}" for number in range(1, _MOST))]
    unless_known = {**entry.row(), **dict.fromkeys(SUMS, 0), "outcome": _LOST}
    await connection.execute(database.insert_new(usage_requests), [unless_known])
    known = select(usage_requests).where(usage_requests.c.request_id.in_(ids)).with_for_update()
    rows = (await connection.execute(known)).all()
    goings_on = [row for row in rows if row.request_id != entry.request_id]
    if any(row.ended_at == entry.ended_at for row in goings_on):
        return None
    counted = [row for row in rows if row.outcome != _LOST and row.tenant == entry.tenant]
    usage = usage_beyond(counted, entry.usage, resumed.received)
    row = entry.row() | {name: getattr(usage, name) for name in (*_PROMPT, *_PRODUCED)}
    row["request_id"] = ids[len(goings_on) + 1] if len(goings_on) + 1 < _MOST else uuid.uuid4().hex
    row |= {"num_requests": 0 if counted else 1, "cost": resumed.price(usage)}
    await connection.execute(database.insert_new(usage_requests), [row])
    return row


def usage_beyond(
    rows: Sequence[Row[Any]], usage: inference_pb2.Usage, received: inference_pb2.Usage
) -> inference_pb2.Usage:
    """What a request used beyond its rows; of `usage` the client had `received` a part before."""
    beyond = inference_pb2.Usage()
    if len(rows) != 1 or rows[0].num_prompt_tokens != usage.num_prompt_tokens:
        for name in _PROMPT:
            setattr(beyond, name, getattr(usage, name))
    for name in _PRODUCED:
        claimed = getattr(received, name)
        known = sum(getattr(row, name) for row in rows)
        setattr(beyond, name, getattr(usage, name) - claimed + max(0, claimed - known))
    return beyond
