"""Blocks in memory: bounded in bytes as a whole and for each namespace."""

from dataclasses import dataclass, field

from services.prefix_cache.block import Block
from services.prefix_cache.s3_fifo import S3Fifo
from services.prefix_cache.store import Usage


@dataclass(slots=True)
class _Namespace:
    blocks: dict[bytes, Block] = field(default_factory=dict)
    order: S3Fifo = field(default_factory=S3Fifo)
    usage: Usage = field(default_factory=Usage)


class MemoryStore:
    """The nearest tier. A namespace makes room among its own blocks only, whoever fills the rest."""

    name = "memory"

    def __init__(self, capacity_bytes: int, quota_bytes: int) -> None:
        self.num_bytes = 0
        self._capacity_bytes = capacity_bytes
        self._quota_bytes = min(quota_bytes, capacity_bytes)
        self._namespaces: dict[str, _Namespace] = {}

    async def get(self, namespace: str, key: bytes) -> Block | None:
        """See Store."""
        held = self._namespaces.get(namespace)
        block = held.blocks.get(key) if held else None
        if held and block:
            held.order.touch(key)
            held.usage.num_hits += 1
        return block

    async def has(self, namespace: str, key: bytes) -> bool:
        """See Store."""
        held = self._namespaces.get(namespace)
        return held is not None and key in held.blocks

    async def put(self, namespace: str, block: Block) -> bool:
        """See Store."""
        held = self._namespaces.setdefault(namespace, _Namespace())
        if block.key in held.blocks:
            return True
        size = block.num_bytes
        if size > self._quota_bytes:
            return False
        while held.order.num_bytes + size > self._quota_bytes or self.num_bytes + size > self._capacity_bytes:
            if not held.blocks:
                return False
            self._remove(held, held.order.evict(), ordered=False)
            held.usage.num_evictions += 1
        held.blocks[block.key] = block
        held.order.add(block.key, size)
        self.num_bytes += size
        return True

    async def drop(self, namespace: str, key: bytes) -> None:
        """See Store."""
        held = self._namespaces.get(namespace)
        if held and key in held.blocks:
            held.usage.num_corrupt += 1
            self._remove(held, key)

    async def clear(self, namespace: str) -> int:
        """See Store."""
        held = self._namespaces.get(namespace)
        if held is None:
            return 0
        count = len(held.blocks)
        for key in list(held.blocks):
            self._remove(held, key)
        held.order = S3Fifo()
        return count

    async def usage(self, namespace: str) -> Usage:
        """See Store."""
        held = self._namespaces.get(namespace)
        if held is None:
            return Usage()
        held.usage.num_blocks, held.usage.num_bytes = len(held.blocks), held.order.num_bytes
        return held.usage

    async def close(self) -> None:
        """See Store."""

    def _remove(self, held: _Namespace, key: bytes, *, ordered: bool = True) -> None:
        self.num_bytes -= held.blocks.pop(key).num_bytes
        if ordered:
            held.order.remove(key)
