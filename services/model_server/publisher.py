"""Puts the blocks that an engine computed into the prefix cache, behind everybody's back.

Blocks are read between two steps, some at a time, into a bounded queue; what does not fit is dropped.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import grpc

from services.common.backoff import Backoff
from services.common.telemetry import meter
from services.common.tokens import PUBLIC_NAMESPACE
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.model_server.seal import Seal
from services.prefix_cache.client import PrefixCacheClient

BATCH_BYTES = 4 << 20
"""Most bytes that go into or out of the engine between two steps."""
_STORE_SECONDS = 30.0
_MAX_KNOWN = 1 << 18
_MAX_NAMESPACES = 4096


class Publisher:
    """One engine's blocks on their way to one cache."""

    def __init__(
        self,
        engine_loop: EngineLoop[Any],
        client: PrefixCacheClient,
        backoff: Backoff,
        seal: Seal,
        max_pending_bytes: int,
    ) -> None:
        self._engine_loop = engine_loop
        self._client = client
        self._backoff = backoff
        self._seal = seal
        self._max_pending_bytes = max_pending_bytes
        self._loop = asyncio.get_running_loop()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        """Blocks that the cache has been given, or gave."""
        self._tokens: OrderedDict[str, str] = OrderedDict()
        self._pending: asyncio.Queue[tuple[str, dict[bytes, memoryview]]] = asyncio.Queue()
        self._gathered_bytes = 0
        """Written by the engine's thread alone."""
        self._finished_bytes = 0
        """Written by the event loop alone; what was gathered and is not finished is pending."""
        instruments = meter("paceline.prefix_tier")
        self._published = instruments.create_counter("paceline.published_blocks", "{block}", "Blocks published.")
        self._dropped = instruments.create_counter("paceline.unpublished_blocks", "{block}", "Blocks dropped instead.")
        self._seconds = instruments.create_histogram("paceline.publish_duration", "s", "Time of storing a batch.")
        self._task = asyncio.create_task(self._publish())
        engine_loop.background = self._gather

    def use(self, namespace: str, token: str) -> None:
        """Blocks of a namespace may be stored with this token from now on."""
        self._tokens[namespace] = token
        self._tokens.move_to_end(namespace)
        while len(self._tokens) > _MAX_NAMESPACES:
            self._tokens.popitem(last=False)

    def remember(self, keys: Iterable[bytes]) -> None:
        """The cache has these blocks: they need not be published."""
        for key in keys:
            self._known[key] = None
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def forget(self, keys: Iterable[bytes]) -> None:
        """The cache does not have these blocks, or no longer."""
        for key in keys:
            self._known.pop(key, None)

    def close(self) -> None:
        """Stops; what is pending is let go."""
        self._engine_loop.background = lambda _: False
        self._task.cancel()

    def _gather(self, engine: Engine) -> bool:
        """On the engine's thread: reads some blocks that became known. Whether there are more."""
        named = engine.scheduler.named
        if not named:
            return False
        if self._backoff.is_off:
            named.clear()
            return False
        size = engine.block_bytes
        chosen: dict[bytes, str] = {}
        while named and len(chosen) * size < BATCH_BYTES:
            namespace, digest = named.popleft()
            if digest not in self._known:
                chosen[digest] = namespace
        if self._gathered_bytes - self._finished_bytes + len(chosen) * size > self._max_pending_bytes:
            self._dropped.add(len(chosen))
            return bool(named)
        for namespace, digests in groupby(chosen, chosen.__getitem__):
            contents = engine.read(digests)
            self._gathered_bytes += _num_bytes(contents)
            self._loop.call_soon_threadsafe(self._offer, namespace, contents)
        return bool(named)

    def _offer(self, namespace: str, contents: dict[bytes, memoryview]) -> None:
        self.remember(contents)
        self._pending.put_nowait((namespace, contents))

    async def _publish(self) -> None:
        while True:
            namespace, contents = await self._pending.get()
            try:
                if not await self._store(namespace, contents):
                    self.forget(contents)
            finally:
                self._finished_bytes += _num_bytes(contents)

    async def _store(self, namespace: str, contents: dict[bytes, memoryview]) -> bool:
        """Whether the cache took them all."""
        token = self._token(namespace)
        if not token or self._backoff.is_off:
            return False
        started = time.monotonic()
        try:
            sealed = ((key, self._seal.close(key, content)) for key, content in contents.items())
            num_stored = await self._client.store(token, namespace, sealed, _STORE_SECONDS)
        except grpc.aio.AioRpcError as error:
            self._backoff.failed(error)
            return False
        self._seconds.record(time.monotonic() - started)
        self._published.add(num_stored)
        return num_stored == len(contents)

    def _token(self, namespace: str) -> str:
        """The latest token for a namespace; every one is good for the public one."""
        if namespace == PUBLIC_NAMESPACE:
            return next(reversed(self._tokens.values()), "")
        return self._tokens.get(namespace, "")


def _num_bytes(contents: dict[bytes, memoryview]) -> int:
    return sum(content.nbytes for content in contents.values())
