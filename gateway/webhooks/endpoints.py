"""Tenants' webhooks in the database: where they go, and what their messages are signed with."""

import base64
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, delete, func, insert, select, update

from gateway.clock import time_of_day
from gateway.database.database import Database
from gateway.database.tables import webhook_messages, webhooks
from gateway.webhooks.addresses import Addresses
from paceline.errors import InvalidArgumentError, NotFoundError, QuotaExceededError

_SECRET_BYTES = 32
_MAX_WEBHOOKS = 20


class Made(NamedTuple):
    """A webhook with a secret that is shown this once."""

    row: Row[Any]
    secret: str


class Endpoints:
    """Reads and changes, each a transaction of its own. Rows are those of the table, with `num_waiting`."""

    def __init__(self, database: Database, addresses: Addresses, clock: Callable[[], float] = time_of_day) -> None:
        self._database = database
        self._addresses = addresses
        self._clock = clock

    async def create(self, tenant: str, url: str) -> Made:
        """Raises InvalidArgumentError, QuotaExceededError."""
        self._addresses.check(url)
        secret = _new_secret()
        row = {"id": f"wh_{secrets.token_hex(12)}", "tenant": tenant, "url": url, "secret": secret}
        of_tenant = select(func.count()).where(webhooks.c.tenant == tenant)
        async with self._database.write() as connection:
            if (await connection.execute(of_tenant)).scalar_one() >= _MAX_WEBHOOKS:
                raise QuotaExceededError(tenant, f"{_MAX_WEBHOOKS} webhooks are the limit")
            await connection.execute(insert(webhooks), [{**row, "created_at": self._clock()}])
        return Made(await self._get(tenant, row["id"]), secret)

    async def list(self, tenant: str) -> Sequence[Row[Any]]:
        """All of a tenant, oldest first."""
        waiting = select(func.count()).where(webhook_messages.c.webhook == webhooks.c.id).scalar_subquery()
        wanted = select(webhooks, waiting.label("num_waiting")).where(webhooks.c.tenant == tenant)
        async with self._database.read() as connection:
            return (await connection.execute(wanted.order_by(webhooks.c.created_at, webhooks.c.id))).all()

    async def rotate(self, tenant: str, webhook_id: str, overlap: float) -> Made:
        """Makes another secret, beside which the old one is used for `overlap` seconds. Raises NotFoundError."""
        if not overlap >= 0:
            raise InvalidArgumentError("overlap_seconds", f"must be at least 0, got {overlap}")
        secret, until = _new_secret(), self._clock() + overlap
        changed = {"secret": secret, "old_secret": webhooks.c.secret, "old_until": until, "disabled_at": None}
        async with self._database.write() as connection:
            done = await connection.execute(update(webhooks).where(_of(tenant, webhook_id)).values(**changed))
            if not done.rowcount:
                raise NotFoundError("webhook", webhook_id)
        return Made(await self._get(tenant, webhook_id), secret)

    async def delete(self, tenant: str, webhook_id: str) -> None:
        """Deletes one with all that waits for it. Raises NotFoundError."""
        async with self._database.write() as connection:
            known = select(webhooks.c.id).where(_of(tenant, webhook_id)).with_for_update()
            if (await connection.execute(known)).first() is None:
                raise NotFoundError("webhook", webhook_id)
            await connection.execute(delete(webhook_messages).where(webhook_messages.c.webhook == webhook_id))
            await connection.execute(delete(webhooks).where(webhooks.c.id == webhook_id))

    async def _get(self, tenant: str, webhook_id: str) -> Row[Any]:
        for row in await self.list(tenant):
            if row.id == webhook_id:
                return row
        raise NotFoundError("webhook", webhook_id)


def _new_secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"


def _of(tenant: str, webhook_id: str) -> Any:
    return (webhooks.c.tenant == tenant) & (webhooks.c.id == webhook_id)
