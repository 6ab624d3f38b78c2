"""By what the prompt of a request is known when another gateway goes on with it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the column to the rows of requests."""
    op.add_column("usage_requests", sa.Column("prompt_digest", sa.String(32), nullable=False, server_default=""))
