"""A batch is taken in: its lines are kept as they come, and it is accepted with the last of them or not at all."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Row, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.batch.batches import Batches
from gateway.batch.lines import KnownModel
from gateway.batch.reading import Reader, Totals
from gateway.batch.states import STOPPABLE, STOPPING, BatchState
from gateway.database.database import Database
from gateway.database.tables import BATCH_COUNTS, batch_items, batches
from gateway.model.catalogue import Catalogue
from gateway.tenants.accounts import Accounts
from gateway.tenants.adapters import Adapters
from gateway.tenants.identity import Caller
from gateway.tenants.prices import Prices
from paceline.errors import (
    AbortedError,
    AlreadyExistsError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    QuotaExceededError,
    UnavailableError,
)
from paceline.v1 import batch_pb2

_log = logging.getLogger(__name__)
_DAY_SECONDS = 86400.0
_MAX_DAYS = 30
_QUOTA_LOCK = 0x70636C71
_ALIVE_SECONDS = 120.0
"""An upload that has added nothing for so long is taken to be over."""


class Accepted(NamedTuple):
    """What an upload came to."""

    row: "Row[Any] | None"
    """None of a dry run."""
    estimate: batch_pb2.BatchEstimate


class Uploads:
    """Takes batches in for their tenants."""

    def __init__(
        self,
        database: Database,
        found: Batches,
        catalogue: Catalogue,
        adapters: Adapters,
        accounts: Accounts,
        prices: Prices,
        max_line_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._batches = found
        self._catalogue = catalogue
        self._adapters = adapters
        self._accounts = accounts
        self._prices = prices
        self._max_line_bytes = max_line_bytes
        self._clock = clock

    async def take(self, caller: Caller, options: batch_pb2.BatchOptions, data: AsyncIterator[bytes]) -> Accepted:
        """Reads a batch to its end. Raises InvalidArgumentError with what is wrong in which lines, AlreadyExistsError
        for a key of another batch, QuotaExceededError.
        """
        seconds = _check_options(options)
        await self._accounts.check_cost(caller)
        models = await self._known_models()
        batch_id, now = f"batch_{secrets.token_hex(12)}", self._clock()
        if options.dry_run:
            reader = await self._read(data, models, None)
            await self._finish_checks(caller, reader.totals)
            return Accepted(None, reader.estimate())
        row = {
            "id": batch_id, "tenant": caller.tenant, "key_id": caller.key_id, "state": BatchState.VALIDATING.value,
            "idempotency_key": options.idempotency_key or None, "pins": "{}",
            "options": json.dumps(dict(options.metadata)), "created_at": now, "updated_at": now,
            "expires_at": now + seconds, **dict.fromkeys(BATCH_COUNTS, 0),
        }  # fmt: skip
        async with self._database.write() as connection:
            is_new = (await connection.execute(self._database.insert_new(batches), [row])).rowcount
        if not is_new:
            return await self._again(caller, options, data, models)
        try:
            reader = await self._read(data, models, batch_id)
            pins = await self._finish_checks(caller, reader.totals)
            await self._accept(caller, batch_id, reader, pins)
        except BaseException:
            await asyncio.shield(self._discard(batch_id))
            raise
        return Accepted(await self._batches.get(caller.tenant, batch_id), reader.estimate())

    async def drop_abandoned(self) -> None:
        """Deletes what is left of uploads that broke off with their gateway."""
        old = (batches.c.state == BatchState.VALIDATING.value) & (batches.c.updated_at < self._clock() - _ALIVE_SECONDS)
        async with self._database.read() as connection:
            abandoned = list((await connection.execute(select(batches.c.id).where(old))).scalars())
        for batch_id in abandoned:
            await self._discard(batch_id)

    async def _again(
        self,
        caller: Caller,
        options: batch_pb2.BatchOptions,
        data: AsyncIterator[bytes],
        models: Mapping[str, KnownModel],
    ) -> Accepted:
        """The batch that was made with the same key, if it is the same."""
        reader = await self._read(data, models, None)
        row = await self._batches.find_by_key(caller.tenant, options.idempotency_key)
        if row is None or row.digest is None:
            raise AbortedError("a batch with this idempotency key is being uploaded; try again", "UPLOAD_IN_PROGRESS")
        if row.digest != reader.digest or json.loads(row.options) != dict(options.metadata):
            raise AlreadyExistsError("batch", row.id, "its idempotency key is this one, and it is another batch")
        return Accepted(row, reader.estimate())

    async def _read(self, data: AsyncIterator[bytes], models: Mapping[str, KnownModel], batch_id: str | None) -> Reader:
        """Checks all lines, and keeps them for a batch."""
        reader = Reader(models, self._prices, self._max_line_bytes)
        async for rows in reader.rows(data, batch_id or ""):
            if batch_id is not None and not reader.totals.num_faults:
                async with self._database.write() as connection:
                    if rows:
                        await connection.execute(insert(batch_items), rows)
                    alive = update(batches).where(batches.c.id == batch_id).values(updated_at=self._clock())
                    if not (await connection.execute(alive)).rowcount:
                        raise AbortedError("the upload took too long between its parts", "UPLOAD_ABANDONED")
        return reader

    async def _finish_checks(self, caller: Caller, totals: Totals) -> str:
        """What models and adapters stand for now, as JSON. Raises InvalidArgumentError."""
        digests = {}
        for (model, adapter), number in totals.adapters.items():
            try:
                resolved = await self._adapters.resolve(caller, self._catalogue.get(model), adapter)
                digests[f"{model}/{adapter}"] = resolved.target
            except NotFoundError as error:
                totals.fault(number, (FieldViolation("body.adapter", str(error)),))
        if not totals.num_items and not totals.num_faults:
            raise InvalidArgumentError("data", "a batch has at least one line")
        if totals.faults:
            first, *more = totals.faults
            rest = totals.num_faults - len({violation.field.partition(":")[0] for violation in totals.faults})
            if rest > 0:
                more.append(FieldViolation("data", f"{rest} more lines are wrong"))
            raise InvalidArgumentError(*first, *more)
        revisions = {model.id: model.newest.revision_digest for model in self._catalogue if model.newest is not None}
        return json.dumps({"models": revisions, "adapters": digests})

    async def _accept(self, caller: Caller, batch_id: str, reader: Reader, pins: str) -> None:
        totals = reader.totals
        num_tokens = totals.num_prompt_tokens + totals.max_tokens
        async with self._database.write() as connection:
            if not self._database.is_sqlite:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_QUOTA_LOCK})"))
            await self._check_quota(connection, caller, totals.num_items, num_tokens)
            validating = (batches.c.id == batch_id) & (batches.c.state == BatchState.VALIDATING.value)
            accepted = update(batches).where(validating).values(
                state=BatchState.QUEUED.value, accepted_at=self._clock(), digest=reader.digest, pins=pins,
                num_items=totals.num_items, num_tokens=num_tokens,
            )  # fmt: skip
            if not (await connection.execute(accepted)).rowcount:
                raise AbortedError("the upload took too long between its parts", "UPLOAD_ABANDONED")

    async def _check_quota(self, connection: AsyncConnection, caller: Caller, num_items: int, num_tokens: int) -> None:
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

    async def _discard(self, batch_id: str) -> None:
        """Deletes what there is of an upload that comes to nothing."""
        try:
            async with self._database.write() as connection:
                await connection.execute(delete(batch_items).where(batch_items.c.batch == batch_id))
                await connection.execute(delete(batches).where(batches.c.id == batch_id))
        except UnavailableError:
            _log.warning("upload %s is left to be dropped later", batch_id)

    async def _known_models(self) -> dict[str, KnownModel]:
        known = {}
        for model in self._catalogue:
            try:
                info = await model.info()
            except UnavailableError:
                continue
            known[model.id] = KnownModel(info, model.draft_tokens, model.tokenizer.has_chat_template)
        if not known:
            raise UnavailableError("no model can be asked for now", 1.0)
        return known


def _check_options(options: batch_pb2.BatchOptions) -> float:
    """Seconds in which the batch is to be done. Raises InvalidArgumentError."""
    seconds = options.completion_seconds if options.HasField("completion_seconds") else _DAY_SECONDS
    if not 1 <= seconds <= _MAX_DAYS * _DAY_SECONDS:
        raise InvalidArgumentError("options.completion_seconds", f"must be 1 to {_MAX_DAYS} days, got {seconds}")
    if len(options.metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in options.metadata.items()):
        problem = "at most 16 entries, with keys of 64 characters and values of 512"
        raise InvalidArgumentError("options.metadata", problem)
    if len(options.idempotency_key.encode()) > 128 or "\0" in options.idempotency_key:
        raise InvalidArgumentError("options.idempotency_key", "at most 128 bytes, without zero bytes")
    return seconds
