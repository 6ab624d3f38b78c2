"""Lines of results and errors: one for each item that ended, also while others run."""

import json
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import Row, Select, func, select, tuple_

from gateway.batch.states import STOPPED, ItemState
from gateway.database.database import Database
from gateway.database.tables import batch_items
from paceline.errors import InvalidArgumentError
from paceline.v1 import batch_pb2

_PAGE = 200
_ASKED = batch_pb2.ListBatchResultsRequest


class Results:
    """Reads results in pages, so that no transaction lasts as long as a client reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lines(
        self, batch_id: str, request: batch_pb2.ListBatchResultsRequest
    ) -> AsyncIterator[batch_pb2.ListBatchResultsResponse]:
        """All lines that are there after the cursor. Raises InvalidArgumentError for a cursor of no line."""
        by_order = request.order == _ASKED.ORDER_FINISHED
        columns = (batch_items.c.ended_order, batch_items.c.place) if by_order else (batch_items.c.place,)
        after = _cursor(request.cursor, len(columns))
        while True:
            async with self._database.read() as connection:
                wanted = _wanted(batch_id, request, by_order=by_order)
                if after:
                    wanted = wanted.where(tuple_(*columns) > tuple_(*after))
                rows = (await connection.execute(wanted.order_by(*columns).limit(_PAGE))).all()
            for row in rows:
                after = (row.ended_order, row.place) if by_order else (row.place,)
                cursor = ".".join(map(str, after))
                yield batch_pb2.ListBatchResultsResponse(line=_line(batch_id, row), cursor=cursor)
            if len(rows) < _PAGE:
                return


def _wanted(batch_id: str, request: batch_pb2.ListBatchResultsRequest, *, by_order: bool) -> Select[Any]:
    columns = batch_items.c["place", "custom_id", "state", "line", "ended_order"]
    wanted = select(*columns).where(batch_items.c.batch == batch_id, batch_items.c.state > ItemState.RUNNING.value)
    if request.kind == _ASKED.KIND_RESULTS:
        wanted = wanted.where(batch_items.c.state == ItemState.COMPLETED.value)
    elif request.kind == _ASKED.KIND_ERRORS:
        wanted = wanted.where(batch_items.c.state > ItemState.COMPLETED.value)
    if not by_order:
        other = batch_items.alias()
        pending = (other.c.batch == batch_id) & (other.c.state <= ItemState.RUNNING.value)
        first = select(func.min(other.c.place)).where(pending).scalar_subquery()
        wanted = wanted.where(batch_items.c.place < func.coalesce(first, 1 << 30))
    return wanted


def _line(batch_id: str, row: Row[Any]) -> str:
    """A line as it is written; what never ran has none of its own in the database."""
    told: dict[str, Any] = {
        "id": f"{batch_id}-{row.place}",
        "custom_id": row.custom_id,
        "response": None,
        "error": None,
    }
    if row.line is not None:
        told |= json.loads(row.line)
    else:
        code, message = STOPPED[ItemState(row.state)]
        told["error"] = {"code": code, "message": message}
    return json.dumps(told, ensure_ascii=False)


def _cursor(text: str, num_parts: int) -> tuple[int, ...]:
    try:
        parts = tuple(int(part) for part in text.split(".")) if text else ()
    except ValueError:
        parts = (-1,)
    if text and (len(parts) != num_parts or min(parts) < 0):
        raise InvalidArgumentError("cursor", "is none that a line of this order has said")
    return parts
