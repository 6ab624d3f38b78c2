"""Between an engine and the prefix cache: fetches what a prompt begins with, has what was computed published.

The cache only ever saves work. Whatever it does wrong is a miss; while it fails it is left alone for a while; nobody
waits for it longer than computing would take.
"""

import logging
import time
from collections import abc
from contextlib import aclosing
from itertools import groupby
from typing import Any

import grpc

from services.common.channel import open_channel
from services.common.identities import Identity
from services.common.telemetry import counter, meter
from services.common.tls_settings import tls_to
from services.engine.engine_loop import EngineLoop
from services.engine.kv_cache import Buffer
from services.engine.sequence import Sequence
from services.model_server.cache_backoff import CacheBackoff
from services.model_server.publisher import BATCH_BYTES, Computed, Publisher
from services.model_server.seal import Seal
from services.model_server.settings import ModelServerSettings
from services.model_server.tenant import Tenant
from services.prefix_cache.client import PrefixCacheClient

_log = logging.getLogger(__name__)
_MATCH_SECONDS = 0.25
_MAX_FETCH_SECONDS = 10.0
_FIRST_RATE = 100e6
_FIRST_LATENCY = 0.005
"""What fetching is taken to cost until it was measured: bytes a second, and seconds beside."""
_SMOOTHING = 0.3
_DOUBT = 0.02


class PrefixTier:
    """One engine's dealings with a prefix cache."""

    def __init__(
        self,
        engine_loop: EngineLoop[Any],
        computed: Computed,
        client: PrefixCacheClient,
        seal: Seal,
        max_pending_bytes: int,
    ) -> None:
        """`computed` is where the engine says which blocks it computed."""
        self._engine_loop = engine_loop
        self._client = client
        self._backoff = CacheBackoff(client.target)
        self._seal = seal
        self._publisher = Publisher(engine_loop, computed, client, self._backoff, seal, max_pending_bytes)
        self._rate = _FIRST_RATE
        self._latency = _FIRST_LATENCY
        instruments = meter("paceline.prefix_tier")
        self._fetched = counter(instruments, "paceline.fetched_tokens", "{token}", "Prompt tokens not computed.")
        self._unsealed = counter(instruments, "paceline.unsealed_blocks", "{block}", "Blocks no engine sealed.")
        self._seconds = instruments.create_histogram("paceline.fetch_duration", "s", "Time spent on fetching a prefix.")

    @classmethod
    def connect(
        cls, engine_loop: EngineLoop[Any], computed: Computed, settings: ModelServerSettings
    ) -> "PrefixTier | None":
        """Connects to the prefix cache that settings name; None without one."""
        if settings.prefix_cache is None:
            return None
        tls = tls_to(Identity.PREFIX_CACHE, settings.channel_tls)
        client = PrefixCacheClient(settings.prefix_cache, open_channel(settings.prefix_cache, tls=tls))
        return cls(engine_loop, computed, client, Seal(settings.seal_key), settings.max_unpublished_bytes)

    async def fetch(self, sequence: Sequence, tenant: Tenant) -> None:
        """Has the engine take in what the cache has of a sequence that is about to be opened, if that is quicker."""
        if not tenant.namespace or not tenant.token:
            return
        self._publisher.use(tenant.namespace, tenant.token)
        if sequence.roots.num_public_blocks:
            self._publisher.use(sequence.roots.public_label, tenant.token)
        if self._backoff.is_off:
            return
        size = self._engine_loop.facts.block_size
        # The last token is always computed.
        usable = min(sequence.first_logits, sequence.num_settled - 1) // size
        if not usable:
            return
        digests = [sequence.digest_of_block(index, size) for index in range(usable)]
        first, seconds = await self._engine_loop.ask(
            lambda role: (role.engine.count_leading(digests), size * role.engine.prompt_seconds)
        )
        if first == usable:
            return
        if not self._pays(usable - first, seconds):
            self._doubt()
            return
        started = time.monotonic()
        for namespace, run in groupby(range(first, usable), sequence.roots.label_of):
            keys = [digests[index] for index in run]
            if not await self._fetch(tenant.token, namespace, keys, seconds):
                break
        self._seconds.record(time.monotonic() - started)

    async def close(self) -> None:
        """Stops publishing; what is pending is let go."""
        self._publisher.close()
        await self._client.close()

    async def _fetch(self, token: str, namespace: str, keys: list[bytes], seconds: float) -> bool:
        """Fetches the leading ones of the blocks, each of which takes `seconds` to compute. Whether it got all."""
        limit = min(_MAX_FETCH_SECONDS, len(keys) * seconds)
        got = 0
        try:
            count = await self._match(token, namespace, keys, min(_MATCH_SECONDS, limit))
            if count and self._pays(count, seconds):
                size = self._engine_loop.facts.block_bytes + self._seal.num_bytes
                async with aclosing(self._client.fetch(token, namespace, keys[:count], size, limit)) as blocks:
                    got = await self._receive(blocks, count)
        except grpc.aio.AioRpcError as error:
            self._backoff.blame(error)
            return False
        self._backoff.worked()
        return got == len(keys)

    async def _match(self, token: str, namespace: str, keys: list[bytes], limit: float) -> int:
        """How many of the blocks, from the first on, the cache has; it has `limit` seconds to say so."""
        started = time.monotonic()
        try:
            count = await self._client.match(token, namespace, keys, limit)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or limit >= _MATCH_SECONDS:
                raise
            # Computing takes so little that an answer in time cannot be asked for: next time rather compute.
            self._latency = max(self._latency, 2 * limit)
            return 0
        self._latency += _SMOOTHING * (time.monotonic() - started - self._latency)
        self._publisher.met()
        self._publisher.forget(keys[count:])
        return count

    async def _receive(self, blocks: abc.AsyncIterator[tuple[bytes, Buffer]], count: int) -> int:
        """Hands blocks to the engine as they come; returns how many came."""
        facts = self._engine_loop.facts
        batch: dict[bytes, Buffer] = {}
        got, started = 0, time.monotonic()
        try:
            async for key, data in blocks:
                content = self._seal.open(key, data)
                if content is None:
                    self._unsealed.add(1)
                    break
                batch[key] = content
                got += 1
                if len(batch) * facts.block_bytes >= BATCH_BYTES:
                    self._adopt(batch)
                    batch = {}
        finally:
            self._adopt(batch)
            self._fetched.add(got * facts.block_size)
            seconds = max(time.monotonic() - started, 1e-6)
            self._rate += _SMOOTHING * (got * facts.block_bytes / seconds - self._rate)
        if got < count:
            _log.warning("the prefix cache gave %d blocks of %d that it said it had", got, count)
        return got

    def _adopt(self, batch: dict[bytes, Buffer]) -> None:
        if batch:
            self._publisher.remember(batch)
            self._engine_loop.submit(lambda role: role.engine.adopt(batch))

    def _pays(self, num_blocks: int, seconds: float) -> bool:
        """Whether fetching is expected to be quicker than computing, which takes `seconds` a block."""
        num_bytes = num_blocks * self._engine_loop.facts.block_bytes
        return self._latency + num_bytes / max(self._rate, 1.0) < num_blocks * seconds

    def _doubt(self) -> None:
        """What was measured counts a little less: a cache that was slow once is asked again some day."""
        self._rate += _DOUBT * (_FIRST_RATE - self._rate)
        self._latency += _DOUBT * (_FIRST_LATENCY - self._latency)
