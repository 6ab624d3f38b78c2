"""A system with a prefix cache, each part of which can be restarted, and one that has none to compare with."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from gateway.lifespan import gateway_lifespan
from paceline import Client, Options
from services.adapter_store.lifespan import adapter_store_lifespan
from services.adapter_store.settings import AdapterStoreSettings
from services.common.tokens import TokenMint, new_signing_key, public_key
from services.draft.lifespan import draft_lifespan
from services.draft.settings import DraftSettings
from services.prefix_cache.lifespan import prefix_cache_lifespan
from services.prefix_cache.settings import PrefixCacheSettings
from services.verifier.lifespan import verifier_lifespan
from services.verifier.settings import VerifierSettings
from support.driver import DEVICE
from support.served import SERVER, served
from support.system import Reply, collect, engine_config, gateway_settings

TENANT_HEADER = "x-tenant"
SEAL_KEY = "5e" * 32
ENGINE = {
    "dtype": "float32", "num_threads": 1, "kv_bytes": 16 << 20, "device": DEVICE,
    # Computing a prompt counts as many steps: a fetch always pays.
    "max_step_tokens": 16,
}  # fmt: skip


class CachedSystem:
    """Prefix cache, verifier, draft and gateway. Addresses change with every start; the gateway comes last."""

    def __init__(
        self,
        target: str,
        draft: str | None = None,
        *,
        folder: Path | None = None,
        store_folder: Path | None = None,
        **engine: Any,
    ) -> None:
        """`folder` is the prefix cache's; `store_folder` that of an adapter store, which is there where it is set."""
        self.target, self.draft, self.folder, self.store_folder = target, draft, folder, store_folder
        self.engine = {**ENGINE, **engine}
        self.cache_settings: dict[str, Any] = {}
        self.gateway_settings: dict[str, Any] = {}
        self.cache_address = ""
        self.gateway = ""
        self.verifier = self.draft_address = ""
        self._signing_key = new_signing_key()
        self.mint = TokenMint(self._signing_key, 600)
        self._store = AsyncExitStack()
        self._store_address: str | None = None
        self._cache = AsyncExitStack()
        self._engines = AsyncExitStack()

    async def __aenter__(self) -> "CachedSystem":
        await self.start_cache()
        if self.store_folder is not None:
            store = AdapterStoreSettings(token_keys=self.token_keys, folder=self.store_folder, server=SERVER)
            self._store_address = await self._store.enter_async_context(served(adapter_store_lifespan(store)))
        await self.start_engines()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._engines.aclose()
        await self._store.aclose()
        await self._cache.aclose()

    @property
    def token_keys(self) -> tuple[str, ...]:
        """What a cache takes to check this system's tokens."""
        return (public_key(self._signing_key),)

    async def start_cache(self) -> None:
        """Starts a prefix cache, or starts it again."""
        await self._cache.aclose()
        settings = PrefixCacheSettings(
            token_keys=self.token_keys, disk_folder=self.folder, server=SERVER, **self.cache_settings
        )
        self.cache_address = await self._cache.enter_async_context(served(prefix_cache_lifespan(settings)))

    async def start_engines(self) -> None:
        """Starts verifier, draft and gateway, or starts them again: what they had computed is gone."""
        await self._engines.aclose()
        enter = self._engines.enter_async_context
        more = {**self.engine, "prefix_cache": self.cache_address, "prefix_cache_seal_key": SEAL_KEY, "server": SERVER}
        more |= {"adapter_store": self._store_address, "token_keys": self.token_keys}
        config, more = engine_config(self.target, more)
        verifier = VerifierSettings(engine=config, model_id="tiny", suffix_drafting=False, **more)
        self.verifier = await enter(served(verifier_lifespan(verifier)))
        drafts: tuple[str, ...] = ()
        if self.draft is not None:
            drafting = DraftSettings(engine=config.model_copy(update={"model": self.draft}), **more)
            self.draft_address = await enter(served(draft_lifespan(drafting)))
            drafts = (self.draft_address,)
        gateway = gateway_settings(
            "tiny", self.target, [self.verifier], drafts,
            prefix_cache=self.cache_address, adapter_store=self._store_address, signing_key=self._signing_key,
            tenant_header=TENANT_HEADER, **self.gateway_settings,
        )  # fmt: skip
        self.gateway = await enter(served(gateway_lifespan(gateway)))

    async def generate(self, prompt: str | Sequence[int], tenant: str = "a", **options: Any) -> Reply:
        """One request of a tenant, to its end."""
        async with self.client(tenant) as client:
            return await collect(client.generate(prompt, **Options(**options)))

    def client(self, tenant: str) -> Client:
        """A client whose proxy says that it is this tenant."""
        return Client(self.gateway, metadata=((TENANT_HEADER, tenant),))

    async def num_stored(self, tenant: str = "a") -> int:
        """Blocks of a tenant in the nearest tier."""
        async with self.client(tenant) as client:
            return int((await client.cache_statistics()).tiers[0].num_blocks)

    async def stored(self, num_blocks: int, tenant: str = "a") -> None:
        """Returns once the cache holds so many blocks of a tenant, at least."""
        async with asyncio.timeout(20):
            while await self.num_stored(tenant) < num_blocks:
                continue
