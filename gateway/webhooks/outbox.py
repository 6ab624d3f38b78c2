"""What waits to be sent to webhooks: it is there exactly when what it tells of is, and until it has arrived."""

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.database.database import Database
from gateway.database.tables import webhook_messages, webhooks

_MAX_READ = 200


class Message(NamedTuple):
    """One message that this gateway may send now."""

    id: str
    webhook: str
    url: str
    keys: Sequence[str]
    """Secrets that it is signed with."""
    body: str
    num_attempts: int
    """This one counted."""


async def announce(connection: AsyncConnection, tenant: str, kind: str, data: Mapping[str, Any], now: float) -> None:
    """Has a tenant's webhooks be told, if the transaction is committed."""
    enabled = (webhooks.c.tenant == tenant) & webhooks.c.disabled_at.is_(None)
    ids = list(
        (
            await connection.execute(select(webhooks.c.id).where(enabled).with_for_update(read=True, key_share=True))
        ).scalars()
    )
    if not ids:
        return
    body = json.dumps({"type": kind, "timestamp": datetime.fromtimestamp(now, UTC).isoformat(), "data": data})
    rows = [
        {"id": f"msg_{secrets.token_hex(12)}", "webhook": webhook, "body": body, "num_attempts": 0, "next_at": now}
        for webhook in ids
    ]
    await connection.execute(insert(webhook_messages), rows)


class Outbox:
    """Transactions that move messages on."""

    def __init__(self, database: Database, seconds: float) -> None:
        """A message is another gateway's to send when it was taken `seconds` ago and nothing came of it."""
        self._database = database
        self._seconds = seconds

    async def claim(self, most: int, busy: Collection[str], now: float) -> list[Message]:
        """Takes messages that are due, one a webhook and none of those that are busy: who is slow holds up nobody."""
        due = webhook_messages.c.next_at <= now
        free = due & webhook_messages.c.webhook.not_in(busy)
        async with self._database.read() as connection:
            if (await connection.execute(select(webhook_messages.c.id).where(free).limit(1))).first() is None:
                return []
        columns = (*webhook_messages.c["id", "webhook", "body", "num_attempts"], *webhooks.c["url", "secret"])
        wanted = select(*columns, webhooks.c["old_secret"], webhooks.c["old_until"]).join(webhooks).where(free)
        ordered = wanted.order_by(webhook_messages.c.next_at, webhook_messages.c.id).limit(_MAX_READ)
        claimed: dict[str, Message] = {}
        async with self._database.write() as connection:
            locking = ordered.with_for_update(of=webhook_messages, skip_locked=True)
            for row in (await connection.execute(locking)).all():
                if row.webhook in claimed or len(claimed) == most:
                    continue
                keys = [row.secret, *([row.old_secret] if row.old_secret and row.old_until > now else [])]
                claimed[row.webhook] = Message(row.id, row.webhook, row.url, keys, row.body, row.num_attempts + 1)
            for message in claimed.values():
                taken = {"num_attempts": message.num_attempts, "next_at": now + self._seconds}
                await connection.execute(
                    update(webhook_messages).where(webhook_messages.c.id == message.id).values(**taken)
                )
        return list(claimed.values())

    async def arrived(self, message: Message) -> None:
        """Has a message be done with."""
        await self._end(message, None)

    async def failed(self, message: Message, problem: str, next_at: float | None) -> None:
        """Has a message be sent again at a moment; None: it is given up."""
        if next_at is None:
            await self._end(message, problem)
            return
        async with self._database.write() as connection:
            mine = (webhook_messages.c.id == message.id) & (webhook_messages.c.num_attempts == message.num_attempts)
            await _note(connection, message, problem)
            await connection.execute(update(webhook_messages).where(mine).values(next_at=next_at))

    async def gone(self, message: Message, now: float) -> None:
        """Disables a webhook, whose messages are let go of."""
        async with self._database.write() as connection:
            disabled = {"disabled_at": now, "last_error": "its receiver says that it is gone"}
            await connection.execute(update(webhooks).where(webhooks.c.id == message.webhook).values(**disabled))
            await connection.execute(delete(webhook_messages).where(webhook_messages.c.webhook == message.webhook))

    async def _end(self, message: Message, problem: str | None) -> None:
        async with self._database.write() as connection:
            await _note(connection, message, problem)
            await connection.execute(delete(webhook_messages).where(webhook_messages.c.id == message.id))


async def _note(connection: AsyncConnection, message: Message, problem: str | None) -> None:
    """Keeps what was met, before anything else: all lock a webhook's row before those of its messages."""
    news = (webhooks.c.id == message.webhook) & webhooks.c.last_error.is_distinct_from(problem)
    await connection.execute(update(webhooks).where(news).values(last_error=problem))
