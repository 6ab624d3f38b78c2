"""Batches with budgets, retries of batches, crashes by item, and the end of old rows of the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds columns, and an index by which old rows are found."""
    op.add_column("batches", sa.Column("max_cost", sa.BigInteger))
    op.add_column("batches", sa.Column("retry_of", sa.String(32)))
    op.add_column("batch_items", sa.Column("max_cost", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("batch_items", sa.Column("num_crashes", sa.Integer, nullable=False, server_default="0"))
    op.create_index("ix_usage_requests_ended_at", "usage_requests", ["ended_at"])
