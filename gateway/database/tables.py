"""The tables, as the newest migration leaves them. Moments are seconds since 1970; amounts of money are billionths."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

MONEY = 1_000_000_000
"""Billionths in one unit of the currency."""

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("max_streams", BigInteger),
    Column("max_batch_items", BigInteger),
    Column("max_batch_tokens", BigInteger),
    Column("max_monthly_cost", BigInteger),
    Column("max_priority", Integer),
    Column("weight", Double),
)
"""Who is known by name, and what each may use; nothing said is no limit."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("scopes", String(256), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)
"""Keys, which stay when they are revoked: that there were some is why callers without one are not let in."""

_COUNTS = ("num_prompt_tokens", "num_cached_tokens", "num_completion_tokens", "num_drafted_tokens")
SUMS = ("num_requests", *_COUNTS, "num_accepted_tokens", "cost")
"""What is added up of usage."""


def _sums() -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in SUMS]


def _account(*, primary_key: bool) -> list[Column[str]]:
    lengths = {"tenant": 128, "day": 10, "key_id": 32, "model": 256, "adapter": 128, "kind": 16}
    return [Column(name, String(size), primary_key=primary_key, nullable=False) for name, size in lengths.items()]


usage_days = Table("usage_days", metadata, *_account(primary_key=True), *_sums())
"""Usage by tenant, day ("2026-11-26", UTC), key, model, adapter and kind."""

usage_requests = Table(
    "usage_requests",
    metadata,
    Column("request_id", String(64), primary_key=True),
    *_account(primary_key=False),
    Column("outcome", String(16), nullable=False),
    Column("ended_at", Double, nullable=False),
    *_sums(),
    Column("prompt_digest", String(32), nullable=False, server_default=""),
    Index("ix_usage_requests_ended_at", "ended_at"),
)
"""One row a request that used anything. That a request is here is why it is not added to the sums again."""

limit_use = Table(
    "limit_use",
    metadata,
    Column("replica", String(32), primary_key=True),
    Column("tenant", String(128), primary_key=True),
    Column("num_requests", BigInteger, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("num_streams", BigInteger, nullable=False),
    Column("told_at", Double, nullable=False),
)
"""What each gateway has let through since it started, and runs now, for the others to count."""

BATCH_COUNTS = (
    "num_items",
    "num_tokens",
    "num_ended",
    "num_completed",
    "num_failed",
    "num_cancelled",
    "num_expired",
    "num_prompt_tokens",
    "num_cached_tokens",
    "num_completion_tokens",
    "cost",
    "last_order",
)
_RUNS = text("state = 1")

batches = Table(
    "batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("idempotency_key", String(128)),
    Column("digest", LargeBinary(32)),
    Column("options", Text, nullable=False),
    Column("pins", Text, nullable=False),
    *[Column(name, Double, nullable=False) for name in ("created_at", "updated_at", "expires_at")],
    *[Column(name, Double) for name in ("accepted_at", "started_at", "cancelled_at", "ended_at")],
    *[Column(name, BigInteger, nullable=False) for name in BATCH_COUNTS],
    Column("max_cost", BigInteger),
    Column("retry_of", String(32)),
    Index("ix_batches_tenant", "tenant", "created_at", "id"),
    Index("ix_batches_state", "state", "expires_at"),
    UniqueConstraint("tenant", "idempotency_key", name="uq_batches_idempotency_key"),
)
"""Batches, with how many of their items are how, what they used, and what they may cost."""

batch_items = Table(
    "batch_items",
    metadata,
    Column("batch", String(32), ForeignKey("batches.id"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("custom_id", Text, nullable=False),
    Column("is_chat", Boolean, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("affinity", String(16), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("num_attempts", Integer, nullable=False),
    Column("num_crashes", Integer, nullable=False, server_default="0"),
    Column("max_cost", BigInteger, nullable=False, server_default="0"),
    Column("not_before", Double, nullable=False),
    Column("lease", String(32)),
    Column("lease_until", Double),
    Column("ended_order", BigInteger),
    Column("line", Text),
    Index("ix_batch_items_state", "batch", "state", "affinity", "place"),
    Index("ix_batch_items_order", "batch", "ended_order", "place"),
    Index("ix_batch_items_lease", "lease", sqlite_where=_RUNS, postgresql_where=_RUNS),
)
"""Items by their place in the input, from 0. `affinity` is alike where prompts begin alike; whoever runs an item has
the lease that it is recorded with."""

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("secret", String(64), nullable=False),
    Column("old_secret", String(64)),
    Column("old_until", Double),
    Column("created_at", Double, nullable=False),
    Column("disabled_at", Double),
    Column("last_error", Text),
)
"""Where tenants are told of what happened. Messages are signed with the secret, and with the old one for a while."""

webhook_messages = Table(
    "webhook_messages",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("webhook", String(32), ForeignKey("webhooks.id"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("num_attempts", Integer, nullable=False),
    Column("next_at", Double, nullable=False, index=True),
)
"""What waits to be sent: written with what it tells of, deleted when it has arrived. Whoever sends one moves its next
attempt on first, so that another gateway sends it when the first does not come back."""
