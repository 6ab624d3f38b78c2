"""A server that is dead as far as anybody can tell, but counts who tried."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc


class DeadServer(grpc.GenericRpcHandler):
    """Answers every call of every service with UNAVAILABLE, as gRPC does in the place of a server that is gone."""

    def __init__(self) -> None:
        self.address = ""
        self.tries: Counter[str] = Counter()
        """Calls by the last part of the method's name."""

    @property
    def num_tries(self) -> int:
        return self.tries.total()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def refuse(_requests: Any, context: Any) -> AsyncIterator[bytes]:
            self.tries[details.method.rpartition("/")[2]] += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "dead")
            yield b""

        return grpc.stream_stream_rpc_method_handler(refuse)


@asynccontextmanager
async def dead_servers(count: int) -> AsyncIterator[list[DeadServer]]:
    """Several of them, each at an address of its own."""
    dead, servers = [DeadServer() for _ in range(count)], []
    for handler in dead:
        server = grpc.aio.server(handlers=[handler])
        handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    try:
        yield dead
    finally:
        for server in servers:
            await server.stop(0)
