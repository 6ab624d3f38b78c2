"""A batch begins, and is accepted with all its items or discarded: what uploads and retries share."""

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.batch.removal import hide
from gateway.batch.states import STOPPABLE, STOPPING, BatchState
from gateway.batch.unchanged import Unchanged
from gateway.clock import time_of_day
from gateway.database.database import Database
from gateway.database.tables import BATCH_COUNTS, batch_items, batches
from gateway.tenants.identity import Caller
from paceline.errors import AbortedError, InvalidArgumentError, QuotaExceededError, UnavailableError

_log = logging.getLogger(__name__)
DAY_SECONDS = 86400.0
_MAX_DAYS = 30
_QUOTA_LOCK = 0x70636C71
_ALIVE_SECONDS = 120.0
"""An upload that has added nothing for so long is taken to be over."""


class Acceptance:
    """Transactions on batches that are not accepted yet."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time_of_day,
        watch: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock
        self._unchanged: Unchanged[tuple[str, float]] = Unchanged(_ALIVE_SECONDS, watch)
        self._left: set[str] = set()
        """Uploads that came to nothing, and that the database was not told of."""

    async def begin(
        self,
        caller: Caller,
        seconds: float,
        idempotency_key: str,
        metadata: Mapping[str, str],
        max_cost: int | None,
        retry_of: str | None = None,
    ) -> str | None:
        """Id of a new batch without items; None where the caller has one with this key. Raises UnavailableError."""
        batch_id, now = f"batch_{secrets.token_hex(12)}", self._clock()
        row = {
            "id": batch_id, "tenant": caller.tenant, "key_id": caller.key_id, "state": BatchState.VALIDATING.value,
            "idempotency_key": idempotency_key or None, "pins": "{}", "options": json.dumps(dict(metadata)),
            "created_at": now, "updated_at": now, "expires_at": now + seconds, "max_cost": max_cost,
            "retry_of": retry_of, **dict.fromkeys(BATCH_COUNTS, 0),
        }  # fmt: skip
        try:
            async with self._database.write() as connection:
                is_new = (await connection.execute(self._database.insert_new(batches), [row])).rowcount
        except UnavailableError:
            self._left.add(batch_id)  # It may be there.
            raise
        return batch_id if is_new else None

    async def add(self, batch_id: str, rows: list[dict[str, Any]]) -> None:
        """Adds items. Raises AbortedError when it took too long."""
        async with self._database.write() as connection:
            if rows:
                await connection.execute(insert(batch_items), rows)
            await self.keep_alive(connection, batch_id)

    async def keep_alive(self, connection: AsyncConnection, batch_id: str) -> None:
        """Says that items are being added. Raises AbortedError when that is too late."""
        alive = update(batches).where(_validating(batch_id)).values(updated_at=self._clock())
        if not (await connection.execute(alive)).rowcount:
            raise AbortedError("the upload took too long between its parts", "UPLOAD_ABANDONED")

    async def accept(
        self, caller: Caller, batch_id: str, num_items: int, num_tokens: int, digest: bytes, pins: str
    ) -> None:
        """Has the items run. Raises QuotaExceededError, AbortedError."""
        async with self._database.write() as connection:
            if not self._database.is_sqlite:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_QUOTA_LOCK})"))
            await _check_quota(connection, caller, num_items, num_tokens)
            await self.keep_alive(connection, batch_id)
            accepted = {
                "state": BatchState.QUEUED.value, "accepted_at": self._clock(), "digest": digest, "pins": pins,
                "num_items": num_items, "num_tokens": num_tokens,
            }  # fmt: skip
            await connection.execute(update(batches).where(_validating(batch_id)).values(**accepted))

    async def discard(self, batch_id: str) -> None:
        """Has nobody see a batch that comes to nothing, now or as soon as the database can: a sweep deletes it.

        One that was accepted after all, though nobody could say so, stays.
        """
        try:
            async with self._database.write() as connection:
                await hide(connection, _validating(batch_id))
            self._left.discard(batch_id)
        except UnavailableError:
            self._left.add(batch_id)
            _log.warning("upload %s is left to be dropped later", batch_id)

    async def drop_abandoned(self) -> None:
        """Discards what is left of those that broke off here, or with their gateway."""
        uploads = select(*batches.c["id", "updated_at"]).where(batches.c.state == BatchState.VALIDATING.value)
        async with self._database.read() as connection:
            rows = (await connection.execute(uploads)).all()
        abandoned = self._unchanged.look((row.id, row.updated_at) for row in rows)
        for batch_id in {*self._left, *(batch_id for batch_id, _ in abandoned)}:
            await self.discard(batch_id)


def check_seconds(field: str, seconds: float) -> float:
    """Seconds in which a batch is to be done. Raises InvalidArgumentError."""
    if not 1 <= seconds <= _MAX_DAYS * DAY_SECONDS:
        raise InvalidArgumentError(field, f"must be 1 second to {_MAX_DAYS} days, got {seconds} seconds")
    return seconds


def check_key(field: str, idempotency_key: str) -> str:
    """A key of the caller's. Raises InvalidArgumentError."""
    if len(idempotency_key.encode()) > 128 or "\0" in idempotency_key:
        raise InvalidArgumentError(field, "at most 128 bytes, without zero bytes")
    return idempotency_key


def check_budget(field: str, nanos: int) -> int:
    """Billionths of the currency that a batch may cost. Raises InvalidArgumentError."""
    if nanos >= 1 << 62:
        raise InvalidArgumentError(field, f"{nanos} is out of range")
    return nanos


def _validating(batch_id: str) -> Any:
    return (batches.c.id == batch_id) & (batches.c.state == BatchState.VALIDATING.value)


async def _check_quota(connection: AsyncConnection, caller: Caller, num_items: int, num_tokens: int) -> None:
    """Raises QuotaExceededError when a tenant's batches would have more left to do than they may."""
    plan = caller.plan
    if plan.max_batch_items is None and plan.max_batch_tokens is None:
        return
    left = batches.c.num_items - batches.c.num_ended
    tokens = batches.c.num_tokens * left / batches.c.num_items
    active = batches.c.state.in_([state.value for state in (*STOPPABLE, *STOPPING)])
    sums = select(func.sum(left), func.sum(tokens)).where((batches.c.tenant == caller.tenant) & active)
    items_left, tokens_left = (await connection.execute(sums)).one()
    for name, limit, there, more in (
        ("items", plan.max_batch_items, int(items_left or 0), num_items),
        ("tokens", plan.max_batch_tokens, int(tokens_left or 0), num_tokens),
    ):
        if limit is not None and there + more > limit:
            raise QuotaExceededError(
                caller.tenant, f"{limit} {name} in batches are the limit: {there} wait, this batch has {more}"
            )
