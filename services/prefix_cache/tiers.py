"""All tiers as one: the nearest that has a block answers, and what answers is kept nearer by.

A block is looked at whenever it is read: one that is not as its checksum says is dropped, counted, and missing.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from cachetools import LRUCache

from paceline.errors import UnavailableError
from services.prefix_cache.block import Block
from services.prefix_cache.store import Store, Usage
from services.prefix_cache.tier import Tier, TimeLeft
from services.prefix_cache.turns import Turns
from services.prefix_cache.write_behind import WriteBehind

_log = logging.getLogger(__name__)
_MATCHED_AT_ONCE = 2048
_FETCHED_AT_ONCE = 32
_FETCHED_BYTES = 4 << 20
"""Blocks asked for in one call, and what they may take together."""
_MAX_COUNTED = 4096
_EXPIRE_SECONDS = 60.0
_RETRY_AFTER_SECONDS = 5.0


def _for_ever() -> float | None:
    return None


class Tiers:
    """Writes to the nearest tier at once, to the others behind the caller's back."""

    def __init__(
        self, stores: Sequence[Store], max_pending_bytes: int, expire_seconds: float = _EXPIRE_SECONDS
    ) -> None:
        """Every `expire_seconds` blocks go that nobody has used for long."""
        self._nearest, *self._further = stores
        self._turns = Turns()
        self._tiers = [Tier(store, self._turns) for store in stores]
        self._behind = WriteBehind(self._further, self._turns, max_pending_bytes)
        self._misses: LRUCache[str, int] = LRUCache(_MAX_COUNTED)
        self._expiring = asyncio.create_task(self._expire(expire_seconds))

    @property
    def num_dropped(self) -> int:
        """Blocks that further tiers did not get because they lagged."""
        return self._behind.num_dropped

    def num_misses(self, namespace: str) -> int:
        """Blocks asked for that no tier had."""
        return self._misses.get(namespace, 0)

    async def get(self, namespace: str, key: bytes) -> Block | None:
        """One block, intact, or None."""
        async with aclosing(self.blocks(namespace, [key])) as blocks:
            return await anext(blocks, None)

    async def blocks(
        self, namespace: str, keys: Sequence[bytes], time_left: TimeLeft = _for_ever
    ) -> AsyncGenerator[Block, None]:
        """The blocks in order, each intact, up to the first that is not there."""
        start, count = 0, 1
        while start < len(keys):
            wanted = keys[start : start + count]
            found = await self._find(namespace, wanted, time_left)
            num_bytes = sum(block.num_bytes for block in found.values()) + 1
            for key in wanted:
                block = found.pop(key, None)
                if block is None:
                    self._misses[namespace] = self.num_misses(namespace) + 1
                    return
                yield block
            start += count
            count = max(1, min(_FETCHED_AT_ONCE, count * _FETCHED_BYTES // num_bytes))

    async def num_leading(self, namespace: str, keys: Sequence[bytes], time_left: TimeLeft = _for_ever) -> int:
        """How many of the keys, from the first on, are there."""
        for start in range(0, len(keys), _MATCHED_AT_ONCE):
            asked = keys[start : start + _MATCHED_AT_ONCE]
            present = await self._which(namespace, asked, time_left)
            for index, key in enumerate(asked):
                if key not in present:
                    return start + index
        return len(keys)

    async def put(self, namespace: str, block: Block) -> bool:
        """Keeps a block. False when no tier does."""
        await self._turns.cleared(namespace)
        with self._turns.writing(namespace):
            if await self._nearest.put(namespace, block):
                self._behind.offer(namespace, block)
                return True
            return any(await asyncio.gather(*(store.put(namespace, block) for store in self._further)))

    async def clear(self, namespace: str) -> int:
        """Deletes a namespace, and whatever of it is on its way; how many blocks the tier with the most of them had.

        Raises UnavailableError when a tier may have some left, once all others have none.
        """
        async with self._turns.clearing(namespace):
            self._behind.forget(namespace)
            counts = await asyncio.gather(*(tier.store.clear(namespace) for tier in self._tiers))
        self._behind.look_again()
        left = [tier.store.name for tier, count in zip(self._tiers, counts, strict=True) if count is None]
        if left:
            said = f"the {' and the '.join(left)} tier could not be cleared; try again"
            raise UnavailableError(said, _RETRY_AFTER_SECONDS)
        return max(count for count in counts if count is not None)

    async def usage(self, namespace: str) -> list[tuple[str, Usage]]:
        """What each tier holds, nearest first."""
        return [(tier.store.name, await tier.store.usage(namespace)) for tier in self._tiers]

    async def close(self) -> None:
        """Writes what is pending, and ends all tiers."""
        self._expiring.cancel()
        await self._behind.close()
        for tier in self._tiers:
            await tier.store.close()

    async def _which(self, namespace: str, keys: Sequence[bytes], time_left: TimeLeft) -> set[bytes]:
        present: set[bytes] = set()
        for tier in self._tiers:
            missing = [key for key in keys if key not in present]
            if not missing:
                break
            present |= await tier.which(namespace, missing, time_left)
        return present

    async def _find(self, namespace: str, keys: Sequence[bytes], time_left: TimeLeft) -> dict[bytes, Block]:
        """Those of the blocks that are there, intact."""
        found: dict[bytes, Block] = {}
        for index, tier in enumerate(self._tiers):
            missing = [key for key in keys if key not in found]
            if not missing or self._turns.is_clearing(namespace):
                break
            # What is read here is written nearer by: in one turn, or it could reappear after a clearing between.
            with self._turns.writing(namespace):
                for block in await tier.find(namespace, missing, time_left):
                    if block is not None and await self._is_good(namespace, block, tier):
                        found[block.key] = block
                        await self._keep_nearer(namespace, block, index)
        return found

    async def _is_good(self, namespace: str, block: Block, tier: Tier) -> bool:
        if block.is_intact:
            return True
        _log.warning("a block of the %s tier is not as its checksum says; dropped", tier.store.name)
        await tier.store.drop(namespace, block.key)
        return False

    async def _keep_nearer(self, namespace: str, block: Block, index: int) -> None:
        for nearer in self._tiers[:index]:
            if not nearer.is_off:
                await nearer.store.put(namespace, block)

    async def _expire(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            for tier in self._tiers:
                await tier.store.expire()
