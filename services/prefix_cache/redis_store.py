"""Blocks in Valkey or Redis (7 or later), one server or a cluster: for when one machine is too small.

A block is one string, its checksum before its bytes. The accounts of a namespace (see redis_scripts.py) have it as
their hash tag, so that scripts change them together while blocks spread over a cluster. Caches that share a server
therefore count alike.

Block and account cannot change at once. A block is put for a minute, and stays when its account is written: what fails
half way goes by itself, and so does what nobody used for long. Blocks that the server lets go are counted until their
turn comes.

A full server refuses blocks. Then the namespace that holds most on it lets its longest unused ones go, if it holds more
than the one that asks would: see shares.py.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterError, OutOfMemoryError, ResponseError

from services.prefix_cache.block import Block
from services.prefix_cache.redis_scripts import ACCOUNT, FORGET, GIVE_WAY, HOLDS
from services.prefix_cache.store import Store, Usage, Usages

_log = logging.getLogger(__name__)
_CHECKSUM_BYTES = 8
_UNACCOUNTED_SECONDS = 60
_UNUSED_SECONDS = 7 * 24 * 3600.0
_CLEARED_AT_ONCE = 64
_NONE_LEFT = -1
_PAUSE_SECONDS = 1.0
"""How long a server that failed is left alone."""
_MAX_CONNECTIONS = 10_000
"""As many as a server takes: calls beyond it fail, and too few would look like a server that does."""
_MAX_ROOM = 4
"""Blocks' worth of room that is made at once, and how often: what goes may lie on other nodes of a cluster."""
_TENANTS = "paceline:{tenants}:totals", "paceline:{tenants}:seen"
T = TypeVar("T")
O = TypeVar("O")  # noqa: E741


class RedisStore(Store):
    """The tier that machines share. The longest unused block of a namespace goes first."""

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        cluster: bool,
        quota_bytes: int,
        timeout_seconds: float,
        idle_seconds: float = _UNUSED_SECONDS,
    ) -> None:
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
        self._idle_seconds = max(1, round(idle_seconds))
        self._usages = Usages()
        self._not_before = 0.0
        self._no_puts_before = 0.0

    async def find(self, namespace: str, keys: Sequence[bytes]) -> list[Block | None]:
        """See Store."""

        async def read() -> list[bytes | None]:
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.get(_block_name(_tag(namespace), key))
            values: list[bytes | None] = await pipeline.execute()
            return values

        nothing: list[bytes | None] = [None] * len(keys)
        values = await self._do(read, nothing)
        found = [None if value is None else _decode(key, value) for key, value in zip(keys, values, strict=True)]
        used = [(block.key, block.num_bytes) for block in found if block is not None]
        if used:
            self._usages[namespace].num_hits += len(used)
            await self._do(lambda: self._account(namespace, used), None)
        return found

    async def which(self, namespace: str, keys: Sequence[bytes]) -> set[bytes]:
        """See Store."""

        async def read() -> set[bytes]:
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.exists(_block_name(_tag(namespace), key))
            return {key for key, is_there in zip(keys, await pipeline.execute(), strict=True) if is_there}

        return await self._do(read, set())

    async def put(self, namespace: str, block: Block) -> bool:
        """See Store."""
        if block.num_bytes > self._quota_bytes or time.monotonic() < self._no_puts_before:
            return False

        async def write() -> bool:
            name = _block_name(_tag(namespace), block.key)
            if not await self._client.exists(name):
                await self._set(namespace, name, block)
            await self._account(namespace, [(block.key, block.num_bytes)])
            return True

        return await self._do(write, False)

    async def drop(self, namespace: str, key: bytes) -> None:
        """See Store."""

        async def delete() -> None:
            self._usages[namespace].num_corrupt += await self._client.delete(_block_name(_tag(namespace), key))
            await self._forget(namespace, [key])

        await self._do(delete, None)

    async def clear(self, namespace: str) -> int | None:
        """See Store."""
        tag = _tag(namespace)

        async def delete_some() -> int:
            keys = await self._client.zrange(_order_name(tag), 0, _CLEARED_AT_ONCE - 1)
            if not keys:
                return _NONE_LEFT
            count: int = await self._client.delete(*(_block_name(tag, key) for key in keys))
            await self._forget(namespace, keys)
            return count

        total = 0
        while (count := await self._do(delete_some, None)) != _NONE_LEFT:
            if count is None:
                return None
            total += count
        return total

    async def expire(self) -> None:
        """See Store. The server does it by itself."""

    async def usage(self, namespace: str) -> Usage:
        """See Store."""
        usage = self._usages[namespace]

        async def read() -> None:
            usage.num_blocks = await self._client.zcard(_order_name(_tag(namespace)))
            usage.num_bytes = await self._held(_tag(namespace))

        await self._do(read, None)
        return usage

    async def close(self) -> None:
        """See Store."""

        async def end() -> None:
            await self._client.initialize()  # One that lost its cluster would else leave its connections open.
            await self._client.aclose()

        self._not_before = 0.0
        await self._do(end, None)

    async def _set(self, namespace: str, name: bytes, block: Block) -> None:
        """Puts a block for a minute. Raises OutOfMemoryError when nobody has to give way for it."""
        value = block.checksum.to_bytes(_CHECKSUM_BYTES, "little") + block.data
        for _ in range(_MAX_ROOM):
            try:
                await self._client.set(name, value, ex=_UNACCOUNTED_SECONDS)
                return
            except OutOfMemoryError:
                if not await self._make_room(namespace, block.num_bytes):
                    raise
        await self._client.set(name, value, ex=_UNACCOUNTED_SECONDS)

    async def _make_room(self, namespace: str, size: int) -> bool:
        """Has the namespace that holds most let blocks go, if it is above the one that asks. Whether any went."""
        largest = await self._client.zrange(_TENANTS[0], 0, 0, desc=True, withscores=True)
        tag, own = _tag(namespace), await self._held(_tag(namespace))
        if not largest or largest[0][0].decode() == tag or largest[0][1] < own + size:
            return False
        other = largest[0][0].decode()
        wanted = max(size, min(_MAX_ROOM * size, int(largest[0][1] - own) // 2))
        return await self._let_go(other, await self._run(GIVE_WAY, other, wanted)) > 0

    async def _account(self, namespace: str, used: Sequence[tuple[bytes, int]]) -> None:
        """Has blocks that are there stay, and others go for them."""
        tag = _tag(namespace)
        pairs = [part for key_and_size in used for part in key_and_size]
        found = await self._run(ACCOUNT, tag, self._quota_bytes, self._idle_seconds, *pairs)
        pipeline = self._client.pipeline(transaction=False)
        for key, _ in used:
            pipeline.expire(_block_name(tag, key), self._idle_seconds)
        await asyncio.gather(pipeline.execute(), self._let_go(tag, found))

    async def _forget(self, namespace: str, keys: list[bytes]) -> None:
        await self._let_go(_tag(namespace), await self._run(FORGET, _tag(namespace), *keys))

    async def _let_go(self, tag: str, found: list[Any]) -> int:
        """Deletes what a script counts no longer, and notes what is held now; returns how many blocks went."""
        total, *gone = found
        if gone:
            self._usages[bytes.fromhex(tag).decode()].num_evictions += len(gone)
            await self._client.delete(*(_block_name(tag, key) for key in gone))
        await self._client.eval(HOLDS, 2, *_TENANTS, tag, total, self._idle_seconds)
        return len(gone)

    async def _run(self, script: str, tag: str, *arguments: object) -> list[Any]:
        """What a script says that changes the accounts of a namespace."""
        found: list[Any] = await self._client.eval(script, 2, _order_name(tag), _sizes_name(tag), *arguments)
        return found

    async def _held(self, tag: str) -> int:
        return int(await self._client.hget(_sizes_name(tag), "total") or 0)

    async def _do(self, work: Callable[[], Awaitable[T]], otherwise: O) -> T | O:
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


def _decode(key: bytes, value: bytes) -> Block:
    return Block(key, memoryview(value)[_CHECKSUM_BYTES:], int.from_bytes(value[:_CHECKSUM_BYTES], "little"))


def _tag(namespace: str) -> str:
    return namespace.encode().hex()


def _block_name(tag: str, key: bytes) -> bytes:
    return b"paceline:block:" + tag.encode() + b":" + key


def _order_name(tag: str) -> str:
    return f"paceline:{{{tag}}}:order"


def _sizes_name(tag: str) -> str:
    return f"paceline:{{{tag}}}:sizes"
