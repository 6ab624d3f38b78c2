"""Between an engine and the prefix cache: fetches what a prompt begins with, publishes what was computed.

The cache only ever saves work. Whatever it does wrong is a miss; while it fails it is left alone for a while; nobody
waits for it longer than computing would take.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import groupby
from typing import Any

import grpc

from services.common.cache_token import PUBLIC_NAMESPACE
from services.common.channel import open_channel
from services.common.telemetry import meter
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.engine.kv_cache import Buffer
from services.engine.sequence import Sequence
from services.prefix_cache.client import PrefixCacheClient

_log = logging.getLogger(__name__)
_MATCH_SECONDS = 0.25
_MAX_FETCH_SECONDS = 10.0
_STORE_SECONDS = 30.0
_FIRST_RATE = 100e6
_FIRST_LATENCY = 0.005
"""What fetching is taken to cost until it was measured: bytes a second, and seconds beside."""
_SMOOTHING = 0.3
_BATCH_BYTES = 4 << 20
"""Most bytes that go into or out of the engine between two steps."""
_FIRST_PAUSE = 1.0
_MAX_PAUSE = 30.0
_MAX_KNOWN = 1 << 18
_MAX_NAMESPACES = 4096
_REFUSED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
"""A token that has run out says nothing about the cache."""


class PrefixTier:
    """One engine's dealings with a prefix cache."""

    def __init__(self, engine_loop: EngineLoop[Any], client: PrefixCacheClient | None, max_pending_bytes: int) -> None:
        """Without a client it does nothing."""
        self._engine_loop = engine_loop
        self._client = client
        self._max_pending_bytes = max_pending_bytes
        self._loop = asyncio.get_running_loop()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        """Blocks that the cache has been given, or gave."""
        self._tokens: OrderedDict[str, str] = OrderedDict()
        self._pending: asyncio.Queue[tuple[str, dict[bytes, memoryview]]] = asyncio.Queue()
        self._pending_bytes = 0
        self._rate = _FIRST_RATE
        self._latency = _FIRST_LATENCY
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        instruments = meter("paceline.prefix_tier")
        self._fetched = instruments.create_counter("paceline.fetched_tokens", "{token}", "Prompt tokens not computed.")
        self._published = instruments.create_counter("paceline.published_blocks", "{block}", "Blocks published.")
        self._dropped = instruments.create_counter("paceline.unpublished_blocks", "{block}", "Blocks dropped instead.")
        self._publisher: asyncio.Task[None] | None = None
        if client is not None:
            self._publisher = asyncio.create_task(self._publish(client))
            engine_loop.background = self._gather

    @classmethod
    def connect(cls, engine_loop: EngineLoop[Any], target: str | None, max_pending_bytes: int) -> "PrefixTier":
        """With the prefix cache at a target, or with none."""
        client = PrefixCacheClient(target, open_channel(target)) if target else None
        return cls(engine_loop, client, max_pending_bytes)

    async def fetch(self, sequence: Sequence, token: str) -> None:
        """Has the engine take in what the cache has of a sequence that is about to be opened, if that is quicker."""
        client = self._client
        if client is None or not sequence.namespace or not token:
            return
        self._tokens[sequence.namespace] = token
        self._tokens.move_to_end(sequence.namespace)
        while len(self._tokens) > _MAX_NAMESPACES:
            self._tokens.popitem(last=False)
        if time.monotonic() < self._not_before:
            return
        engine: Engine = self._engine_loop.role.engine
        wanted = _missing(sequence, engine)
        if not wanted or self._fetch_seconds(engine, len(wanted)) >= _compute_seconds(engine, len(wanted)):
            return
        for namespace, run in groupby(wanted, sequence.namespace_of_block):
            keys = [sequence.block_digests[index] for index in run]
            if not await self._fetch(client, token, namespace, keys):
                return

    async def close(self) -> None:
        """Stops publishing; what is pending is let go."""
        self._engine_loop.background = lambda _: False
        if self._publisher is not None and self._client is not None:
            self._publisher.cancel()
            await self._client.close()

    async def _fetch(self, client: PrefixCacheClient, token: str, namespace: str, keys: list[bytes]) -> bool:
        """Fetches the leading ones of the blocks. Whether it got all."""
        engine: Engine = self._engine_loop.role.engine
        limit = min(_MAX_FETCH_SECONDS, _compute_seconds(engine, len(keys)))
        started = time.monotonic()
        got = 0
        try:
            count = await client.match(token, namespace, keys, min(_MATCH_SECONDS, limit))
            self._latency += _SMOOTHING * (time.monotonic() - started - self._latency)
            if count and self._fetch_seconds(engine, count) < _compute_seconds(engine, count):
                got = await self._receive(
                    client.fetch(token, namespace, keys[:count], engine.block_bytes, limit), count
                )
        except grpc.aio.AioRpcError as error:
            self._fail(client, error)
            return False
        self._pause = _FIRST_PAUSE
        return got == len(keys)

    async def _receive(self, blocks: AsyncIterator[tuple[bytes, Buffer]], count: int) -> int:
        """Hands blocks to the engine as they come; returns how many came."""
        engine: Engine = self._engine_loop.role.engine
        batch: dict[bytes, Buffer] = {}
        got, started = 0, time.monotonic()
        try:
            async for key, data in blocks:
                batch[key] = data
                got += 1
                if len(batch) * engine.block_bytes >= _BATCH_BYTES:
                    self._adopt(batch)
                    batch = {}
        finally:
            self._adopt(batch)
            self._fetched.add(got * engine.config.block_size)
            if got:
                rate = got * engine.block_bytes / max(time.monotonic() - started, 1e-6)
                self._rate += _SMOOTHING * (rate - self._rate)
        if got < count:
            _log.warning("the prefix cache gave %d blocks of %d that it said it had", got, count)
        return got

    def _adopt(self, batch: dict[bytes, Buffer]) -> None:
        if batch:
            self._remember(batch)
            self._engine_loop.submit(lambda role: role.engine.adopt(batch))

    def _gather(self, engine: Engine) -> bool:
        """On the engine's thread: reads some blocks that became known. Whether there are more."""
        named = engine.scheduler.named
        if not named:
            return False
        if time.monotonic() < self._not_before:
            named.clear()
            return False
        size = engine.block_bytes
        chosen: dict[bytes, str] = {}
        while named and len(chosen) * size < _BATCH_BYTES:
            namespace, digest = named.popleft()
            if digest not in self._known:
                chosen[digest] = namespace
        if self._pending_bytes + len(chosen) * size > self._max_pending_bytes:
            self._dropped.add(len(chosen))
            return bool(named)
        for namespace, digests in groupby(chosen, chosen.__getitem__):
            contents = engine.read(digests)
            self._loop.call_soon_threadsafe(self._offer, namespace, contents)
        return bool(named)

    def _offer(self, namespace: str, contents: dict[bytes, memoryview]) -> None:
        self._pending_bytes += sum(content.nbytes for content in contents.values())
        self._remember(contents)
        self._pending.put_nowait((namespace, contents))

    async def _publish(self, client: PrefixCacheClient) -> None:
        while True:
            namespace, contents = await self._pending.get()
            try:
                token = self._token(namespace)
                if token and time.monotonic() >= self._not_before:
                    num_stored = await client.store(token, namespace, contents.items(), _STORE_SECONDS)
                    self._published.add(num_stored)
            except grpc.aio.AioRpcError as error:
                self._fail(client, error)
                for key in contents:
                    self._known.pop(key, None)
            finally:
                self._pending_bytes -= sum(content.nbytes for content in contents.values())

    def _token(self, namespace: str) -> str:
        """The latest token for a namespace; every one is good for the public one."""
        if namespace == PUBLIC_NAMESPACE:
            return next(reversed(self._tokens.values()), "")
        return self._tokens.get(namespace, "")

    def _fail(self, client: PrefixCacheClient, error: grpc.aio.AioRpcError) -> None:
        name = error.code().name
        if error.code() in _REFUSED:
            _log.warning("prefix cache %s refused (%s): %s", client.target, name, error.details())
            return
        _log.warning("prefix cache %s failed (%s); left alone for %.0f s", client.target, name, self._pause)
        self._not_before = time.monotonic() + self._pause
        self._pause = min(_MAX_PAUSE, 2 * self._pause)

    def _remember(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._known[key] = None
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _fetch_seconds(self, engine: Engine, num_blocks: int) -> float:
        return self._latency + num_blocks * engine.block_bytes / self._rate


def _missing(sequence: Sequence, engine: Engine) -> list[int]:
    """Indexes of the blocks behind those that the engine has; the last token is always computed."""
    size = engine.config.block_size
    usable = min(sequence.first_logits, sequence.num_settled - 1) // size
    have: Callable[[bytes], int | None] = engine.pool.find
    first = next((index for index in range(usable) if have(sequence.digest_of_block(index, size)) is None), usable)
    if first < usable:
        sequence.digest_of_block(usable - 1, size)
    return list(range(first, usable))


def _compute_seconds(engine: Engine, num_blocks: int) -> float:
    rows = engine.config.max_step_tokens
    return num_blocks * engine.config.block_size * engine.step_times.seconds(rows) / rows
