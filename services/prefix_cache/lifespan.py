"""Builds the tiers of a prefix cache, serves them, and tears them down."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.common.access import Access
from services.common.server import Lifespan, Served
from services.common.tokens import PREFIX_CACHE, PREFIX_CACHE_OWNER, TokenVerifier
from services.prefix_cache.client import SERVICE
from services.prefix_cache.disk_store import DiskStore
from services.prefix_cache.memory_store import MemoryStore
from services.prefix_cache.metrics import CacheMetrics
from services.prefix_cache.redis_store import RedisStore
from services.prefix_cache.servicer import PrefixCacheServicer
from services.prefix_cache.settings import PrefixCacheSettings
from services.prefix_cache.store import Store
from services.prefix_cache.tiers import Tiers
from services.process.servicer import add_process_service


def prefix_cache_lifespan(settings: PrefixCacheSettings) -> Lifespan:
    """The life of a prefix cache with these settings."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        os.nice(settings.niceness)
        access = Access(TokenVerifier(settings.token_keys, PREFIX_CACHE))
        owners = Access(TokenVerifier(settings.token_keys, PREFIX_CACHE_OWNER))
        tiers = Tiers(await _stores(settings), settings.max_pending_bytes, min(60.0, settings.idle_seconds / 10))
        try:
            servicer = PrefixCacheServicer(tiers, access, owners, CacheMetrics(), settings)
            servicer.add_to(server)
            folders = {} if settings.disk_folder is None else {"blocks": settings.disk_folder}
            yield Served((SERVICE, add_process_service(server, folders, settings.server.tls)))
        finally:
            await tiers.close()

    return lifespan


async def _stores(settings: PrefixCacheSettings) -> list[Store]:
    """The tiers, nearest first."""
    stores: list[Store] = [MemoryStore(settings.memory_bytes, settings.quota_bytes, settings.idle_seconds)]
    if settings.disk_folder is not None:
        disk = DiskStore(settings.disk_folder, settings.disk_bytes, settings.quota_bytes, settings.idle_seconds)
        await disk.open()
        stores.append(disk)
    if settings.redis_url is not None:
        stores.append(
            RedisStore(
                settings.redis_url.get_secret_value(),
                cluster=settings.redis_cluster,
                quota_bytes=settings.quota_bytes,
                idle_seconds=settings.idle_seconds,
                timeout_seconds=settings.redis_timeout_seconds,
            )
        )
    return stores
