"""The other end of PrefixCacheService."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any

import grpc

from paceline.errors import InvalidArgumentError
from paceline.internal.v1 import prefix_cache_pb2 as pb
from paceline.internal.v1 import prefix_cache_pb2_grpc
from paceline.sent import response_to_stream
from services.common.access import credentials
from services.common.health import check_serving
from services.prefix_cache.block import Data, sealed
from services.prefix_cache.encoding import read_fetch_response, write_store_request
from services.prefix_cache.pieces import assembled, to_pieces
from services.process.client import Asked, ask_process

SERVICE = pb.DESCRIPTOR.services_by_name["PrefixCacheService"].full_name


class PrefixCacheClient:
    """One prefix cache. Every method raises grpc.aio.AioRpcError; timeouts are in seconds."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.incarnation = ""
        """Which process answered last; empty while none has."""
        self._channel = channel
        self._stub = prefix_cache_pb2_grpc.PrefixCacheServiceStub(channel)
        self._fetch_blocks: Any = channel.unary_stream(
            f"/{SERVICE}/FetchBlocks", pb.FetchBlocksRequest.SerializeToString
        )
        self._store_blocks: Any = channel.stream_unary(
            f"/{SERVICE}/StoreBlocks", response_deserializer=pb.StoreBlocksResponse.FromString
        )

    async def match(self, token: str, namespace: str, keys: Sequence[bytes], timeout: float) -> int:
        """How many of the blocks, from the first on, are there."""
        request = pb.MatchBlocksRequest(namespace=namespace, keys=keys)
        response = await self._stub.MatchBlocks(request, timeout=timeout, metadata=credentials(token))
        self.incarnation = response.incarnation or self.incarnation
        return response.num_leading

    async def fetch(
        self, token: str, namespace: str, keys: Sequence[bytes], block_bytes: int, timeout: float
    ) -> AsyncGenerator[tuple[bytes, Data], None]:
        """Yields (key, data) of blocks in order, each the one asked for, of the right size and intact.

        Ends at the first that is not.
        """
        request = pb.FetchBlocksRequest(namespace=namespace, keys=keys)
        call = self._fetch_blocks(request, timeout=timeout, metadata=credentials(token))
        pieces = (read_fetch_response(message).piece async for message in call)
        wanted = iter(keys)
        try:
            async for block in assembled(pieces, block_bytes):
                if block.key != next(wanted, None) or block.num_bytes != block_bytes or not block.is_intact:
                    return
                yield block.key, block.data
        except InvalidArgumentError:
            return
        finally:
            call.cancel()

    async def store(self, token: str, namespace: str, blocks: Iterable[tuple[bytes, Data]], timeout: float) -> int:
        """Has blocks, (key, data) each, kept; returns how many were."""

        async def requests() -> AsyncIterator[bytes]:
            for key, data in blocks:
                for piece in to_pieces(sealed(key, data)):
                    yield write_store_request(namespace, piece)

        call = self._store_blocks(requests(), timeout=timeout, metadata=credentials(token))
        response = await response_to_stream(call)
        self.incarnation = response.incarnation or self.incarnation
        num_stored: int = response.num_stored
        return num_stored

    async def statistics(self, token: str, namespace: str, timeout: float) -> pb.GetNamespaceStatisticsResponse:
        """What the namespace holds, and how it fared."""
        request = pb.GetNamespaceStatisticsRequest(namespace=namespace)
        return await self._stub.GetNamespaceStatistics(request, timeout=timeout, metadata=credentials(token))

    async def delete(self, token: str, namespace: str, timeout: float) -> int:
        """Deletes the namespace's blocks; returns how many there were."""
        request = pb.DeleteNamespaceRequest(namespace=namespace)
        response = await self._stub.DeleteNamespace(request, timeout=timeout, metadata=credentials(token))
        return response.num_deleted

    async def ask_process(self, timeout: float) -> Asked | None:
        """What the process says of itself; None where it does not know that question."""
        return await ask_process(self._channel, timeout)

    async def check_serving(self, timeout: float) -> bool:
        """Returns True when the service can be used. Raises UnavailableError too."""
        return await check_serving(self._channel, timeout)

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()
