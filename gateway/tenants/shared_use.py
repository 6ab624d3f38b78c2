"""Gateways tell each other, by the database, what they let through, so that a limit is one limit over all of them.

Each writes its own totals once a second and takes what the others' rose by from its own buckets: a tenant that spreads
its requests over gateways gets at most a second's worth more.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import delete, select

from gateway.clock import time_of_day
from gateway.database.database import Database
from gateway.database.tables import limit_use
from gateway.tenants.limits import Limits
from paceline.errors import UnavailableError

_log = logging.getLogger(__name__)
_SECONDS = 1.0
_GONE_SECONDS = 15.0
"""Who has told nothing for so long runs nothing any more."""
_FORGOTTEN_SECONDS = 3600.0
_COLUMNS = ("num_requests", "num_tokens", "num_streams", "told_at")


class _Totals(NamedTuple):
    num_requests: int
    num_tokens: int
    num_streams: int


class SharedUse:
    """Keeps one gateway's limits in step with the others'."""

    def __init__(self, database: Database, limits: Limits, clock: Callable[[], float] = time_of_day) -> None:
        self._database = database
        self._limits = limits
        self._clock = clock
        self._replica = secrets.token_hex(8)
        self._told: dict[str, _Totals] = {}
        self._heard: dict[tuple[str, str], _Totals] | None = None
        """By replica and tenant; None before anything was heard, when all that is there is of before."""

    async def run(self) -> None:
        """Exchanges for as long as it is let."""
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                await self.exchange()
            except UnavailableError as error:
                _log.warning("limits are this gateway's own for now: %s", error)

    async def exchange(self) -> None:
        """Tells what this gateway let through, and takes what others did from its buckets."""
        now = self._clock()
        totals = {
            tenant: _Totals(use.num_requests, use.num_tokens, use.num_streams)
            for tenant, use in self._limits.uses.items()
        }
        # Who streams says so again and again; of others only changes are news.
        news = {tenant: said for tenant, said in totals.items() if said.num_streams or said != self._told.get(tenant)}
        if news:
            rows = [
                {"replica": self._replica, "tenant": tenant, **said._asdict(), "told_at": now}
                for tenant, said in news.items()
            ]
            async with self._database.write() as connection:
                await connection.execute(self._database.insert_or_replace(limit_use, _COLUMNS), rows)
            self._told.update(news)
        if totals:
            await self._hear(now)

    async def forget(self) -> None:
        """Takes away what this gateway told, and what those that ended long ago did."""
        old = limit_use.c.told_at < self._clock() - _FORGOTTEN_SECONDS
        async with self._database.write() as connection:
            await connection.execute(delete(limit_use).where(old | (limit_use.c.replica == self._replica)))

    async def _hear(self, now: float) -> None:
        # What is told from later than now is of a clock that was set back since, and nobody's who still tells it.
        recent = (limit_use.c.replica != self._replica) & limit_use.c.told_at.between(now - 60, now + 60)
        async with self._database.read() as connection:
            rows = (await connection.execute(select(limit_use).where(recent))).all()
        for use in self._limits.uses.values():
            use.num_streams_elsewhere = 0
        heard = self._heard if self._heard is not None else {}
        for row in rows:
            said = _Totals(row.num_requests, row.num_tokens, row.num_streams)
            before = heard.get((row.replica, row.tenant), said if self._heard is None else _Totals(0, 0, 0))
            heard[row.replica, row.tenant] = said
            use = self._limits.use(row.tenant)
            use.requests.take(said.num_requests - before.num_requests)
            use.tokens.take(said.num_tokens - before.num_tokens)
            if row.told_at > now - _GONE_SECONDS:
                use.num_streams_elsewhere += said.num_streams
        self._heard = heard
