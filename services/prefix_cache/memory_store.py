"""Blocks in memory: bounded in bytes as a whole and for each namespace."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from services.prefix_cache.block import Block
from services.prefix_cache.s3_fifo import S3Fifo
from services.prefix_cache.shares import Shares
from services.prefix_cache.store import Store, Usage, Usages


@dataclass(slots=True)
class _Namespace:
    blocks: dict[bytes, Block] = field(default_factory=dict)
    order: S3Fifo = field(default_factory=S3Fifo)


class MemoryStore(Store):
    """The nearest tier. Whose block goes when it is full: see shares.py; which one of those: see s3_fifo.py."""

    name = "memory"

    def __init__(
        self,
        capacity_bytes: int,
        quota_bytes: int,
        idle_seconds: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shares = Shares(capacity_bytes, quota_bytes)
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._namespaces: dict[str, _Namespace] = {}
        """Of those that have blocks."""
        self._used: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        """When each block was used last, the longest unused first."""
        self._usages = Usages()

    async def find(self, namespace: str, keys: Sequence[bytes]) -> list[Block | None]:
        """See Store."""
        held = self._namespaces.get(namespace)
        if held is None:
            return [None] * len(keys)
        found = [held.blocks.get(key) for key in keys]
        for block in found:
            if block is not None:
                held.order.touch(block.key)
                self._use(namespace, block.key)
                self._usages[namespace].num_hits += 1
        return found

    async def which(self, namespace: str, keys: Sequence[bytes]) -> set[bytes]:
        """See Store."""
        held = self._namespaces.get(namespace)
        return set() if held is None else held.blocks.keys() & keys

    async def put(self, namespace: str, block: Block) -> bool:
        """See Store."""
        if block.key in self._namespaces.get(namespace, _Namespace()).blocks:
            return True
        size = block.num_bytes
        if not self._shares.fits(size):
            return False
        while (giving := self._shares.gives_way(namespace, size)) is not None:
            other = self._namespaces.get(giving)
            if other is None:
                return False
            self._remove(giving, other.order.evict(), ordered=False)
            self._usages[giving].num_evictions += 1
        held = self._namespaces.setdefault(namespace, _Namespace())
        held.blocks[block.key] = block
        held.order.add(block.key, size)
        self._shares.add(namespace, size)
        self._use(namespace, block.key)
        return True

    async def drop(self, namespace: str, key: bytes) -> None:
        """See Store."""
        if await self.which(namespace, [key]):
            self._remove(namespace, key)
            self._usages[namespace].num_corrupt += 1

    async def clear(self, namespace: str) -> int:
        """See Store."""
        keys = list(self._namespaces.get(namespace, _Namespace()).blocks)
        for key in keys:
            self._remove(namespace, key)
        return len(keys)

    async def expire(self) -> None:
        """See Store."""
        before = self._clock() - self._idle_seconds
        while self._used:
            (namespace, key), used = next(iter(self._used.items()))
            if used >= before:
                return
            self._remove(namespace, key)

    async def usage(self, namespace: str) -> Usage:
        """See Store."""
        held = self._shares[namespace]
        return replace(self._usages[namespace], num_blocks=held.num_blocks, num_bytes=held.num_bytes)

    async def close(self) -> None:
        """See Store."""

    def _use(self, namespace: str, key: bytes) -> None:
        self._used[namespace, key] = self._clock()
        self._used.move_to_end((namespace, key))

    def _remove(self, namespace: str, key: bytes, *, ordered: bool = True) -> None:
        held = self._namespaces[namespace]
        self._shares.remove(namespace, held.blocks.pop(key).num_bytes)
        del self._used[namespace, key]
        if ordered:
            held.order.remove(key)
        if not held.blocks:
            del self._namespaces[namespace]
