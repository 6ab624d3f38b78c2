"""Who holds how much of a room that all namespaces share, and who gives way when it is full.

The rule is "longest queue drop" (Suter et al. 1999, "Buffer management schemes for supporting TCP in gigabit routers
with per-flow queueing"): whoever would hold most gives way. What comes of it is max-min fair: nobody who holds no more
than an equal share of a full room loses anything to others, and whoever asks for more displaces what is its own.
"""

import heapq
from typing import NamedTuple

_MIN_COMPACTED = 64


class Held(NamedTuple):
    """What a namespace holds."""

    num_blocks: int = 0
    num_bytes: int = 0


class Shares:
    """Accounts of one room, in bytes. A namespace that holds nothing takes no memory."""

    def __init__(self, capacity_bytes: int, quota_bytes: int) -> None:
        self.num_bytes = 0
        self._capacity_bytes = capacity_bytes
        self._quota_bytes = min(quota_bytes, capacity_bytes)
        self._held: dict[str, Held] = {}
        self._largest: list[tuple[int, str]] = []
        """A heap of (-bytes, namespace). An entry that is no longer so is skipped when it comes up."""

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, namespace: str) -> Held:
        return self._held.get(namespace, Held())

    def add(self, namespace: str, num_bytes: int) -> None:
        """A block of a namespace came."""
        self._change(namespace, 1, num_bytes)

    def remove(self, namespace: str, num_bytes: int) -> None:
        """A block of a namespace went."""
        self._change(namespace, -1, -num_bytes)

    def replace(self, held: dict[str, Held]) -> None:
        """This is held, and nothing else."""
        self._held = held
        self.num_bytes = sum(each.num_bytes for each in held.values())
        self._compact()

    def fits(self, num_bytes: int) -> bool:
        """Whether a block could be kept at all."""
        return num_bytes <= self._quota_bytes

    def gives_way(self, namespace: str, num_bytes: int) -> str | None:
        """The namespace that has to let a block go before another can be added; None when there is room.

        It is the one that asks, unless another holds at least as much as that one would.
        """
        wanted = self[namespace].num_bytes + num_bytes
        if wanted > self._quota_bytes:
            return namespace
        if self.num_bytes + num_bytes <= self._capacity_bytes:
            return None
        while self._largest:
            size, largest = -self._largest[0][0], self._largest[0][1]
            if self[largest].num_bytes == size:
                return largest if size >= wanted else namespace
            heapq.heappop(self._largest)
        return namespace

    def _change(self, namespace: str, num_blocks: int, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        before = self[namespace]
        held = Held(before.num_blocks + num_blocks, before.num_bytes + num_bytes)
        if not held.num_blocks:
            del self._held[namespace]
            return
        self._held[namespace] = held
        heapq.heappush(self._largest, (-held.num_bytes, namespace))
        if len(self._largest) > _MIN_COMPACTED + 2 * len(self._held):
            self._compact()

    def _compact(self) -> None:
        self._largest = [(-held.num_bytes, namespace) for namespace, held in self._held.items()]
        heapq.heapify(self._largest)
