"""How fast blocks come out of the prefix cache, beside a plain gRPC stream of bytes, both on loopback.

Run as a module with a port it is the plain stream's server; with a prefix cache's address and a token it stores a
gigabyte there and fetches it again.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc

from services.common.channel import open_channel
from services.common.server import Served, running_server
from services.common.settings import ServerSettings
from services.common.tokens import TokenMint, new_signing_key, public_key
from services.local.loading import wait_serving
from services.local.ports import free_port
from services.prefix_cache.client import PrefixCacheClient

BLOCK_BYTES = 1 << 20
NUM_BLOCKS = 256
REPEATS = 7
_METHOD = "/paceline.benchmarks.Bytes/Stream"
NAMESPACE = "tenant/benchmark"
"""Where blocks are stored."""
_GIGABYTE_BLOCKS = 1000
_MOST_SECONDS = 300.0


class Transfer(NamedTuple):
    """Medians, in bytes a second, and the median of ratios of neighbouring runs."""

    fetched: float
    raw: float
    ratio: float


class Blocks:
    """Blocks to be stored in a prefix cache, and fetched."""

    def __init__(self, address: str, token: str, num_blocks: int) -> None:
        self._client = PrefixCacheClient(address, open_channel(address))
        self._token = token
        self._keys = [index.to_bytes(32, "little") for index in range(num_blocks)]
        self._data = os.urandom(BLOCK_BYTES)

    async def store(self) -> int:
        """Stores all; returns how many bytes were kept."""
        blocks = ((key, self._data) for key in self._keys)
        return BLOCK_BYTES * await self._client.store(self._token, NAMESPACE, blocks, _MOST_SECONDS)

    async def fetch(self) -> int:
        """Fetches all; returns how many bytes came."""
        blocks = self._client.fetch(self._token, NAMESPACE, self._keys, BLOCK_BYTES, _MOST_SECONDS)
        return sum([memoryview(data).nbytes async for _, data in blocks])

    async def close(self) -> None:
        """Ends the connection."""
        await self._client.close()


def measure() -> Transfer:
    """Both in turns. Takes some ten seconds."""
    return asyncio.run(_measure())


@asynccontextmanager
async def _cache_process(num_blocks: int) -> AsyncIterator[Blocks]:
    """A prefix cache in a process of its own, with room for so many blocks in memory."""
    key = new_signing_key()
    capacity = 2 * num_blocks * BLOCK_BYTES
    port = free_port()
    arguments = [
        f"--server.port={port}",
        f"--token-keys={json.dumps([public_key(key)])}",
        f"--memory-bytes={capacity}",
        f"--quota-bytes={capacity}",
        "--telemetry.log-level=WARNING",
    ]
    async with _process(port, "services.prefix_cache", *arguments) as address:
        blocks = Blocks(address, TokenMint(key, 3600).sequence_token(NAMESPACE), num_blocks)
        yield blocks
        await blocks.close()


async def _measure() -> Transfer:
    ours, theirs, port = [], [], free_port()
    async with (
        _cache_process(NUM_BLOCKS) as cache,
        _process(port, "benchmarks.transfer", str(port)) as address,
        open_channel(address) as channel,
    ):
        assert await cache.store() == NUM_BLOCKS * BLOCK_BYTES
        stream: Any = channel.unary_stream(_METHOD)
        for repeat in range(-1, REPEATS):
            started = time.perf_counter()
            assert await cache.fetch() == NUM_BLOCKS * BLOCK_BYTES
            middle = time.perf_counter()
            total = 0
            async for message in stream(b""):
                total += len(message)
            assert total == NUM_BLOCKS * BLOCK_BYTES
            if repeat >= 0:
                ours.append(total / (middle - started))
                theirs.append(total / (time.perf_counter() - middle))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return Transfer(statistics.median(ours), statistics.median(theirs), ratio)


@asynccontextmanager
async def _process(port: int, module: str, *arguments: str) -> AsyncIterator[str]:
    """Address of a server process, once it serves."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *arguments)
    try:
        await wait_serving(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _serve(port: int) -> None:
    """The plain stream: bytes as they are, messages of a block each."""
    data = os.urandom(BLOCK_BYTES)

    async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for _ in range(NUM_BLOCKS):
            yield data

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        service, method = _METHOD.strip("/").split("/")
        handlers: dict[str, Any] = {method: grpc.unary_stream_rpc_method_handler(stream)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        yield Served(())

    async with running_server(ServerSettings(port=port), lifespan):
        await asyncio.Event().wait()


async def _move(address: str, token: str) -> None:
    """A gigabyte in, and out again."""
    os.nice(10)  # Stands for another machine's engine, which would have cores of its own.
    blocks = Blocks(address, token, _GIGABYTE_BLOCKS)
    for moved in (await blocks.store(), await blocks.fetch()):
        if moved != _GIGABYTE_BLOCKS * BLOCK_BYTES:
            raise SystemExit(f"only {moved} bytes were moved")
    await blocks.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])) if len(sys.argv) == 2 else _move(*sys.argv[1:]))
