"""What a batch has no results for is run again, in a new batch: the first one's lines stay what they are."""

import asyncio
import json
from hashlib import blake2b
from typing import Any

from sqlalchemy import Row, func, insert, literal, select

from gateway.batch.acceptance import DAY_SECONDS, Acceptance, check_budget, check_key, check_seconds
from gateway.batch.batches import Batches
from gateway.batch.pins import Pins, adapters_of
from gateway.batch.states import ENDED, ItemState
from gateway.database.database import Database
from gateway.database.tables import batch_items
from gateway.tenants.accounts import Accounts
from gateway.tenants.identity import Caller
from paceline.errors import AbortedError, AlreadyExistsError, FailedPreconditionError
from paceline.v1 import batch_pb2

_CHUNK = 20_000
"""Items that one transaction copies."""
_COPIED = ("place", "custom_id", "is_chat", "request", "affinity", "max_cost")
_NEW = {"state": ItemState.WAITING.value, "num_attempts": 0, "num_crashes": 0, "not_before": 0.0}


class Retries:
    """Makes batches of what others have no results for."""

    def __init__(
        self, database: Database, found: Batches, acceptance: Acceptance, pins: Pins, accounts: Accounts
    ) -> None:
        self._database = database
        self._batches = found
        self._acceptance = acceptance
        self._pins = pins
        self._accounts = accounts

    async def retry(self, caller: Caller, request: batch_pb2.RetryBatchRequest) -> Row[Any]:
        """The new batch, pinned to what models and adapters are now. Its items keep their seeds and places.

        Raises NotFoundError, FailedPreconditionError for a batch that has not ended or has all results,
        AlreadyExistsError for a key of another batch, QuotaExceededError.
        """
        seconds = request.completion_seconds if request.HasField("completion_seconds") else DAY_SECONDS
        check_seconds("completion_seconds", seconds)
        key = check_key("idempotency_key", request.idempotency_key)
        budget = check_budget("max_cost_nanos", request.max_cost_nanos) if request.HasField("max_cost_nanos") else None
        first = await self._batches.get(caller.tenant, request.id)
        num_items = first.num_items - first.num_completed
        if first.state not in ENDED:
            raise FailedPreconditionError(f"batch {first.id} is {first.state}; what fails of it is known at its end")
        if not num_items:
            raise FailedPreconditionError(f"batch {first.id} has a result for each line")
        await self._accounts.check_cost(caller)
        metadata = json.loads(first.options)
        batch_id = await self._acceptance.begin(caller, seconds, key, metadata, budget, first.id)
        if batch_id is None:
            return await self._again(caller, first.id, key)
        try:
            await self._copy(first.id, batch_id)
            pinned = await self._pins.now(caller, adapters_of(first.pins))
            num_tokens = first.num_tokens * num_items // first.num_items
            await self._acceptance.accept(
                caller,
                batch_id,
                num_items,
                num_tokens,
                blake2b(first.id.encode(), digest_size=32).digest(),
                pinned.text,
            )
        except BaseException:
            await asyncio.shield(self._acceptance.discard(batch_id))
            raise
        return await self._batches.get(caller.tenant, batch_id)

    async def _again(self, caller: Caller, first_id: str, key: str) -> Row[Any]:
        """The retry that was made with the same key, if it is of the same batch."""
        row = await self._batches.find_by_key(caller.tenant, key)
        if row is None or row.digest is None:
            raise AbortedError("a batch with this idempotency key is being made; try again", "UPLOAD_IN_PROGRESS")
        if row.retry_of != first_id:
            raise AlreadyExistsError("batch", row.id, "its idempotency key is this one, and it is another batch")
        return row

    async def _copy(self, first_id: str, batch_id: str) -> None:
        """Copies all items without a result, some at once."""
        without = (batch_items.c.batch == first_id) & (batch_items.c.state > ItemState.COMPLETED.value)
        new = [literal(value).label(name) for name, value in {"batch": batch_id, **_NEW}.items()]
        last: int | None = -1
        while last is not None:
            after = without & (batch_items.c.place > last)
            chunk = select(batch_items.c.place).where(after).order_by(batch_items.c.place).limit(_CHUNK).subquery()
            async with self._database.write() as connection:
                last = (await connection.execute(select(func.max(chunk.c.place)))).scalar_one()
                if last is not None:
                    rows = select(*batch_items.c[_COPIED], *new).where(after, batch_items.c.place <= last)
                    await connection.execute(insert(batch_items).from_select([*_COPIED, "batch", *_NEW], rows))
                await self._acceptance.keep_alive(connection, batch_id)
