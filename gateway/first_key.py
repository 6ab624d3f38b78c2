"""Makes an API key in the database itself, for whoever has none yet to ask a gateway with: `paceline keys first`.

Whoever can write the database may do anything anyway.
"""

import argparse
import asyncio
import contextlib
import os
import sys

from gateway.database.database import Database
from gateway.database.migrate import migrate
from gateway.settings import user_database
from gateway.tenants.api_key import ALL_SCOPES
from gateway.tenants.key_store import KeyStore
from gateway.tenants.plan import Plan
from paceline.errors import AlreadyExistsError, PacelineError

_VARIABLE = "PACELINE_GATEWAY_DATABASE"


async def make(url: str, tenant: str, name: str) -> str:
    """A key of all scopes, for a tenant that is made where there is none."""
    database = Database(url)
    try:
        await migrate(database)
        store = KeyStore(database)
        with contextlib.suppress(AlreadyExistsError):
            await store.create_tenant(tenant, Plan())
        _, key = await store.create_key(tenant, name, ALL_SCOPES)
        return key.text
    finally:
        await database.close()


def main() -> None:
    """Prints the key."""
    parser = argparse.ArgumentParser(description="Makes an API key of all scopes in a gateway's database.")
    parser.add_argument("--database", default=os.environ.get(_VARIABLE) or user_database())
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--name", default="first")
    given = parser.parse_args()
    try:
        sys.stdout.write(asyncio.run(make(given.database, given.tenant, given.name)) + "\n")
    except (PacelineError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
