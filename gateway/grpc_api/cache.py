"""CacheService: the caller's share of the prefix caches."""

from gateway.tenants.api_key import Scope
from gateway.tenants.blocks import Blocks
from gateway.tenants.identity import Identity
from paceline.v1 import cache_pb2, cache_pb2_grpc
from services.common.access import CallContext


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """Between gRPC and what is kept for callers."""

    def __init__(self, blocks: Blocks, identity: Identity) -> None:
        self._blocks = blocks
        self._identity = identity

    async def GetCacheStatistics(
        self, request: cache_pb2.GetCacheStatisticsRequest, context: CallContext
    ) -> cache_pb2.GetCacheStatisticsResponse:
        """See cache.proto."""
        return await self._blocks.statistics(await self._identity.caller(context, Scope.CACHE))

    async def ClearCache(
        self, request: cache_pb2.ClearCacheRequest, context: CallContext
    ) -> cache_pb2.ClearCacheResponse:
        """See cache.proto."""
        return cache_pb2.ClearCacheResponse(
            num_deleted=await self._blocks.clear(await self._identity.caller(context, Scope.CACHE))
        )
