"""Blocks that begin to come and are never whole: nobody fills the memory with them, nor keeps others from storing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from paceline.internal.v1 import prefix_cache_pb2 as pb
from paceline.internal.v1 import prefix_cache_pb2_grpc
from services.common.access import credentials
from services.common.tokens import TokenMint, new_signing_key, public_key
from services.prefix_cache.incoming import Incoming
from services.prefix_cache.lifespan import prefix_cache_lifespan
from services.prefix_cache.settings import PrefixCacheSettings
from support.blocks import SIZE, block
from support.served import SERVER, served

KEY = new_signing_key()
MINT = TokenMint(KEY, 60)
CODE = grpc.StatusCode


class Caller:
    """Stores blocks for tenants, as a message a piece."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = prefix_cache_pb2_grpc.PrefixCacheServiceStub(channel)

    async def begin(self, tenant: str, number: int) -> Any:
        """A call that has sent half of a block."""
        given = block(number)
        piece = pb.BlockPiece(
            key=given.key, block_bytes=SIZE, checksum=given.checksum, data=bytes(given.data[: SIZE // 2])
        )
        call: Any = self._stub.StoreBlocks(metadata=credentials(MINT.sequence_token(tenant)), timeout=20)
        await call.write(pb.StoreBlocksRequest(namespace=tenant, piece=piece))
        return call

    @staticmethod
    async def end(call: Any, number: int) -> int:
        """Sends the other half; how many blocks were stored."""
        await call.write(pb.StoreBlocksRequest(piece={"data": bytes(block(number).data[SIZE // 2 :])}))
        await call.done_writing()
        return int((await call).num_stored)


@asynccontextmanager
async def caller(**settings: Any) -> AsyncIterator[Caller]:
    made = PrefixCacheSettings(token_keys=(public_key(KEY),), server=SERVER, **settings)
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(served(prefix_cache_lifespan(made)))
        yield Caller(await stack.enter_async_context(grpc.aio.insecure_channel(address)))


async def test_a_namespace_may_begin_so_many_blocks_and_others_are_not_kept_from_it() -> None:
    async with caller(max_incoming_bytes=2 * SIZE) as tenants:
        begun = {number: await tenants.begin("tenant/a", number) for number in range(3)}
        codes = {number: asyncio.create_task(call.code()) for number, call in begun.items()}
        over, _ = await asyncio.wait(codes.values(), return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in over] == [CODE.RESOURCE_EXHAUSTED]
        assert await tenants.end(await tenants.begin("tenant/b", 5), 5) == 1
        for number, call in begun.items():
            if codes[number] not in over:
                assert await tenants.end(call, number) == 1
        assert await tenants.end(await tenants.begin("tenant/a", 6), 6) == 1
        await asyncio.wait(codes.values())


async def test_a_block_whose_rest_does_not_come_ends_its_stream_and_takes_no_room() -> None:
    async with caller(max_incoming_bytes=SIZE, stall_seconds=0.05) as tenants:
        for _ in range(2):
            call = await tenants.begin("tenant/a", 1)
            assert await call.code() is CODE.DEADLINE_EXCEEDED
        assert await tenants.end(await tenants.begin("tenant/a", 1), 1) == 1


async def test_what_is_over_takes_no_room() -> None:
    incoming = Incoming(10)
    with incoming.block("a", 25), incoming.block("b", 10):
        assert len(incoming) == 2
        with pytest.raises(ValueError, match="broken"), incoming.block("c", 4), incoming.block("c", 6):
            raise ValueError("broken")
        assert len(incoming) == 2
    assert len(incoming) == 0
