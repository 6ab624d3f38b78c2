"""What the ledger says: sums by day, key, model, adapter and kind."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy import func, select

from gateway.database.database import Database
from gateway.database.tables import SUMS, usage_days
from paceline.errors import InvalidArgumentError
from paceline.v1 import usage_pb2

EVERYBODY = "*"
_MAX_ROWS = 100_000
_COLUMNS = {
    usage_pb2.USAGE_GROUP_DAY: usage_days.c.day,
    usage_pb2.USAGE_GROUP_KEY: usage_days.c.key_id,
    usage_pb2.USAGE_GROUP_MODEL: usage_days.c.model,
    usage_pb2.USAGE_GROUP_ADAPTER: usage_days.c.adapter,
    usage_pb2.USAGE_GROUP_KIND: usage_days.c.kind,
    usage_pb2.USAGE_GROUP_TENANT: usage_days.c.tenant,
}
_USUAL = (usage_pb2.USAGE_GROUP_DAY, usage_pb2.USAGE_GROUP_MODEL)


async def read_usage(
    database: Database, tenant: str, request: usage_pb2.GetUsageRequest, today: date, currency: str
) -> usage_pb2.GetUsageResponse:
    """Usage of a tenant, or of everybody. Raises InvalidArgumentError."""
    start = _day("start_day", request.start_day) or today.replace(day=1)
    end = _day("end_day", request.end_day) or today
    groups: Sequence[usage_pb2.UsageGroup.ValueType] = list(dict.fromkeys(request.groups)) or _USUAL
    for group in groups:
        if group not in _COLUMNS:
            raise InvalidArgumentError("groups", f"unknown group {group}")
    columns = [_COLUMNS[group] for group in groups]
    sums = [func.sum(usage_days.c[name]).label(name) for name in SUMS]
    wanted = select(*columns, *sums).where(usage_days.c.day.between(start.isoformat(), end.isoformat()))
    if tenant != EVERYBODY:
        wanted = wanted.where(usage_days.c.tenant == tenant)
    async with database.read() as connection:
        rows = (await connection.execute(wanted.group_by(*columns).order_by(*columns).limit(_MAX_ROWS))).mappings()
        response = usage_pb2.GetUsageResponse(currency=currency, total=usage_pb2.UsageRow())
        for row in rows:
            said: dict[str, Any] = {name: int(value) if name in SUMS else value for name, value in row.items()}
            said["cost_nanos"] = said.pop("cost")
            response.rows.append(usage_pb2.UsageRow(**said))
    for name in SUMS:
        field = "cost_nanos" if name == "cost" else name
        setattr(response.total, field, sum(getattr(row, field) for row in response.rows))
    return response


def _day(field: str, text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as error:
        raise InvalidArgumentError(field, f"{text!r} is no day such as 2026-11-26") from error
