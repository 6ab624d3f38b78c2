"""Lines of results and errors: one for each item that ended, also while others run."""

import json
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import Row, select, tuple_

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
        after = _cursor(request.cursor, len(columns)) or ((0, -1) if by_order else (-1,))
        told = batch_items.c["place", "custom_id", "state", "line", "ended_order"]
        while True:
            wanted = select(*told).where(batch_items.c.batch == batch_id, tuple_(*columns) > tuple_(*after))
            async with self._database.read() as connection:
                rows = (await connection.execute(wanted.order_by(*columns).limit(_PAGE))).all()
            for row in rows:
                if row.state <= ItemState.RUNNING:
                    return
                after = (row.ended_order, row.place) if by_order else (row.place,)
                if _is_wanted(row.state, request.kind):
                    cursor = ".".join(map(str, after))
                    yield batch_pb2.ListBatchResultsResponse(line=_line(batch_id, row), cursor=cursor)
            if len(rows) < _PAGE:
                return


def _is_wanted(state: int, kind: int) -> bool:
    if kind == _ASKED.KIND_RESULTS:
        return state == ItemState.COMPLETED
    return kind != _ASKED.KIND_ERRORS or state != ItemState.COMPLETED


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
