"""Batches and their items."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_COUNTS = (
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


def upgrade() -> None:
    """Makes the tables of batches."""
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("idempotency_key", sa.String(128)),
        sa.Column("digest", sa.LargeBinary(32)),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("pins", sa.Text, nullable=False),
        *[sa.Column(name, sa.Double, nullable=False) for name in ("created_at", "updated_at", "expires_at")],
        *[sa.Column(name, sa.Double) for name in ("accepted_at", "started_at", "cancelled_at", "ended_at")],
        *[sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS],
        sa.UniqueConstraint("tenant", "idempotency_key", name="uq_batches_idempotency_key"),
    )
    op.create_index("ix_batches_tenant", "batches", ["tenant", "created_at", "id"])
    op.create_index("ix_batches_state", "batches", ["state", "expires_at"])
    op.create_table(
        "batch_items",
        sa.Column("batch", sa.String(32), sa.ForeignKey("batches.id"), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("is_chat", sa.Boolean, nullable=False),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("affinity", sa.String(16), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("num_attempts", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("lease", sa.String(32)),
        sa.Column("lease_until", sa.Double),
        sa.Column("ended_order", sa.BigInteger),
        sa.Column("line", sa.Text),
    )
    op.create_index("ix_batch_items_state", "batch_items", ["batch", "state", "affinity", "place"])
    op.create_index("ix_batch_items_order", "batch_items", ["batch", "ended_order", "place"])
    runs = sa.text("state = 1")
    op.create_index("ix_batch_items_lease", "batch_items", ["lease"], sqlite_where=runs, postgresql_where=runs)
