"""What every tier does: keep blocks by namespace and key, within a quota of bytes for each namespace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cachetools import LRUCache

from services.prefix_cache.block import Block

_MAX_COUNTED = 4096


@dataclass(slots=True)
class Usage:
    """What a tier holds of a namespace, and what became of it since the process started."""

    num_blocks: int = 0
    num_bytes: int = 0
    num_hits: int = 0
    num_evictions: int = 0
    num_corrupt: int = 0


class Usages(LRUCache[str, Usage]):
    """By namespace: of the few thousand that were busy last, so that nothing grows with the number of tenants."""

    def __init__(self) -> None:
        super().__init__(_MAX_COUNTED)

    def __missing__(self, namespace: str) -> Usage:
        usage = self[namespace] = Usage()
        return usage


class Store(Protocol):
    """One tier. Whatever goes wrong inside is a miss, or a block not kept; it never raises."""

    name: str

    async def find(self, namespace: str, keys: Sequence[bytes]) -> list[Block | None]:
        """Each of the blocks as it was stored, its checksum not looked at; None for one that is not there."""

    async def which(self, namespace: str, keys: Sequence[bytes]) -> set[bytes]:
        """Those of the keys whose blocks are there."""

    async def put(self, namespace: str, block: Block) -> bool:
        """Keeps a block, letting others go to make room. False when it cannot be kept."""

    async def drop(self, namespace: str, key: bytes) -> None:
        """Lets a block go that was found corrupt."""

    async def clear(self, namespace: str) -> int | None:
        """Lets all blocks of a namespace go; returns how many, or None when some may be left."""

    async def expire(self) -> None:
        """Lets blocks go that nobody has used for long."""

    async def usage(self, namespace: str) -> Usage:
        """What it holds of a namespace."""

    async def close(self) -> None:
        """Ends it; what lasts is on stable storage then."""

    async def get(self, namespace: str, key: bytes) -> Block | None:
        """One block; see `find`."""
        (found,) = await self.find(namespace, [key])
        return found

    async def has(self, namespace: str, key: bytes) -> bool:
        """Whether one block is there; see `which`."""
        return bool(await self.which(namespace, [key]))
