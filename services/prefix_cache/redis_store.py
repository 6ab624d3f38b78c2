"""Blocks in Valkey or Redis (7 or later), one server or a cluster: for when one machine is too small.

A block is one string, its checksum before its bytes. The accounts of a namespace are a sorted set of its blocks by
last use and a hash of their sizes; both have the namespace as their hash tag, so that scripts change them together
while blocks spread over a cluster. Caches that share a server therefore count alike.

Block and account cannot change at once. A block is put for a minute, and stays when its account is written: what fails
half way goes by itself, and so does what nobody used for a week. Blocks that the server lets go are counted until their
turn comes.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterError, ResponseError

from services.prefix_cache.block import Block
from services.prefix_cache.store import Usage

_log = logging.getLogger(__name__)
_CHECKSUM_BYTES = 8
_UNACCOUNTED_SECONDS = 60
_UNUSED_SECONDS = 7 * 24 * 3600
_CLEARED_AT_ONCE = 64
_PAUSE_SECONDS = 1.0
"""How long a server that failed is left alone."""
_MAX_CONNECTIONS = 10_000
"""As many as a server takes: calls beyond it fail, and too few would look like a server that does."""
# A full server refuses blocks, never accounts: what is read is still noted, and what goes is still counted.
_ACCOUNT = """#!lua flags=allow-oom
local order, sizes = KEYS[1], KEYS[2]
local key, size, quota, seconds = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if redis.call('EXISTS', order, sizes) == 1 then redis.call('DEL', order, sizes) end
local before = redis.call('HGET', sizes, key) or 0
redis.call('HSET', sizes, key, size)
redis.call('ZADD', order, redis.call('HINCRBY', sizes, 'clock', 1), key)
local total = redis.call('HINCRBY', sizes, 'total', size - before)
local gone = {}
while total > quota do
    local oldest = redis.call('ZPOPMIN', order)[1]
    total = redis.call('HINCRBY', sizes, 'total', 0 - (redis.call('HGET', sizes, oldest) or 0))
    redis.call('HDEL', sizes, oldest)
    gone[#gone + 1] = oldest
end
redis.call('EXPIRE', order, seconds)
redis.call('EXPIRE', sizes, seconds)
return gone
"""
"""Notes that a block was used now; returns the blocks that have to go for it, no longer counted.

Where one of the two accounts was lost, both are begun anew."""
_FORGET = """#!lua flags=allow-oom
local order, sizes = KEYS[1], KEYS[2]
for _, key in ipairs(ARGV) do
    redis.call('HINCRBY', sizes, 'total', 0 - (redis.call('HGET', sizes, key) or 0))
    redis.call('HDEL', sizes, key)
    redis.call('ZREM', order, key)
end
if redis.call('EXISTS', order) == 0 then redis.call('DEL', sizes) end
"""
"""Counts blocks no longer."""
T = TypeVar("T")


class RedisStore:
    """The tier that machines share. The longest unused block goes first."""

    name = "redis"

    def __init__(self, url: str, *, cluster: bool, quota_bytes: int, timeout_seconds: float) -> None:
        """`timeout_seconds` is the longest wait of a call; no one answer may take more than half of it."""
        client: Any = RedisCluster if cluster else Redis
        self._client: Any = client.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_seconds / 2,
            socket_connect_timeout=timeout_seconds / 2,
            max_connections=_MAX_CONNECTIONS,
        )
        self._quota_bytes = quota_bytes
        self._timeout_seconds = timeout_seconds
        self._usages: dict[str, Usage] = {}
        self._not_before = 0.0
        self._no_puts_before = 0.0

    async def get(self, namespace: str, key: bytes) -> Block | None:
        """See Store."""

        async def read() -> bytes | None:
            value: bytes | None = await self._client.get(_block_name(namespace, key))
            return value

        value = await self._do(read, None)
        if value is None:
            return None
        block = Block(key, memoryview(value)[_CHECKSUM_BYTES:], int.from_bytes(value[:_CHECKSUM_BYTES], "little"))
        self._usage(namespace).num_hits += 1
        await self._do(lambda: self._account(namespace, key, block.num_bytes), None)
        return block

    async def has(self, namespace: str, key: bytes) -> bool:
        """See Store."""

        async def read() -> bool:
            return bool(await self._client.exists(_block_name(namespace, key)))

        return await self._do(read, False)

    async def put(self, namespace: str, block: Block) -> bool:
        """See Store."""
        if block.num_bytes > self._quota_bytes or time.monotonic() < self._no_puts_before:
            return False

        async def write() -> bool:
            name = _block_name(namespace, block.key)
            if not await self._client.exists(name):
                value = block.checksum.to_bytes(_CHECKSUM_BYTES, "little") + block.data
                await self._client.set(name, value, ex=_UNACCOUNTED_SECONDS)
            await self._account(namespace, block.key, block.num_bytes)
            return True

        return await self._do(write, False)

    async def drop(self, namespace: str, key: bytes) -> None:
        """See Store."""

        async def delete() -> None:
            self._usage(namespace).num_corrupt += await self._client.delete(_block_name(namespace, key))
            await self._forget(namespace, [key])

        await self._do(delete, None)

    async def clear(self, namespace: str) -> int:
        """See Store."""

        async def delete_some() -> int | None:
            keys = await self._client.zrange(_order_name(namespace), 0, _CLEARED_AT_ONCE - 1)
            if not keys:
                return None
            count: int = await self._client.delete(*(_block_name(namespace, key) for key in keys))
            await self._forget(namespace, keys)
            return count

        total = 0
        while (count := await self._do(delete_some, None)) is not None:
            total += count
        return total

    async def usage(self, namespace: str) -> Usage:
        """See Store."""
        usage = self._usage(namespace)

        async def read() -> None:
            usage.num_blocks = await self._client.zcard(_order_name(namespace))
            usage.num_bytes = int(await self._client.hget(_sizes_name(namespace), "total") or 0)

        await self._do(read, None)
        return usage

    async def close(self) -> None:
        """See Store."""

        async def end() -> None:
            await self._client.initialize()  # One that lost its cluster would else leave its connections open.
            await self._client.aclose()

        self._not_before = 0.0
        await self._do(end, None)

    async def _account(self, namespace: str, key: bytes, size: int) -> None:
        """Has a block that is there stay, and others go for it."""
        names = _order_name(namespace), _sizes_name(namespace)
        gone = await self._client.eval(_ACCOUNT, 2, *names, key, size, self._quota_bytes, _UNUSED_SECONDS)
        await self._client.expire(_block_name(namespace, key), _UNUSED_SECONDS)
        if gone:
            self._usage(namespace).num_evictions += len(gone)
            await self._client.delete(*(_block_name(namespace, key) for key in gone))

    async def _forget(self, namespace: str, keys: list[bytes]) -> None:
        await self._client.eval(_FORGET, 2, _order_name(namespace), _sizes_name(namespace), *keys)

    async def _do(self, work: Callable[[], Awaitable[T]], otherwise: T) -> T:
        if time.monotonic() < self._not_before:
            return otherwise
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await work()
        except Exception as error:  # When connections break, a cluster's client raises more than its own errors.
            _log.warning("redis could not do its work: %r", error)
            until = time.monotonic() + _PAUSE_SECONDS
            if isinstance(error, ResponseError) and not isinstance(error, ClusterError):
                self._no_puts_before = until  # It answers: one that is full still gives out what it has.
            else:
                self._not_before = until
            return otherwise

    def _usage(self, namespace: str) -> Usage:
        return self._usages.setdefault(namespace, Usage())


def _block_name(namespace: str, key: bytes) -> bytes:
    return b"paceline:block:" + namespace.encode().hex().encode() + b":" + key


def _order_name(namespace: str) -> str:
    return f"paceline:{{{namespace.encode().hex()}}}:order"


def _sizes_name(namespace: str) -> str:
    return f"paceline:{{{namespace.encode().hex()}}}:sizes"
