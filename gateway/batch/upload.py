"""A batch is taken in: its lines are kept as they come, and it is accepted with the last of them or not at all."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Row

from gateway.batch.acceptance import DAY_SECONDS, Acceptance, check_budget, check_key, check_seconds
from gateway.batch.batches import Batches
from gateway.batch.lines import KnownModel
from gateway.batch.pins import Pinned, Pins
from gateway.batch.reading import Reader, Totals
from gateway.model.catalogue import Catalogue
from gateway.tenants.accounts import Accounts
from gateway.tenants.identity import Caller
from gateway.tenants.prices import Prices
from paceline.errors import (
    AbortedError,
    AlreadyExistsError,
    FieldViolation,
    InvalidArgumentError,
    UnavailableError,
)
from paceline.v1 import batch_pb2


class Accepted(NamedTuple):
    """What an upload came to."""

    row: "Row[Any] | None"
    """None of a dry run."""
    estimate: batch_pb2.BatchEstimate


class Uploads:
    """Takes batches in for their tenants."""

    def __init__(
        self,
        found: Batches,
        acceptance: Acceptance,
        pins: Pins,
        catalogue: Catalogue,
        accounts: Accounts,
        prices: Prices,
        max_line_bytes: int,
    ) -> None:
        self._batches = found
        self._acceptance = acceptance
        self._pins = pins
        self._catalogue = catalogue
        self._accounts = accounts
        self._prices = prices
        self._max_line_bytes = max_line_bytes

    async def take(self, caller: Caller, options: batch_pb2.BatchOptions, data: AsyncIterator[bytes]) -> Accepted:
        """Reads a batch to its end. Raises InvalidArgumentError with what is wrong in which lines, AlreadyExistsError
        for a key of another batch, QuotaExceededError.
        """
        seconds, budget = _check_options(options)
        await self._accounts.check_cost(caller)
        models = await self._known_models()
        if options.dry_run:
            reader = await self._read(data, models, None)
            _check_whole(reader.totals, await self._pins.now(caller, reader.totals.adapters))
            return Accepted(None, reader.estimate())
        batch_id = await self._acceptance.begin(caller, seconds, options.idempotency_key, options.metadata, budget)
        if batch_id is None:
            return await self._again(caller, options, data, models)
        try:
            reader = await self._read(data, models, batch_id)
            totals = reader.totals
            pinned = await self._pins.now(caller, totals.adapters)
            _check_whole(totals, pinned)
            num_tokens = totals.num_prompt_tokens + totals.max_tokens
            await self._acceptance.accept(caller, batch_id, totals.num_items, num_tokens, reader.digest, pinned.text)
        except BaseException:
            await asyncio.shield(self._acceptance.discard(batch_id))
            raise
        return Accepted(await self._batches.get(caller.tenant, batch_id), reader.estimate())

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
        asked = (dict(options.metadata), options.max_cost_nanos if options.HasField("max_cost_nanos") else None)
        if row.digest != reader.digest or (json.loads(row.options), row.max_cost) != asked:
            raise AlreadyExistsError("batch", row.id, "its idempotency key is this one, and it is another batch")
        return Accepted(row, reader.estimate())

    async def _read(self, data: AsyncIterator[bytes], models: Mapping[str, KnownModel], batch_id: str | None) -> Reader:
        """Checks all lines, and keeps them for a batch."""
        reader = Reader(models, self._prices, self._max_line_bytes)
        async for rows in reader.rows(data, batch_id or ""):
            if batch_id is not None and not reader.totals.num_faults:
                await self._acceptance.add(batch_id, rows)
        return reader

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


def _check_options(options: batch_pb2.BatchOptions) -> tuple[float, int | None]:
    """Seconds in which the batch is to be done, and its budget. Raises InvalidArgumentError."""
    seconds = options.completion_seconds if options.HasField("completion_seconds") else DAY_SECONDS
    if len(options.metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in options.metadata.items()):
        problem = "at most 16 entries, with keys of 64 characters and values of 512"
        raise InvalidArgumentError("options.metadata", problem)
    check_key("options.idempotency_key", options.idempotency_key)
    budget = options.max_cost_nanos if options.HasField("max_cost_nanos") else None
    return check_seconds("options.completion_seconds", seconds), budget and check_budget(
        "options.max_cost_nanos", budget
    )


def _check_whole(totals: Totals, pinned: Pinned) -> None:
    """Raises InvalidArgumentError with all that is wrong."""
    for named, error in pinned.missing.items():
        totals.fault(totals.adapters[named], (FieldViolation("body.adapter", str(error)),))
    if not totals.num_items and not totals.num_faults:
        raise InvalidArgumentError("data", "a batch has at least one line")
    if totals.faults:
        first, *more = totals.faults
        rest = totals.num_faults - len({violation.field.partition(":")[0] for violation in totals.faults})
        if rest > 0:
            more.append(FieldViolation("data", f"{rest} more lines are wrong"))
        raise InvalidArgumentError(*first, *more)
