"""CacheService: the caller's share of the prefix cache."""

from typing import Any

from gateway.tenants.grants import Grants
from paceline.v1 import cache_pb2, cache_pb2_grpc
from services.common.errors import FailedPreconditionError
from services.prefix_cache.client import PrefixCacheClient

_ASK_SECONDS = 5.0
_DELETE_SECONDS = 60.0


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """Asks the prefix cache in the caller's name."""

    def __init__(self, client: PrefixCacheClient | None, grants: Grants) -> None:
        self._client = client
        self._grants = grants

    async def GetCacheStatistics(
        self, request: cache_pb2.GetCacheStatisticsRequest, context: Any
    ) -> cache_pb2.GetCacheStatisticsResponse:
        """See cache.proto."""
        namespace = self._grants.namespace(context)
        found = await self._cache().statistics(self._grants.token(namespace), namespace, _ASK_SECONDS)
        return cache_pb2.GetCacheStatisticsResponse(
            tiers=found.tiers, num_misses=found.num_misses, quota_bytes=found.quota_bytes
        )

    async def ClearCache(self, request: cache_pb2.ClearCacheRequest, context: Any) -> cache_pb2.ClearCacheResponse:
        """See cache.proto."""
        namespace = self._grants.namespace(context)
        count = await self._cache().delete(self._grants.token(namespace), namespace, _DELETE_SECONDS)
        return cache_pb2.ClearCacheResponse(num_deleted=count)

    def _cache(self) -> PrefixCacheClient:
        if self._client is None:
            raise FailedPreconditionError("this gateway knows no prefix cache")
        return self._client
