"""The accounts of interactive requests: limits while they run, and the ledger when they end."""

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from gateway.clock import time_of_day
from gateway.database.tables import MONEY
from gateway.generation.outcome import Record
from gateway.tenants.entry import Entry, Resumed
from gateway.tenants.identity import Caller
from gateway.tenants.keys import Keys
from gateway.tenants.kind import Kind
from gateway.tenants.ledger import Ledger
from gateway.tenants.limits import Allowance, Limits
from gateway.tenants.prices import Prices
from paceline.errors import QuotaExceededError

_SETTLE_SECONDS = 1.0


class Accounts:
    """See `gateway.generation.accounting`."""

    def __init__(
        self, keys: Keys, limits: Limits, ledger: Ledger, prices: Prices, clock: Callable[[], float] = time_of_day
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._ledger = ledger
        self._prices = prices
        self._clock = clock

    @asynccontextmanager
    async def request(self, caller: Caller) -> AsyncIterator[Allowance]:
        """Holds a place within the tenant's limits while the block lasts.

        Raises QuotaExceededError at once, and UnauthenticatedError when the key stops holding.
        """
        await self.check_cost(caller)
        async with self._keys.while_it_holds(caller.key_id):
            with self._limits.request(caller.tenant, caller.plan) as allowance:
                yield allowance

    def request_id(self) -> str:
        """A new one."""
        return uuid.uuid4().hex

    def ended(self, record: Record) -> None:
        """Has the ledger keep what a request used. One that was refused before it had a place used nothing."""
        if record.was_admitted:
            self._ledger.record(self.entry(record, Kind.INTERACTIVE))

    async def settled(self) -> None:
        """Returns once the ledger has it in the database, or after a second."""
        await self._ledger.flushed(_SETTLE_SECONDS)

    def entry(self, record: Record, kind: Kind) -> Entry:
        """What the ledger keeps of a request that ended."""
        usage, received = record.billed(), record.received_before()
        price = partial(self._prices.cost, record.model, record.adapter, kind)
        return Entry(
            request_id=record.request_id,
            tenant=record.caller.tenant,
            key_id=record.caller.key_id,
            model=record.model,
            adapter=record.adapter,
            kind=kind,
            outcome=str(record.outcome),
            ended_at=self._clock(),
            usage=usage,
            cost=price(usage),
            resumed=None if received is None else Resumed(received, price),
            prompt_digest=record.prompt_digest(),
        )

    async def check_cost(self, caller: Caller) -> None:
        """Raises QuotaExceededError when the tenant has spent this month what it may."""
        limit = caller.plan.max_monthly_cost
        if limit is not None and await self._ledger.spent_this_month(caller.tenant) >= limit:
            amount = f"{limit / MONEY:g} {self._prices.currency}"
            raise QuotaExceededError(caller.tenant, f"the cost limit of {amount} a month is used up")
