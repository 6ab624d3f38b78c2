"""A computed KV block on its way or at rest: opaque bytes under a key, with a checksum over both."""

from typing import NamedTuple

from xxhash import xxh3_64

KEY_BYTES = 32
Data = bytes | bytearray | memoryview


class Block(NamedTuple):
    """Bytes that an engine computed for the tokens that its key stands for."""

    key: bytes
    data: Data
    checksum: int

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return memoryview(self.data).nbytes

    @property
    def is_intact(self) -> bool:
        """Whether key and data are those that the checksum was made of."""
        return checksum(self.key, self.data) == self.checksum


def checksum(key: bytes, data: Data) -> int:
    """XXH3 (64 bits) of the key, then the data."""
    hasher = xxh3_64(key)
    hasher.update(data)
    return hasher.intdigest()


def sealed(key: bytes, data: Data) -> Block:
    """A block with its checksum."""
    return Block(key, data, checksum(key, data))
