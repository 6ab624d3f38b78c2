"""Blocks go to the cache once, with a token that still holds, and never for longer than it does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import jwt
import pytest

from paceline.internal.v1 import prefix_cache_pb2 as pb
from paceline.internal.v1 import prefix_cache_pb2_grpc
from services.common.channel import open_channel
from services.common.server import Served
from services.engine.config import Device, EngineConfig
from services.engine.engine_loop import EngineLoop
from services.engine.scheduler import Registered
from services.model_server.cache_backoff import CacheBackoff
from services.model_server.publisher import Computed, Publisher
from services.model_server.seal import Seal
from services.prefix_cache.client import PrefixCacheClient
from services.verifier.target_role import TargetRole
from support.served import served

MOST_PENDING = 3
"""So many blocks may be on their way."""


def token(namespace: str, seconds: float = 600.0) -> str:
    """A token that is good for so long: the cache here checks none, and the publisher reads when it expires."""
    return jwt.encode({"exp": time.time() + seconds, "namespaces": [namespace]}, "0" * 32, "HS256")


class Cache(prefix_cache_pb2_grpc.PrefixCacheServiceServicer):
    """Takes whatever comes, and notes with which token."""

    def __init__(self) -> None:
        self.stored: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.incarnation = "1"

    async def StoreBlocks(
        self, request_iterator: AsyncIterator[pb.StoreBlocksRequest], context: Any
    ) -> pb.StoreBlocksResponse:
        given = dict(context.invocation_metadata())["authorization"].removeprefix("Bearer ")
        response = pb.StoreBlocksResponse(incarnation=self.incarnation)
        async for request in request_iterator:
            response.num_stored += 1
            self.stored.put_nowait((given, request.piece.key))
        return response


class Published:
    """A publisher between an engine with a few blocks and a cache."""

    def __init__(self, loop: EngineLoop[TargetRole], computed: Computed, publisher: Publisher, cache: Cache) -> None:
        self.loop, self.computed, self.publisher, self.cache = loop, computed, publisher, cache

    async def compute(self, label: str, *digests: bytes) -> None:
        """Has the engine hold some blocks, and say so."""

        def adopt(role: TargetRole) -> int:
            return role.engine.adopt(dict.fromkeys(digests, bytes(role.engine.facts.block_bytes)))

        await self.loop.ask(adopt)
        self.computed.put_nowait([Registered(label, digest) for digest in digests])

    async def next_stored(self) -> tuple[str, bytes]:
        return await asyncio.wait_for(self.cache.stored.get(), 20)


@pytest.fixture
async def published(target_folder: str) -> AsyncIterator[Published]:
    cache = Cache()

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        prefix_cache_pb2_grpc.add_PrefixCacheServiceServicer_to_server(cache, server)
        yield Served(())

    config = EngineConfig(model=target_folder, device=Device.CPU, num_threads=1, num_blocks=64)
    async with served(lifespan) as address:
        loop, computed = EngineLoop(config, TargetRole), Computed()
        await loop.ready()
        client = PrefixCacheClient(address, open_channel(address))
        publisher = Publisher(
            loop, computed, client, CacheBackoff(address), Seal(None), MOST_PENDING * loop.facts.block_bytes
        )
        yield Published(loop, computed, publisher, cache)
        publisher.close()
        await client.close()
        await loop.stop()


def key(number: int) -> bytes:
    return bytes([number]) * 32


async def test_blocks_are_stored_with_the_token_of_their_namespace(published: Published) -> None:
    tokens = {name: token(name) for name in "ab"}
    for name, good in tokens.items():
        published.publisher.use(name, good)
    for number, name in enumerate("ab"):
        await published.compute(name, key(number))
        assert await published.next_stored() == (tokens[name], key(number))


async def test_a_block_is_stored_once_until_the_cache_has_it_no_more(published: Published) -> None:
    published.publisher.use("a", token("a"))
    published.publisher.remember([key(1)])
    for number in (0, 1, 0, 2):
        await published.compute("a", key(number))
    assert [(await published.next_stored())[1] for _ in range(2)] == [key(0), key(2)]
    published.publisher.forget([key(1)])
    await published.compute("a", key(1))
    assert (await published.next_stored())[1] == key(1)


async def test_a_cache_that_was_started_anew_gets_blocks_again(published: Published) -> None:
    published.publisher.use("a", token("a"))
    for number in (1, 2):
        await published.compute("a", key(number))
        await published.next_stored()
    published.cache.incarnation = "2"
    await published.compute("a", key(3))
    assert (await published.next_stored())[1] == key(3)
    again = asyncio.create_task(published.next_stored())
    while not again.done():  # That it is another one is known when it has answered.
        await published.compute("a", key(1))
        await asyncio.sleep(0.05)
    assert (await again)[1] == key(1)


async def test_a_token_that_has_expired_is_not_kept(published: Published) -> None:
    published.publisher.use("a", token("a", seconds=-1))
    await published.compute("a", key(0))
    published.publisher.use("b", token("b"))
    await published.compute("b", key(1))
    assert (await published.next_stored())[1] == key(1)
    assert published.cache.stored.empty()


async def test_what_is_more_than_may_be_pending_is_dropped(published: Published) -> None:
    published.publisher.use("a", token("a"))
    await published.compute("a", *(key(number) for number in range(1, MOST_PENDING + 2)))
    await published.compute("a", key(0))
    assert (await published.next_stored())[1] == key(0)


def test_of_more_steps_than_are_kept_the_oldest_are_let_go() -> None:
    computed = Computed()
    for number in range(5000):
        computed.put_nowait([Registered("a", number.to_bytes(32))])
    assert computed.qsize() < 5000
    first = computed.get_nowait()[0].digest
    assert int.from_bytes(first) == 5000 - computed.qsize() - 1


async def test_blocks_of_many_owners_are_read_at_once_and_stored_apart(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {name: token(name) for name in "abc"}
    for name, good in tokens.items():
        published.publisher.use(name, good)
    digests = [key(number) for number in range(3)]
    await published.loop.ask(
        lambda role: role.engine.adopt(dict.fromkeys(digests, bytes(role.engine.facts.block_bytes)))
    )
    questions = 0
    ask = published.loop.ask

    async def counted(question: Any) -> Any:
        nonlocal questions
        questions += 1
        return await ask(question)

    monkeypatch.setattr(published.loop, "ask", counted)
    for name, digest in zip("abc", digests, strict=True):
        published.computed.put_nowait([Registered(name, digest)])
    found = [await published.next_stored() for _ in digests]
    assert found == [(tokens[name], digest) for name, digest in zip("abc", digests, strict=True)]
    assert questions == 1
