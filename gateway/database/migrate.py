"""Brings a database to what this version of the code knows: by one gateway, while the others wait for it."""

import logging
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from gateway.database.database import Database
from paceline.errors import FailedPreconditionError

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent / "migrations"
_DIGITS = 4
"""A migration's file is named by its revision, such as 0001_tenants.py."""
_LOCK = 0x706163656C696E65
"""Number of PostgreSQL's advisory lock: "paceline"."""


async def migrate(database: Database) -> None:
    """Applies what was not applied yet, all of it or nothing, under the database's lock.

    Raises FailedPreconditionError for a database that a newer version has changed.
    """
    async with database.write() as connection:
        if not database.is_sqlite:  # SQLite's own lock is held by any transaction that writes.
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    known = sorted(path.name[:_DIGITS] for path in (_FOLDER / "versions").glob("[0-9]*.py"))
    current = None
    if inspect(connection).has_table("alembic_version"):
        current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if current == known[-1]:
        return  # So it is nearly always, and alembic takes longer to load than all else that a start does here.
    if current is not None and current not in known:
        raise FailedPreconditionError(f"the database is of a newer version: {current}, and {known[-1]} is known here")
    _log.info("the database goes from %s to %s", current, known[-1])
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
