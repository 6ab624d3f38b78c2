"""All tiers as one: the nearest that has a block answers, and what answers is kept nearer by.

A block is looked at whenever it is read: one that is not as its checksum says is dropped, counted, and missing.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from services.prefix_cache.block import Block
from services.prefix_cache.store import Store, Usage

_log = logging.getLogger(__name__)


class Tiers:
    """Writes to the nearest tier at once, to the others behind the caller's back, and not at all when they lag."""

    def __init__(self, stores: Sequence[Store], max_pending_bytes: int) -> None:
        self._stores = stores
        self._max_pending_bytes = max_pending_bytes
        self._pending: asyncio.Queue[tuple[str, Block]] = asyncio.Queue()
        self._pending_bytes = 0
        self.misses: Counter[str] = Counter()
        """Blocks asked for that no tier had, by namespace."""
        self.num_dropped = 0
        """Blocks that further tiers did not get because they lagged."""
        self._writer = asyncio.create_task(self._write_behind())

    async def get(self, namespace: str, key: bytes) -> Block | None:
        """The block, intact, or None."""
        for index, store in enumerate(self._stores):
            block = await store.get(namespace, key)
            if block is None:
                continue
            if block.is_intact:
                for nearer in self._stores[:index]:
                    await nearer.put(namespace, block)
                return block
            _log.warning("a block of the %s tier is not as its checksum says; dropped", store.name)
            await store.drop(namespace, key)
        self.misses[namespace] += 1
        return None

    async def num_leading(self, namespace: str, keys: Sequence[bytes]) -> int:
        """How many of the keys, from the first on, are there."""
        for count, key in enumerate(keys):
            if not await self._has(namespace, key):
                return count
        return len(keys)

    async def put(self, namespace: str, block: Block) -> bool:
        """Keeps a block. False when no tier can."""
        nearest, *further = self._stores
        kept = await nearest.put(namespace, block)
        if not further:
            return kept
        if self._pending_bytes + block.num_bytes > self._max_pending_bytes:
            self.num_dropped += 1
            return kept
        self._pending_bytes += block.num_bytes
        self._pending.put_nowait((namespace, block))
        return True

    async def clear(self, namespace: str) -> int:
        """Deletes a namespace; how many blocks the tier with the most of them had."""
        await self._pending.join()
        return max([await store.clear(namespace) for store in self._stores])

    async def usage(self, namespace: str) -> list[tuple[str, Usage]]:
        """What each tier holds, nearest first."""
        return [(store.name, await store.usage(namespace)) for store in self._stores]

    async def close(self) -> None:
        """Writes what is pending, and ends all tiers."""
        await self._pending.join()
        self._writer.cancel()
        for store in self._stores:
            await store.close()

    async def _has(self, namespace: str, key: bytes) -> bool:
        for store in self._stores:
            if await store.has(namespace, key):
                return True
        return False

    async def _write_behind(self) -> None:
        while True:
            namespace, block = await self._pending.get()
            try:
                for store in self._stores[1:]:
                    await store.put(namespace, block)
            finally:
                self._pending_bytes -= block.num_bytes
                self._pending.task_done()
