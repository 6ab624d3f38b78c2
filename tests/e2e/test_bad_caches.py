"""A prefix cache that dies, hangs, crawls or lies costs time at most: every request ends with the right tokens."""

import asyncio
import json
import os
import random
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from paceline.internal.v1 import prefix_cache_pb2 as pb
from paceline.internal.v1 import prefix_cache_pb2_grpc
from services.common.server import Served
from services.local.loading import wait_serving
from services.local.ports import free_port
from services.model_server.seal import Seal
from services.prefix_cache.block import sealed
from support.cached import SEAL_KEY, CachedSystem
from support.redis_server import running_redis
from support.served import served
from support.system import start_system

PROMPT = random.Random(3).choices(range(3, 250), k=200)
OPTIONS: dict[str, Any] = {"temperature": 1, "seed": 9, "max_tokens": 8, "ignore_eos": True}
Lie = Callable[[bytes, bytes, dict[bytes, bytes]], tuple[bytes, bytes]]
"""From a key, its true contents and all that there are, to the key and contents that are given out."""


def _flipped(data: bytes) -> bytes:
    return data[:50] + bytes([data[50] ^ 1]) + data[51:]


LIES: dict[str, Lie] = {
    "wrong bytes": lambda key, data, _: (key, _flipped(data)),
    "zeros": lambda key, data, _: (key, bytes(len(data))),
    "wrong key": lambda key, data, _: (key[::-1], data),
    "contents of another block": lambda key, data, known: (key, next(d for k, d in known.items() if k != key)),
    "contents of another block, sealed with another key": lambda key, data, _: (
        key, bytes(Seal(b"\0" * 32).close(key, data[:-32]))
    ),
    "too short": lambda key, data, _: (key, data[:-4]),
    "too long": lambda key, data, _: (key, data + b"more"),
    "half the bytes, as another data type would have": lambda key, data, _: (key, data[: len(data) // 2]),
    "empty": lambda key, data, _: (key, b"\0"),
}  # fmt: skip


class FakeCache(prefix_cache_pb2_grpc.PrefixCacheServiceServicer):
    """Keeps what it is given and gives it out as it was told to."""

    def __init__(self, lie: Lie = lambda key, data, _: (key, data)) -> None:
        self.lie = lie
        self.known: dict[bytes, bytes] = {}
        self.hangs = False
        self.bytes_per_second = float("inf")
        self.fetched = 0
        self.has_all = asyncio.Event()
        """Set once it has every block of PROMPT."""

    async def MatchBlocks(self, request: pb.MatchBlocksRequest, context: Any) -> pb.MatchBlocksResponse:
        await self._maybe_hang()
        return pb.MatchBlocksResponse(num_leading=sum(key in self.known for key in request.keys))

    async def FetchBlocks(self, request: pb.FetchBlocksRequest, context: Any) -> AsyncIterator[pb.FetchBlocksResponse]:
        self.fetched += 1
        for key in request.keys:
            given, data = self.lie(key, self.known[key], self.known)
            # The checksum is right for whatever is given out.
            piece = pb.BlockPiece(key=given, block_bytes=len(data), checksum=sealed(given, data).checksum, data=data)
            await asyncio.sleep(len(data) / self.bytes_per_second)
            yield pb.FetchBlocksResponse(piece=piece)

    async def StoreBlocks(
        self, request_iterator: AsyncIterator[pb.StoreBlocksRequest], context: Any
    ) -> pb.StoreBlocksResponse:
        await self._maybe_hang()
        response = pb.StoreBlocksResponse()
        async for request in request_iterator:
            self.known[request.piece.key] = request.piece.data
            response.num_stored += 1
            if len(self.known) >= len(PROMPT) // 16:
                self.has_all.set()
        return response

    async def _maybe_hang(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()


@pytest.fixture(scope="module")
def expected(target_folder: str) -> list[int]:
    """The tokens of PROMPT without a cache."""

    async def generate() -> list[int]:
        async with start_system(target_folder) as system:
            return (await system.generate(PROMPT, **OPTIONS)).token_ids

    return asyncio.run(generate())


@asynccontextmanager
async def system_with(target: str, cache: FakeCache) -> AsyncIterator[CachedSystem]:
    """A system whose cache is a fake."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        prefix_cache_pb2_grpc.add_PrefixCacheServiceServicer_to_server(cache, server)
        yield Served(())

    system = CachedSystem(target)
    async with AsyncExitStack() as stack:
        system.cache_address = await stack.enter_async_context(served(lifespan))
        await system.start_engines()
        stack.push_async_callback(system.__aexit__)
        yield system


async def test_an_honest_fake_is_believed(target_folder: str, expected: list[int]) -> None:
    cache = FakeCache()
    async with system_with(target_folder, cache) as system:
        await system.generate(PROMPT, **OPTIONS)
        await asyncio.wait_for(cache.has_all.wait(), 20)
        await system.start_engines()
        reply = await system.generate(PROMPT, **OPTIONS)
    assert reply.token_ids == expected
    assert reply.usage.num_cached_tokens == 192


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_cache_is_not_believed(target_folder: str, expected: list[int], lie: str) -> None:
    cache = FakeCache(LIES[lie])
    async with system_with(target_folder, cache) as system:
        assert (await system.generate(PROMPT, **OPTIONS)).token_ids == expected
        await asyncio.wait_for(cache.has_all.wait(), 20)
        await system.start_engines()
        reply = await system.generate(PROMPT, **OPTIONS)
    assert cache.fetched == 1
    assert reply.token_ids == expected
    assert reply.usage.num_cached_tokens == 0


@pytest.mark.parametrize("way", ["hung", "slow"])
async def test_a_hung_or_slow_cache_holds_nobody_up(target_folder: str, expected: list[int], way: str) -> None:
    cache = FakeCache()
    async with system_with(target_folder, cache) as system:
        await system.generate(PROMPT, **OPTIONS)
        await asyncio.wait_for(cache.has_all.wait(), 20)
        await system.start_engines()
        if way == "hung":
            cache.hangs = True
        else:
            cache.bytes_per_second = 1000.0
        async with asyncio.timeout(30):
            replies = [await system.generate(PROMPT, **OPTIONS) for _ in range(3)]
    assert [reply.token_ids for reply in replies] == [expected] * 3


async def test_a_cache_that_gives_less_than_it_promised_is_used_as_far_as_it_goes(
    target_folder: str, expected: list[int]
) -> None:
    cache = FakeCache()
    async with system_with(target_folder, cache) as system:
        await system.generate(PROMPT, **OPTIONS)
        await asyncio.wait_for(cache.has_all.wait(), 20)
        await system.start_engines()
        given = 0

        def breaks_off(key: bytes, data: bytes, _: dict[bytes, bytes]) -> tuple[bytes, bytes]:
            nonlocal given
            given += 1
            return (key, data) if given <= 5 else (key, b"x")

        cache.lie = breaks_off
        reply = await system.generate(PROMPT, **OPTIONS)
    assert reply.token_ids == expected
    assert reply.usage.num_cached_tokens == 5 * 16


@asynccontextmanager
async def cache_process(
    system: CachedSystem, *, file_bytes: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The prefix cache as a process of its own, whose files end at a size."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    port = free_port()
    arguments = [
        f"--server.port={port}",
        f"--token-keys={json.dumps(system.token_keys)}",
        f"--disk-folder={system.folder}",
        "--memory-bytes=1048576",
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.prefix_cache",
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        preexec_fn=limit,
    )
    try:
        system.cache_address = f"127.0.0.1:{port}"
        await asyncio.wait_for(wait_serving(system.cache_address), 60)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_cache_killed_while_requests_run_is_missed_by_nobody(
    target_folder: str, expected: list[int], tmp_path: Path
) -> None:
    system = CachedSystem(target_folder, folder=tmp_path)
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(cache_process(system))
        await system.start_engines()
        stack.push_async_callback(system.__aexit__)
        assert (await system.generate(PROMPT, **OPTIONS)).token_ids == expected
        await system.stored(12)
        await system.start_engines()
        running = [asyncio.create_task(system.generate(PROMPT, **OPTIONS)) for _ in range(4)]
        await asyncio.sleep(0)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        async with asyncio.timeout(30):
            replies = [*await asyncio.gather(*running), await system.generate(PROMPT, **OPTIONS)]
    assert [reply.token_ids for reply in replies] == [expected] * 5


@pytest.mark.parametrize("way", ["killed", "hung"])
async def test_a_redis_lost_while_requests_run_is_missed_by_nobody(
    target_folder: str, expected: list[int], tmp_path: Path, way: str
) -> None:
    """Nothing else has the blocks: the cache and the engines have just started."""
    with running_redis(tmp_path) as server, ExitStack() as redis:
        system = CachedSystem(target_folder)
        system.cache_settings = {"redis_url": server.url}
        async with system:
            assert (await system.generate(PROMPT, **OPTIONS)).token_ids == expected
            await system.stored(12)
            await system.start_cache()
            await system.start_engines()
            running = [asyncio.create_task(system.generate(PROMPT, **OPTIONS)) for _ in range(4)]
            await asyncio.sleep(0)
            if way == "killed":
                server.kill()
            else:
                redis.enter_context(server.held())
            async with asyncio.timeout(30):
                replies = [*await asyncio.gather(*running), await system.generate(PROMPT, **OPTIONS)]
    assert [reply.token_ids for reply in replies] == [expected] * 5


async def test_a_full_disk_is_no_error(target_folder: str, expected: list[int], tmp_path: Path) -> None:
    system = CachedSystem(target_folder, folder=tmp_path)
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(cache_process(system, file_bytes=256 << 10))
        await system.start_engines()
        stack.push_async_callback(system.__aexit__)
        for number in range(6):
            prompt = random.Random(number).choices(range(3, 250), k=400)
            reply = await system.generate(prompt, **OPTIONS)
            assert len(reply.token_ids) == OPTIONS["max_tokens"]
        assert (await system.generate(PROMPT, **OPTIONS)).token_ids == expected
        await system.stored(12)
        assert process.returncode is None


def test_a_seal_holds_for_its_block_alone() -> None:
    seal = Seal(bytes.fromhex(SEAL_KEY))
    closed = bytes(seal.close(b"key", b"contents"))
    assert bytes(seal.open(b"key", closed) or b"") == b"contents"
    assert seal.open(b"other", closed) is None
    assert seal.open(b"key", closed[:-1]) is None
    assert seal.open(b"key", b"") is None
    assert Seal(bytes(32)).open(b"key", closed) is None
    unsealed = Seal(None)
    assert unsealed.open(b"key", unsealed.close(b"key", b"contents")) == b"contents"
