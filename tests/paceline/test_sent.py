"""Who sends a stream learns why the other side ended it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from paceline.sent import response_to_stream


class _RefusesTheThird(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_unary_rpc_method_handler(self._refuse)

    async def _refuse(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        num_messages = 0
        async for _ in messages:
            num_messages += 1
            if num_messages == 3:
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, "three are too many")
        return b"all"


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(20_000)


async def test_a_refusal_in_the_midst_of_a_stream_is_seen_as_it_is() -> None:
    """Without care one in twenty is an INTERNAL that grpc.aio made."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_RefusesTheThird(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ends: Counter[tuple[grpc.StatusCode, str | None]] = Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        async def send() -> None:
            try:
                await response_to_stream(channel.stream_unary("/any/Method")(_pieces(100)))
            except grpc.aio.AioRpcError as error:
                ends[error.code(), error.details()] += 1

        for _ in range(20):
            await asyncio.gather(*(send() for _ in range(16)))
        assert await response_to_stream(channel.stream_unary("/any/Method")(_pieces(2))) == b"all"
    await server.stop(0)
    assert ends == {(grpc.StatusCode.OUT_OF_RANGE, "three are too many"): 320}
