"""Puts the blocks that an engine computed into the prefix cache, behind everybody's back.

The engine says which blocks it computed. Those that the cache is not known to have are read between two steps, some at
a time, into a bounded queue; what does not fit is dropped. Everything here runs on the event loop.
"""

import asyncio
import time
from collections import abc
from contextlib import suppress
from itertools import groupby
from typing import Any

import grpc
from cachetools import LRUCache, TLRUCache

from paceline.errors import UnavailableError
from services.common.incarnation import Incarnations
from services.common.telemetry import counter, meter
from services.common.tokens import expiry
from services.engine.engine_loop import EngineLoop
from services.engine.scheduler import Registered
from services.model_server.cache_backoff import CacheBackoff
from services.model_server.seal import Seal
from services.prefix_cache.client import PrefixCacheClient

BATCH_BYTES = 4 << 20
"""Most bytes that go into or out of the engine between two steps."""
_STORE_SECONDS = 30.0
_MAX_KNOWN = 1 << 18
_MAX_NAMESPACES = 4096
_MAX_COMPUTED = 1024


class Computed(asyncio.Queue[list[Registered]]):
    """Blocks that an engine has just computed, on their way to its publisher. The oldest fall out of a full one."""

    def __init__(self) -> None:
        super().__init__(_MAX_COMPUTED)

    def put_nowait(self, item: list[Registered]) -> None:
        """Takes the blocks of one step."""
        if self.full():
            self.get_nowait()
        super().put_nowait(item)


class Publisher:
    """One engine's blocks on their way to one cache."""

    def __init__(
        self,
        engine_loop: EngineLoop[Any],
        computed: Computed,
        client: PrefixCacheClient,
        backoff: CacheBackoff,
        seal: Seal,
        max_pending_bytes: int,
    ) -> None:
        self._engine_loop = engine_loop
        self._computed = computed
        self._client = client
        self._backoff = backoff
        self._seal = seal
        self._max_pending_bytes = max_pending_bytes
        self._known: LRUCache[bytes, None] = LRUCache(_MAX_KNOWN)
        """Known blocks are those that the cache has been given, or gave."""
        self._incarnations = Incarnations()
        self._tokens: TLRUCache[str, str] = TLRUCache(
            _MAX_NAMESPACES, ttu=lambda _namespace, token, _now: expiry(token), timer=time.time
        )
        """Tokens are kept by namespace until they expire."""
        self._pending: asyncio.Queue[tuple[str, dict[bytes, memoryview]]] = asyncio.Queue()
        self._pending_bytes = 0
        instruments = meter("paceline.prefix_tier")
        self._published = counter(instruments, "paceline.published_blocks", "{block}", "Blocks published.")
        self._dropped = counter(instruments, "paceline.unpublished_blocks", "{block}", "Blocks dropped instead.")
        self._seconds = instruments.create_histogram("paceline.publish_duration", "s", "Time of storing a batch.")
        self._tasks = [asyncio.create_task(self._gather()), asyncio.create_task(self._publish())]

    def use(self, namespace: str, token: str) -> None:
        """Blocks of a namespace may be stored with this token from now on."""
        self._tokens[namespace] = token

    def remember(self, keys: abc.Iterable[bytes]) -> None:
        """The cache has these blocks: they need not be published."""
        for key in keys:
            self._known[key] = None

    def forget(self, keys: abc.Iterable[bytes]) -> None:
        """The cache does not have these blocks, or no longer."""
        for key in keys:
            self._known.pop(key, None)

    def met(self) -> None:
        """The cache has answered. One that was started anew is known to have nothing."""
        if self._incarnations.is_new(self._client.incarnation):
            self._known.clear()

    def close(self) -> None:
        """Stops; what is pending is let go."""
        for task in self._tasks:
            task.cancel()

    async def _gather(self) -> None:
        """Reads blocks as they are computed, until the engine ends."""
        with suppress(UnavailableError):
            while True:
                blocks = await self._computed.get()
                while not self._computed.empty():
                    blocks = blocks + self._computed.get_nowait()
                if self._backoff.is_off:
                    continue
                block_bytes = self._engine_loop.facts.block_bytes
                most = max(1, BATCH_BYTES // block_bytes)
                fresh = [block for block in dict.fromkeys(blocks) if block.digest not in self._known]
                for start in range(0, len(fresh), most):
                    await self._read(fresh[start : start + most], block_bytes)

    async def _read(self, blocks: list[Registered], block_bytes: int) -> None:
        """Has some blocks read and stored, if there is room for them: one question to the engine, whoever owns them."""
        if self._pending_bytes + len(blocks) * block_bytes > self._max_pending_bytes:
            self._dropped.add(len(blocks))
            return
        digests = [block.digest for block in blocks]
        found = await self._engine_loop.ask(lambda role: role.engine.read(digests))
        self.remember(found)
        there = (block for block in blocks if block.digest in found)
        for label, group in groupby(there, lambda block: block.label):
            contents = {block.digest: found[block.digest] for block in group}
            self._pending_bytes += _num_bytes(contents)
            self._pending.put_nowait((label, contents))

    async def _publish(self) -> None:
        """Stores blocks that were read."""
        while True:
            namespace, contents = await self._pending.get()
            try:
                if not await self._store(namespace, contents):
                    self.forget(contents)
            finally:
                self._pending_bytes -= _num_bytes(contents)

    async def _store(self, namespace: str, contents: dict[bytes, memoryview]) -> bool:
        """Whether the cache took them all."""
        token = self._tokens.get(namespace)
        if not token or self._backoff.is_off:
            return False
        started = time.monotonic()
        try:
            sealed = ((key, self._seal.close(key, content)) for key, content in contents.items())
            num_stored = await self._client.store(token, namespace, sealed, _STORE_SECONDS)
        except grpc.aio.AioRpcError as error:
            self._backoff.blame(error)
            return False
        self.met()
        self._seconds.record(time.monotonic() - started)
        self._published.add(num_stored)
        return num_stored == len(contents)


def _num_bytes(contents: dict[bytes, memoryview]) -> int:
    return sum(content.nbytes for content in contents.values())
