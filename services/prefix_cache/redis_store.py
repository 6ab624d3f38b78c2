"""Blocks in Valkey or Redis, one server or a cluster: for when one machine is too small.

A block is one string, its checksum before its bytes. A sorted set for each namespace says when each of its blocks was
used last, a counter how many bytes they are; both have the namespace as their hash tag, so that blocks spread over a
cluster and the accounts of a namespace stay together. Several caches may use one cluster; their counts are then right
to within the blocks that are on their way.
"""

import logging
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.prefix_cache.block import Block
from services.prefix_cache.store import Usage

_log = logging.getLogger(__name__)
_CHECKSUM = struct.Struct("<Q")
_SIZE = struct.Struct("<Q")
_EVICTED_AT_ONCE = 8
_PAUSE_SECONDS = 1.0
"""How long a server that failed is left alone."""
T = TypeVar("T")


class RedisStore:
    """The tier that machines share."""

    name = "redis"

    def __init__(self, url: str, *, cluster: bool, quota_bytes: int, timeout_seconds: float) -> None:
        options: dict[str, Any] = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
        if cluster:
            self._client: Any = RedisCluster.from_url(url, **options)
        else:
            self._client = Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        self._quota_bytes = quota_bytes
        self._usages: dict[str, Usage] = {}
        self._not_before = 0.0

    async def get(self, namespace: str, key: bytes) -> Block | None:
        """See Store."""

        async def read() -> Block | None:
            value = await self._client.get(_block_name(namespace, key))
            if value is None or len(value) <= _CHECKSUM.size:
                return None
            data = memoryview(value)[_CHECKSUM.size :]
            await self._client.zadd(_order_name(namespace), {_member(key, data.nbytes): time.time()}, xx=True)
            self._usage(namespace).num_hits += 1
            return Block(key, data, _CHECKSUM.unpack_from(value)[0])

        return await self._do(read, None)

    async def has(self, namespace: str, key: bytes) -> bool:
        """See Store."""

        async def read() -> bool:
            return bool(await self._client.exists(_block_name(namespace, key)))

        return await self._do(read, False)

    async def put(self, namespace: str, block: Block) -> bool:
        """See Store."""

        async def write() -> bool:
            size = block.num_bytes
            if size > self._quota_bytes:
                return False
            value = _CHECKSUM.pack(block.checksum) + block.data
            if not await self._client.set(_block_name(namespace, block.key), value, nx=True):
                return True
            await self._client.zadd(_order_name(namespace), {_member(block.key, size): time.time()})
            total = await self._client.incrby(_bytes_name(namespace), size)
            while total > self._quota_bytes:
                oldest = await self._client.zpopmin(_order_name(namespace), _EVICTED_AT_ONCE)
                if not oldest:
                    break
                for member, _ in oldest:
                    await self._client.delete(_block_name(namespace, member[: -_SIZE.size]))
                freed = sum(_SIZE.unpack(member[-_SIZE.size :])[0] for member, _ in oldest)
                total = await self._client.decrby(_bytes_name(namespace), freed)
                self._usage(namespace).num_evictions += len(oldest)
            return True

        return await self._do(write, False)

    async def drop(self, namespace: str, key: bytes) -> None:
        """See Store."""

        async def delete() -> None:
            size = await self._client.strlen(_block_name(namespace, key)) - _CHECKSUM.size
            await self._client.delete(_block_name(namespace, key))
            if await self._client.zrem(_order_name(namespace), _member(key, size)):
                await self._client.decrby(_bytes_name(namespace), size)
            self._usage(namespace).num_corrupt += 1

        await self._do(delete, None)

    async def clear(self, namespace: str) -> int:
        """See Store."""

        async def delete() -> int:
            count = 0
            while oldest := await self._client.zpopmin(_order_name(namespace), _EVICTED_AT_ONCE):
                for member, _ in oldest:
                    count += await self._client.delete(_block_name(namespace, member[: -_SIZE.size]))
            await self._client.delete(_bytes_name(namespace))
            return count

        return await self._do(delete, 0)

    async def usage(self, namespace: str) -> Usage:
        """See Store."""
        usage = self._usage(namespace)

        async def read() -> None:
            usage.num_blocks = await self._client.zcard(_order_name(namespace))
            usage.num_bytes = int(await self._client.get(_bytes_name(namespace)) or 0)

        await self._do(read, None)
        return usage

    async def close(self) -> None:
        """See Store."""
        await self._client.aclose()

    async def _do(self, work: Callable[[], Awaitable[T]], otherwise: T) -> T:
        if time.monotonic() < self._not_before:
            return otherwise
        try:
            return await work()
        except (RedisError, OSError) as error:
            _log.warning("redis could not do its work: %r", error)
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            return otherwise

    def _usage(self, namespace: str) -> Usage:
        return self._usages.setdefault(namespace, Usage())


def _block_name(namespace: str, key: bytes) -> bytes:
    return b"paceline:block:" + namespace.encode().hex().encode() + b":" + key


def _order_name(namespace: str) -> str:
    return f"paceline:{{{namespace.encode().hex()}}}:order"


def _bytes_name(namespace: str) -> str:
    return f"paceline:{{{namespace.encode().hex()}}}:bytes"


def _member(key: bytes, size: int) -> bytes:
    return key + _SIZE.pack(size)
