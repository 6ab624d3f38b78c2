"""What an engine takes in is what an engine wrote: blocks are sealed before they leave and checked when they come back.

A checksum finds accidents; it is as easily made for wrong bytes as for right ones. The seal is a keyed BLAKE3 (its
specification, section 2.6) of the block's key and contents, with a key that the engines of a model share and the cache
never sees: neither a cache nor whoever writes to its stores can make one.
"""

from hmac import compare_digest

from blake3 import blake3

from services.engine.kv_cache import Buffer

SEAL_BYTES = 32


class Seal:
    """Seals the blocks of engines that share a key of 32 bytes; without a key nothing is sealed."""

    def __init__(self, key: bytes | None) -> None:
        self._key = key
        self.num_bytes = SEAL_BYTES if key is not None else 0
        """What it adds to a block."""

    def close(self, key: bytes, content: Buffer) -> Buffer:
        """A block's contents with their seal behind them."""
        if self._key is None:
            return content
        return b"".join((content, _mac(self._key, key, content)))

    def open(self, key: bytes, sealed: Buffer) -> Buffer | None:
        """The contents of a sealed block; None when no engine with this key sealed them for this block."""
        if self._key is None:
            return sealed
        content = memoryview(sealed)[:-SEAL_BYTES]
        mac = memoryview(sealed)[-SEAL_BYTES:]
        return content if compare_digest(_mac(self._key, key, content), mac) else None


def _mac(secret: bytes, key: bytes, content: Buffer) -> bytes:
    return blake3(key, key=secret).update(content).digest()
