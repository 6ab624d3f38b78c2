"""Brings a database to what this version of the code knows: by one gateway, while the others wait for it."""

import logging
from pathlib import Path

from sqlalchemy import Connection, text

from gateway.database.database import Database
from paceline.errors import FailedPreconditionError

_log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent / "migrations"
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
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    newest = known.get_current_head()
    if current == newest:
        return
    if current is not None and current not in {script.revision for script in known.walk_revisions()}:
        raise FailedPreconditionError(f"the database is of a newer version: {current}, and {newest} is known here")
    _log.info("the database goes from %s to %s", current, newest)
    command.upgrade(config, "head")
