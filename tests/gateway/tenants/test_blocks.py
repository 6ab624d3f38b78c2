"""What is kept for a caller, at one, two and three prefix caches, any of them dead."""

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from gateway.model.replicas import Replicas
from gateway.tenants.blocks import Blocks
from gateway.tenants.grants import Grants
from gateway.tenants.identity import Caller
from paceline.errors import FailedPreconditionError, UnavailableError
from paceline.internal.v1 import prefix_cache_pb2 as pb
from paceline.internal.v1 import prefix_cache_pb2_grpc
from paceline.v1 import cache_pb2
from services.common.server import Served
from services.prefix_cache.client import PrefixCacheClient
from support.dead import dead_servers
from support.served import served

CALLER = Caller("a")
COMBINATIONS = [dead for count in (1, 2, 3) for dead in itertools.product([False, True], repeat=count)]


class FakeCache(prefix_cache_pb2_grpc.PrefixCacheServiceServicer):
    """Holds five blocks of every namespace, two of them in Redis too."""

    async def GetNamespaceStatistics(
        self, request: pb.GetNamespaceStatisticsRequest, context: object
    ) -> pb.GetNamespaceStatisticsResponse:
        tiers = [
            cache_pb2.TierStatistics(tier="memory", num_blocks=5, num_bytes=50, num_hits=1),
            cache_pb2.TierStatistics(tier="redis", num_blocks=2, num_bytes=20, num_hits=1),
        ]
        return pb.GetNamespaceStatisticsResponse(tiers=tiers, num_misses=3, quota_bytes=100)

    async def DeleteNamespace(self, request: pb.DeleteNamespaceRequest, context: object) -> pb.DeleteNamespaceResponse:
        return pb.DeleteNamespaceResponse(num_deleted=5)


@asynccontextmanager
async def serve_cache() -> AsyncIterator[str]:
    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        prefix_cache_pb2_grpc.add_PrefixCacheServiceServicer_to_server(FakeCache(), server)
        yield Served(())

    async with served(lifespan) as address:
        yield address


@asynccontextmanager
async def blocks_at(*targets: str) -> AsyncIterator[Blocks]:
    async def check(cache: PrefixCacheClient) -> bool:
        return await cache.check_serving(2.0)

    blocks = Blocks(Replicas.connect("prefix cache", targets, PrefixCacheClient, check), Grants(None))
    yield blocks
    await blocks.close()


@pytest.mark.parametrize("dead", COMBINATIONS)
async def test_all_caches_are_asked_and_the_dead_once_in_all(
    monkeypatch: pytest.MonkeyPatch, dead: tuple[bool, ...]
) -> None:
    monkeypatch.setattr("services.common.backoff.random.uniform", lambda _low, high: 600 * high)
    num_living = len(dead) - sum(dead)
    async with AsyncExitStack() as stack:
        living = [await stack.enter_async_context(serve_cache()) for _ in range(num_living)]
        gone = await stack.enter_async_context(dead_servers(sum(dead)))
        blocks = await stack.enter_async_context(blocks_at(*living, *(server.address for server in gone)))
        for _ in range(3):
            if not num_living:
                with pytest.raises(UnavailableError):
                    await blocks.statistics(CALLER)
                continue
            found = await blocks.statistics(CALLER)
            held = {tier.tier: (tier.num_blocks, tier.num_hits) for tier in found.tiers}
            assert held == {"memory": (5 * num_living, num_living), "redis": (2, num_living)}
            assert (found.num_misses, found.quota_bytes) == (3 * num_living, 100 * num_living)
        if any(dead):
            with pytest.raises(UnavailableError) as caught:
                await blocks.clear(CALLER)
            assert caught.value.retry_after_seconds is not None
        else:
            assert await blocks.clear(CALLER) == 5 * num_living
    assert all(server.num_tries == 1 for server in gone)


async def test_without_a_cache_there_is_nothing_to_ask() -> None:
    async with blocks_at() as blocks:
        with pytest.raises(FailedPreconditionError):
            await blocks.statistics(CALLER)
