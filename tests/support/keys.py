"""API keys of tenants, made in the database itself."""

from typing import Any

from gateway.database.database import Database
from gateway.tenants.api_key import USUAL_SCOPES, Scope
from gateway.tenants.key_store import KeyStore
from gateway.tenants.plan import Plan


async def make_key(url: str, tenant: str = "acme", scopes: frozenset[Scope] = USUAL_SCOPES, **plan: Any) -> str:
    """The text of a new key; the tenant is made with this plan, unless it is there."""
    database = Database(url)
    store = KeyStore(database)
    if tenant not in {known.id for known in await store.tenants()}:
        await store.create_tenant(tenant, Plan(**plan))
    _, key = await store.create_key(tenant, "", scopes)
    await database.close()
    return key.text
