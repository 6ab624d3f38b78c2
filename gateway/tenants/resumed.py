"""How the ledger counts a request that one gateway began and another went on with: once, and no id makes anything free.

The row of the request is what the first gateway did: what it recorded, or where it died what the client had received.
Each going on has a row of its own, with what was produced then, and what the client had received beyond all that was
known. A gateway that records late what it had begun adds what it has beyond its client's word.

The prompt counts once for the first going on with the same prompt, and again for each further. Rows of one request end
in different moments, so that one which is written twice is known.
"""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, select, update
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
) -> list[dict[str, Any]]:
    """Writes a going on in a transaction; returns what it adds to the sums, nothing if it was written before."""
    ids = [entry.request_id, *(f"{entry.request_id}.{number}" for number in range(1, _MOST))]
    begun = inference_pb2.Usage()
    begun.CopyFrom(resumed.received)
    begun.num_prompt_tokens, begun.num_cached_tokens = entry.usage.num_prompt_tokens, entry.usage.num_cached_tokens
    first = _row(entry, begun, resumed) | {"outcome": _LOST, "num_requests": 1}
    new = database.insert_new(usage_requests).returning(usage_requests.c.request_id)
    is_lost = bool((await connection.execute(new, [first])).all())
    known = select(usage_requests).where(usage_requests.c.request_id.in_(ids)).with_for_update()
    rows = (await connection.execute(known)).all()
    if any(row.tenant != entry.tenant for row in rows):
        return await write_resumed(connection, database, under_own_id(entry), resumed)
    goings_on = [row for row in rows if row.request_id != entry.request_id]
    if any(row.ended_at == entry.ended_at for row in goings_on):
        return []
    row = _row(entry, usage_beyond(rows, entry, resumed.received), resumed)
    row["request_id"] = ids[len(goings_on) + 1] if len(goings_on) + 1 < _MOST else uuid.uuid4().hex
    await connection.execute(database.insert_new(usage_requests), [row])
    return [first, row] if is_lost else [row]


def usage_beyond(rows: Sequence[Row[Any]], entry: Entry, received: inference_pb2.Usage) -> inference_pb2.Usage:
    """What a going on adds to the rows of its request, of which the client had `received` a part before."""
    beyond = inference_pb2.Usage()
    for name in _PRODUCED:
        claimed = getattr(received, name)
        known = sum(getattr(row, name) for row in rows)
        setattr(beyond, name, getattr(entry.usage, name) - claimed + max(0, claimed - known))
    produces = entry.usage.num_completion_tokens > received.num_completion_tokens
    num_recorded = sum(row.outcome != _LOST for row in rows)
    is_same = all(row.prompt_digest == entry.prompt_digest for row in rows)
    if produces and not (is_same and num_recorded <= 1):
        for name in _PROMPT:
            setattr(beyond, name, getattr(entry.usage, name))
    return beyond


async def write_late(connection: AsyncConnection, database: Database, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Writes entries in a transaction whose ids have rows; returns what they add to the sums."""
    by_id = {entry.request_id: entry for entry in entries}
    known = select(usage_requests).where(usage_requests.c.request_id.in_(sorted(by_id))).with_for_update()
    added = []
    for row in (await connection.execute(known)).all():
        entry = by_id[row.request_id]
        if row.tenant != entry.tenant:
            own = under_own_id(entry).row()
            new = database.insert_new(usage_requests).returning(usage_requests.c.request_id)
            added += [own] if (await connection.execute(new, [own])).all() else []
        elif row.outcome == _LOST:
            mine = entry.row()
            more = {name: max(0, mine[name] - getattr(row, name)) for name in SUMS}
            totals = {name: getattr(row, name) + more[name] for name in SUMS}
            this = usage_requests.c.request_id == row.request_id
            await connection.execute(update(usage_requests).where(this).values(**totals, outcome=entry.outcome))
            added.append({**row._mapping, **more})
    return added


def under_own_id(entry: Entry) -> Entry:
    """The entry under an id that no other tenant has: it came with one that is another's."""
    return replace(entry, request_id=uuid.uuid5(uuid.NAMESPACE_OID, f"{entry.tenant}\0{entry.request_id}").hex)


def _row(entry: Entry, usage: inference_pb2.Usage, resumed: Resumed) -> dict[str, Any]:
    return replace(entry, usage=usage, cost=resumed.price(usage)).row() | {"num_requests": 0}
