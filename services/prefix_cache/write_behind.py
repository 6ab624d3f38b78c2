"""Blocks on their way to further tiers, behind everybody's back: the namespaces in turns, and not all when they lag.

Whose blocks are left out then says the same rule as for a full tier: see shares.py.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence

from services.prefix_cache.block import Block
from services.prefix_cache.shares import Shares
from services.prefix_cache.store import Store
from services.prefix_cache.turns import Turns


class WriteBehind:
    """Writes until it is closed."""

    def __init__(self, stores: Sequence[Store], turns: Turns, max_bytes: int) -> None:
        self.num_dropped = 0
        """Blocks that were left out."""
        self._stores = stores
        self._turns = turns
        self._shares = Shares(max_bytes, max_bytes)
        """What is on its way, what is just being written included."""
        self._waiting: OrderedDict[str, deque[Block]] = OrderedDict()
        self._changed = asyncio.Event()
        self._all_written = asyncio.Event()
        self._all_written.set()
        self._task = asyncio.create_task(self._write())

    def offer(self, namespace: str, block: Block) -> None:
        """A block to be written when its turn comes, unless there is no room for it."""
        size = block.num_bytes
        if not self._stores:
            return
        while (giving := self._shares.gives_way(namespace, size)) is not None:
            if giving == namespace or giving not in self._waiting:
                self.num_dropped += 1
                return
            self._leave_out(giving)
        self._shares.add(namespace, size)
        self._waiting.setdefault(namespace, deque()).append(block)
        self._all_written.clear()
        self._changed.set()

    def forget(self, namespace: str) -> None:
        """What waits of a namespace need not be written any more."""
        for block in self._waiting.pop(namespace, ()):
            self._shares.remove(namespace, block.num_bytes)
        self.look_again()

    def look_again(self) -> None:
        """A namespace may be written to that could not be."""
        self._changed.set()

    async def close(self) -> None:
        """Ends it when all is written."""
        await self._all_written.wait()
        self._task.cancel()

    def _leave_out(self, namespace: str) -> None:
        block = self._waiting[namespace].pop()
        self._shares.remove(namespace, block.num_bytes)
        self.num_dropped += 1
        if not self._waiting[namespace]:
            del self._waiting[namespace]

    async def _write(self) -> None:
        while True:
            namespace = next((name for name in self._waiting if not self._turns.is_clearing(name)), None)
            if namespace is None:
                if not self._waiting:
                    self._all_written.set()
                self._changed.clear()
                await self._changed.wait()
                continue
            block = self._waiting[namespace].popleft()
            if self._waiting[namespace]:
                self._waiting.move_to_end(namespace)
            else:
                del self._waiting[namespace]
            try:
                with self._turns.writing(namespace):
                    await asyncio.gather(*(store.put(namespace, block) for store in self._stores))
            finally:
                self._shares.remove(namespace, block.num_bytes)
