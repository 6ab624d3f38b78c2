"""Where an adapter store keeps things: bytes under names, visible whole or not at all."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

CHUNK_BYTES = 1 << 20
"""Most bytes that are read at once."""


class Tagged(NamedTuple):
    """What an object holds, and a tag that another content would not have."""

    data: bytes
    tag: str


class Opened(NamedTuple):
    """An object that is being read."""

    num_bytes: int
    chunks: AsyncIterator[bytes]
    """Pieces of bounded size. Goes on even if the object is replaced or deleted meanwhile."""


class Listed(NamedTuple):
    """An object of a listing."""

    name: str
    num_bytes: int
    modified: float
    """Seconds since the epoch."""


class Objects(Protocol):
    """Keeps objects. Names are relative paths. Raises UnavailableError when it cannot be reached."""

    async def put(self, name: str, source: Path | bytes) -> None:
        """Keeps a local file, which stays, or bytes, in place of what was there."""

    async def swap(self, name: str, data: bytes, tag: str | None) -> bool:
        """Keeps bytes if the object is as it was when it had this tag; None: if there is none. Whether it did."""

    async def get(self, name: str) -> Tagged | None:
        """A small object, or None."""

    def open(self, name: str) -> AbstractAsyncContextManager[Opened | None]:
        """An object to be read piece by piece, or None."""

    async def stat(self, name: str) -> Listed | None:
        """Whether an object is there, how large it is and since when."""

    async def delete(self, name: str) -> None:
        """Deletes an object, if it is there."""

    async def list(self, prefix: str) -> list[Listed]:
        """All objects under a prefix, which ends with a slash."""
