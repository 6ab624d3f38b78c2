"""What every tier does: keep blocks by namespace and key, within a quota of bytes for each namespace."""

from dataclasses import dataclass
from typing import Protocol

from services.prefix_cache.block import Block


@dataclass(slots=True)
class Usage:
    """What a tier holds of a namespace, and what became of it since the process started."""

    num_blocks: int = 0
    num_bytes: int = 0
    num_hits: int = 0
    num_evictions: int = 0
    num_corrupt: int = 0


class Store(Protocol):
    """One tier. Whatever goes wrong inside is a miss, or a block not kept; it never raises."""

    name: str

    async def get(self, namespace: str, key: bytes) -> Block | None:
        """The block as it was stored, its checksum not looked at; None when it is not there."""

    async def has(self, namespace: str, key: bytes) -> bool:
        """Whether the block is there."""

    async def put(self, namespace: str, block: Block) -> bool:
        """Keeps a block, letting others of its namespace go to make room. False when it cannot be kept."""

    async def drop(self, namespace: str, key: bytes) -> None:
        """Lets a block go that was found corrupt."""

    async def clear(self, namespace: str) -> int:
        """Lets all blocks of a namespace go; returns how many."""

    async def usage(self, namespace: str) -> Usage:
        """What it holds of a namespace."""

    async def close(self) -> None:
        """Ends it; what lasts is on stable storage then."""
