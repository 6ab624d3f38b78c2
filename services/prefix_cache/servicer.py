"""PrefixCacheService over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc

from paceline.errors import DeadlineExceededError, InvalidArgumentError
from paceline.internal.v1 import prefix_cache_pb2 as pb
from paceline.internal.v1 import prefix_cache_pb2_grpc
from paceline.v1 import cache_pb2
from services.common.access import Access
from services.common.incarnation import INCARNATION
from services.prefix_cache.block import KEY_BYTES
from services.prefix_cache.client import SERVICE
from services.prefix_cache.encoding import Piece, read_store_request, write_fetch_response
from services.prefix_cache.incoming import Incoming
from services.prefix_cache.metrics import CacheMetrics
from services.prefix_cache.pieces import assembled, to_pieces
from services.prefix_cache.settings import PrefixCacheSettings
from services.prefix_cache.tiers import Tiers

_MAX_KEYS = 65_536


class PrefixCacheServicer(prefix_cache_pb2_grpc.PrefixCacheServiceServicer):
    """Serves the blocks of all tiers to those whose tokens allow it."""

    def __init__(
        self,
        tiers: Tiers,
        access: Access,
        owners: Access,
        metrics: CacheMetrics,
        settings: PrefixCacheSettings,
    ) -> None:
        """`access` lets through who uses blocks, `owners` who manages namespaces."""
        self._tiers = tiers
        self._access = access
        self._owners = owners
        self._metrics = metrics
        self._settings = settings
        self._incoming = Incoming(settings.max_incoming_bytes)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Has a server serve it. Messages with blocks are read and written here: see encoding.py."""
        prefix_cache_pb2_grpc.add_PrefixCacheServiceServicer_to_server(self, server)
        fetch: Any = grpc.unary_stream_rpc_method_handler(self.FetchBlocks, pb.FetchBlocksRequest.FromString)
        serialize = pb.StoreBlocksResponse.SerializeToString
        store: Any = grpc.stream_unary_rpc_method_handler(self.StoreBlocks, response_serializer=serialize)
        server.add_registered_method_handlers(SERVICE, {"FetchBlocks": fetch, "StoreBlocks": store})

    async def MatchBlocks(self, request: pb.MatchBlocksRequest, context: Any) -> pb.MatchBlocksResponse:
        """See prefix_cache.proto."""
        self._access.check(context, request.namespace)
        _check_keys(request.keys)
        count = await self._tiers.num_leading(request.namespace, request.keys, context.time_remaining)
        return pb.MatchBlocksResponse(num_leading=count, incarnation=INCARNATION)

    async def FetchBlocks(self, request: pb.FetchBlocksRequest, context: Any) -> AsyncIterator[Any]:
        """See prefix_cache.proto."""
        self._access.check(context, request.namespace)
        _check_keys(request.keys)
        found = self._tiers.blocks(request.namespace, request.keys, context.time_remaining)
        with self._metrics.fetching() as fetched:
            async with aclosing(found) as blocks:
                async for block in blocks:
                    fetched.add(block.num_bytes)
                    for piece in to_pieces(block):
                        yield write_fetch_response(piece)

    async def StoreBlocks(self, request_iterator: AsyncIterator[Any], context: Any) -> pb.StoreBlocksResponse:
        """See prefix_cache.proto."""
        response = pb.StoreBlocksResponse(incarnation=INCARNATION)
        namespace = ""

        async def pieces() -> AsyncIterator[Piece]:
            nonlocal namespace
            async for message in self._in_time(request_iterator):
                request = read_store_request(message)
                if not namespace:
                    self._access.check(context, request.namespace)
                    namespace = request.namespace
                yield request.piece

        found = assembled(
            pieces(), self._settings.max_block_bytes, lambda num_bytes: self._incoming.block(namespace, num_bytes)
        )
        with self._metrics.storing() as stored:
            async with aclosing(found) as blocks:
                async for block in blocks:
                    if block.is_intact and await self._tiers.put(namespace, block):
                        response.num_stored += 1
                        stored.add(block.num_bytes)
                    else:
                        response.num_refused += 1
        return response

    async def GetNamespaceStatistics(
        self, request: pb.GetNamespaceStatisticsRequest, context: Any
    ) -> pb.GetNamespaceStatisticsResponse:
        """See prefix_cache.proto."""
        self._owners.check(context, request.namespace)
        return pb.GetNamespaceStatisticsResponse(
            num_misses=self._tiers.num_misses(request.namespace),
            quota_bytes=self._settings.quota_bytes,
            tiers=[
                cache_pb2.TierStatistics(
                    tier=name,
                    num_blocks=usage.num_blocks,
                    num_bytes=usage.num_bytes,
                    num_hits=usage.num_hits,
                    num_evictions=usage.num_evictions,
                    num_corrupt=usage.num_corrupt,
                )
                for name, usage in await self._tiers.usage(request.namespace)
            ],
        )

    async def DeleteNamespace(self, request: pb.DeleteNamespaceRequest, context: Any) -> pb.DeleteNamespaceResponse:
        """See prefix_cache.proto."""
        self._owners.check(context, request.namespace)
        return pb.DeleteNamespaceResponse(num_deleted=await self._tiers.clear(request.namespace))

    async def _in_time(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Messages, none of which is waited for too long. Raises DeadlineExceededError."""
        messages, seconds = aiter(messages), self._settings.stall_seconds
        while True:
            try:
                async with asyncio.timeout(seconds):
                    message = await anext(messages, None)
            except TimeoutError as error:
                raise DeadlineExceededError(f"nothing came for {seconds:g} s") from error
            if message is None:
                return
            yield message


def _check_keys(keys: Sequence[bytes]) -> None:
    if len(keys) > _MAX_KEYS:
        raise InvalidArgumentError("keys", f"at most {_MAX_KEYS}, got {len(keys)}")
    for index, key in enumerate(keys):
        if len(key) != KEY_BYTES:
            raise InvalidArgumentError(f"keys[{index}]", f"must be {KEY_BYTES} bytes, got {len(key)}")
