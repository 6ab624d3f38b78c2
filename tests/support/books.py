"""What is true of every batch that has ended: its lines, its counts and the ledger say the same, each item once."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select

from gateway.batch.batches import Batches
from gateway.database.database import Database
from gateway.database.tables import SUMS, usage_days, usage_requests

_ENDS = {None: "completed", "batch_cancelled": "cancelled", "batch_expired": "expired"}
_COUNTED = ("completed", "failed", "cancelled", "expired")
_USED = {"completion_tokens": "num_completion_tokens", "prompt_tokens": "num_prompt_tokens"}


async def check_books(
    database: Database,
    batch_id: str,
    lines: Sequence[dict[str, Any]],
    custom_ids: Sequence[str],
    tenant: str = "default",
) -> None:
    """Raises AssertionError where a batch that has ended is not what was accepted, or what was billed."""
    row = await Batches(database).get(tenant, batch_id)
    assert row.ended_at is not None
    assert [each["custom_id"] for each in lines] == list(custom_ids)
    assert [each["id"] for each in lines] == [f"{batch_id}-{place}" for place in range(len(custom_ids))]
    assert all((each["response"] is None) != (each["error"] is None) for each in lines)
    ends = Counter(_ENDS.get(each["error"] and each["error"]["code"], "failed") for each in lines)
    assert {name: ends[name] for name in _COUNTED} == {name: getattr(row, f"num_{name}") for name in _COUNTED}
    assert row.num_ended == row.num_items == len(custom_ids)
    bodies = [each["response"]["body"] if each["response"] else each.get("partial") for each in lines]
    of_batch = usage_requests.c.request_id.startswith(f"{batch_id}-", autoescape=True)
    async with database.read() as connection:
        billed = (await connection.execute(_sums(usage_requests).where(of_batch))).mappings().one()
        by_day = (await connection.execute(_sums(usage_days))).mappings().one()
        in_all = (await connection.execute(_sums(usage_requests))).mappings().one()
    for told, column in _USED.items():
        assert sum(body["usage"][told] for body in bodies if body) == (billed[column] or 0) == getattr(row, column)
    assert (billed["cost"] or 0) == row.cost
    assert (billed["num_requests"] or 0) >= row.num_completed
    assert dict(by_day) == dict(in_all), "days are sums of requests"


def _sums(table: Any) -> Any:
    return select(*[func.sum(table.c[name]).label(name) for name in SUMS])
