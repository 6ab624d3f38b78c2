"""Everything about tenants that a gateway runs on one database: opened once, and closed with all that it began."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import NamedTuple

from gateway.database.database import Database
from gateway.database.migrate import migrate
from gateway.settings import GatewaySettings
from gateway.tenants.accounts import Accounts
from gateway.tenants.entry import DAY_SECONDS
from gateway.tenants.identity import LOCAL_TENANT, Identity, is_loopback
from gateway.tenants.key_store import KeyStore
from gateway.tenants.keys import Keys
from gateway.tenants.ledger import Ledger
from gateway.tenants.limits import Limits
from gateway.tenants.prices import Prices
from gateway.tenants.shared_use import SharedUse
from paceline.errors import FailedPreconditionError, UnavailableError

_log = logging.getLogger(__name__)


class Tenancy(NamedTuple):
    """Who may use a gateway, and what it came to."""

    database: Database
    key_store: KeyStore
    identity: Identity
    accounts: Accounts
    ledger: Ledger
    prices: Prices


@asynccontextmanager
async def open_tenancy(settings: GatewaySettings) -> AsyncIterator[Tenancy]:
    """Opens the database, brings it up to date, and keeps its books while the block lasts.

    Raises FailedPreconditionError when the gateway would let strangers in, UnavailableError without a database.
    """
    async with AsyncExitStack() as stack:
        database = Database(settings.database_url)
        stack.push_async_callback(database.close)
        await migrate(database)
        store = KeyStore(database)
        await _check_strangers(settings, store)
        keys = Keys(store, settings.key_seconds, settings.key_outage_seconds)
        limits, prices = Limits(), Prices.read(settings)
        ledger = Ledger(database, keep_seconds=settings.ledger_days * DAY_SECONDS)
        shared = SharedUse(database, limits)
        stack.push_async_callback(_forget, shared)
        await stack.enter_async_context(ledger.running())
        await stack.enter_async_context(_background(keys.watch(), shared.run(), ledger.prune()))
        identity = Identity(
            keys, tenant_header=settings.tenant_header, proxies=settings.proxies, anonymous=settings.anonymous
        )
        accounts = Accounts(keys, limits, ledger, prices)
        yield Tenancy(database, store, identity, accounts, ledger, prices)


async def _check_strangers(settings: GatewaySettings, store: KeyStore) -> None:
    """Says who is let in. Raises FailedPreconditionError where that would be anybody who finds the address."""
    host = settings.server.host
    if settings.anonymous:
        _log.warning("callers without an API key are served, as tenant %r", LOCAL_TENANT)
    elif await store.has_keys():
        _log.info("callers need an API key")
    elif settings.tenant_header is not None:
        _log.warning("there are no API keys: callers are who %r says", settings.tenant_header)
    elif is_loopback(host):
        _log.warning("there are no API keys: whoever reaches %s is tenant %r", host, LOCAL_TENANT)
    else:
        raise FailedPreconditionError(
            f"{host} is reached from elsewhere and there are no API keys: `paceline keys first` makes one, "
            "the setting `anonymous` lets everybody in"
        )


async def _forget(shared: SharedUse) -> None:
    with suppress(UnavailableError):
        await shared.forget()


@asynccontextmanager
async def _background(*works: "asyncio._CoroutineLike[None]") -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
