"""The callers' computed prompts: kept by the prefix caches, each of which has a share of them."""

from typing import TypeAlias

from gateway.model.replicas import Replicas
from gateway.tenants.grants import Grants
from gateway.tenants.identity import Caller
from paceline.errors import FailedPreconditionError, UnavailableError
from paceline.v1 import cache_pb2
from services.prefix_cache.client import PrefixCacheClient

_ASK_SECONDS = 5.0
_DELETE_SECONDS = 60.0
_RETRY_AFTER_SECONDS = 1.0
_SHARED_TIER = "redis"
Caches: TypeAlias = Replicas[PrefixCacheClient, bool]


class Blocks:
    """Asks all prefix caches in the callers' names."""

    def __init__(self, caches: Caches, grants: Grants) -> None:
        self._all_caches = caches
        self._grants = grants

    async def statistics(self, caller: Caller) -> cache_pb2.GetCacheStatisticsResponse:
        """What the caches that can be reached hold, together."""
        token = self._grants.token(caller)
        answers = await self._caches.call_each(lambda cache: cache.statistics(token, caller.namespace, _ASK_SECONDS))
        tiers: dict[str, cache_pb2.TierStatistics] = {}
        for tier in (tier for answer in answers for tier in answer.tiers):
            total = tiers.setdefault(tier.tier, cache_pb2.TierStatistics(tier=tier.tier))
            both = max if tier.tier == _SHARED_TIER else int.__add__
            total.num_blocks = both(total.num_blocks, tier.num_blocks)
            total.num_bytes = both(total.num_bytes, tier.num_bytes)
            total.num_hits += tier.num_hits
            total.num_evictions += tier.num_evictions
            total.num_corrupt += tier.num_corrupt
        return cache_pb2.GetCacheStatisticsResponse(
            tiers=tiers.values(),
            num_misses=sum(answer.num_misses for answer in answers),
            quota_bytes=sum(answer.quota_bytes for answer in answers),
        )

    async def clear(self, caller: Caller) -> int:
        """Deletes everything; returns how many blocks. Raises UnavailableError when a cache could not be reached."""
        token, caches = self._grants.token(caller), self._caches
        deleted = await caches.call_each(lambda cache: cache.delete(token, caller.namespace, _DELETE_SECONDS))
        if len(deleted) < len(caches):
            description = f"{len(deleted)} of {len(caches)} prefix caches deleted what they had; try again"
            raise UnavailableError(description, _RETRY_AFTER_SECONDS)
        return sum(deleted)

    async def close(self) -> None:
        """Ends the connections to the caches."""
        await self._all_caches.close()

    @property
    def _caches(self) -> Caches:
        if not len(self._all_caches):
            raise FailedPreconditionError("this gateway knows no prefix cache")
        return self._all_caches
