"""Keys as requests meet them: who has one, and that what runs with a key ends when the key does."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.clock import time_of_day
from gateway.tenants.api_key import ApiKey
from gateway.tenants.fresh import Fresh
from gateway.tenants.key_store import KeyStore, KnownKey
from gateway.tenants.plan import Plan
from paceline.errors import UnauthenticatedError, UnavailableError

_log = logging.getLogger(__name__)


class Keys:
    """What a gateway knows of keys and plans; a change is known everywhere within `seconds`."""

    def __init__(
        self, store: KeyStore, seconds: float, outage_seconds: float, clock: Callable[[], float] = time_of_day
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._clock = clock
        self._known: Fresh[str, KnownKey | None] = Fresh(self._read, seconds, outage_seconds)
        self._plans: Fresh[str, Plan | None] = Fresh(store.plan, seconds, outage_seconds)
        self._any: Fresh[None, bool] = Fresh(self._read_any, seconds, outage_seconds)
        self._running: dict[str, set[asyncio.Timeout]] = {}

    async def find(self, text: str) -> KnownKey | None:
        """The key that a caller shows, while it holds; None for all that is none."""
        key = ApiKey.parse(text)
        known = None if key is None else await self._known.get(key.id)
        if key is None or known is None or not key.is_of(known.digest):
            return None
        if not known.holds(self._clock()):
            _log.warning("API key %s of tenant %r was used, which does not hold any more", known.id, known.tenant)
            return None
        return known

    async def plan(self, tenant: str) -> Plan:
        """What a tenant may use that was named by a proxy."""
        return await self._plans.get(tenant) or Plan()

    async def has_keys(self) -> bool:
        """Whether there ever was a key; then there always will have been."""
        return await self._any.get(None)

    @asynccontextmanager
    async def while_it_holds(self, key_id: str) -> AsyncIterator[None]:
        """Ends the block with UnauthenticatedError when the key stops holding; an empty id is no key."""
        if not key_id:
            yield
            return
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._running.setdefault(key_id, set()).add(limit)
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise UnauthenticatedError("the API key stopped holding while the request ran") from error
        finally:
            if running := self._running.get(key_id):
                running.discard(limit)
                if not running:
                    del self._running[key_id]

    async def watch(self) -> None:
        """Looks for as long as it is let whether the keys of running requests hold, and ends those whose do not."""
        while True:
            await asyncio.sleep(self._seconds / 2)
            if not self._running:
                continue
            try:
                found = {key.id: key for key in await self._store.keys(list(self._running))}
            except UnavailableError:
                continue
            for key_id, limits in list(self._running.items()):
                known = found.get(key_id)
                self._known.keep(key_id, known)
                if known is None or not known.holds(self._clock()):
                    _log.info("%d requests end with API key %s", len(limits), key_id)
                    for limit in limits:
                        if not limit.expired():
                            limit.reschedule(asyncio.get_running_loop().time())

    async def _read(self, key_id: str) -> KnownKey | None:
        return next(iter(await self._store.keys([key_id])), None)

    async def _read_any(self, _: None) -> bool:
        return await self._store.has_keys()
