"""Replicas of what works on batches, without a process each, that are gone when a test says so."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.batch.acceptance import Acceptance
from gateway.batch.batches import Batches
from gateway.batch.execution import Execution
from gateway.batch.leases import Leases
from gateway.batch.pins import Pins
from gateway.batch.worker import Worker
from gateway.database.database import Database
from gateway.tenants.accounts import Accounts
from gateway.tenants.key_store import KeyStore
from gateway.tenants.keys import Keys
from gateway.tenants.ledger import Ledger
from gateway.tenants.limits import Limits
from gateway.tenants.prices import Prices
from paceline.errors import UnavailableError
from support.generation import Core

_FAST = 200.0
"""How much faster the time of day goes: nobody has to wait for pauses."""


class MortalDatabase(Database):
    """A database whose user may be gone at any moment, and to which connections break now and then: before a
    transaction, in it, or when it was committed and nobody hears of it.
    """

    def __init__(self, url: str, chance: random.Random, broken: float) -> None:
        super().__init__(url)
        self._chance = chance
        self._broken = broken
        self.is_gone = False

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        self._check()
        async with super().read() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        self._check()
        async with super().write() as connection:
            yield connection
            self._check()
        self._check()

    def _check(self) -> None:
        if self.is_gone or self._chance.random() < self._broken:
            raise UnavailableError("the connection to the database broke")


class Replica:
    """One gateway's share of the work."""

    def __init__(
        self,
        database: MortalDatabase,
        core: Core,
        prices: Prices,
        lease_seconds: float,
    ) -> None:
        self._database = database
        ledger = Ledger(database, fast_clock)
        accounts = Accounts(Keys(KeyStore(database), 60, 60), Limits(), ledger, prices, fast_clock)
        self._worker = Worker(
            Leases(database, ledger, lease_seconds, fast_clock),
            Batches(database, fast_clock),
            Acceptance(database, fast_clock),
            Execution(core.generation, Pins(core.catalogue, core.adapters), accounts, fast_clock),
            most=4,
            keep_seconds=float("inf"),
        )
        self._task = asyncio.create_task(self._run())

    async def kill(self) -> None:
        """From now on nothing that it does counts."""
        self._database.is_gone = True
        await self.stop()

    async def stop(self) -> None:
        """Has it end as it should."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._database.close()

    async def _run(self) -> None:
        async with self._worker.running():
            await asyncio.Event().wait()


def fast_clock() -> float:
    """A time of day that hurries."""
    return 1.79e9 + asyncio.get_running_loop().time() * _FAST
