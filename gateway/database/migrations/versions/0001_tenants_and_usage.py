"""Tenants, keys, usage."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SUMS = (
    "num_requests",
    "num_prompt_tokens",
    "num_cached_tokens",
    "num_completion_tokens",
    "num_drafted_tokens",
    "num_accepted_tokens",
    "cost",
)
_ACCOUNT = {"tenant": 128, "day": 10, "key_id": 32, "model": 256, "adapter": 128, "kind": 16}


def upgrade() -> None:
    """Makes the first tables."""
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("max_streams", sa.BigInteger),
        sa.Column("max_batch_items", sa.BigInteger),
        sa.Column("max_batch_tokens", sa.BigInteger),
        sa.Column("max_monthly_cost", sa.BigInteger),
        sa.Column("max_priority", sa.Integer),
        sa.Column("weight", sa.Double),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(128), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("scopes", sa.String(256), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant"])
    op.create_table(
        "usage_days",
        *[sa.Column(name, sa.String(size), primary_key=True) for name, size in _ACCOUNT.items()],
        *[sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS],
    )
    op.create_table(
        "usage_requests",
        sa.Column("request_id", sa.String(64), primary_key=True),
        *[sa.Column(name, sa.String(size), nullable=False) for name, size in _ACCOUNT.items()],
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("ended_at", sa.Double, nullable=False),
        *[sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS],
    )
    op.create_table(
        "limit_use",
        sa.Column("replica", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("num_requests", sa.BigInteger, nullable=False),
        sa.Column("num_tokens", sa.BigInteger, nullable=False),
        sa.Column("num_streams", sa.BigInteger, nullable=False),
        sa.Column("told_at", sa.Double, nullable=False),
    )
