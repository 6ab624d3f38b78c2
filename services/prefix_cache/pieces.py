"""Blocks as pieces of bounded size, and back."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator

from paceline.v1 import prefix_cache_pb2
from services.common.errors import InvalidArgumentError
from services.prefix_cache.block import KEY_BYTES, Block

PIECE_BYTES = 1 << 20
"""Most bytes of one piece: large enough for messages to cost little, small enough not to hold up others."""


def to_pieces(block: Block) -> Iterator[prefix_cache_pb2.BlockPiece]:
    """The pieces of a block, in order."""
    view = memoryview(block.data)
    for start in range(0, max(1, view.nbytes), PIECE_BYTES):
        piece = prefix_cache_pb2.BlockPiece(data=bytes(view[start : start + PIECE_BYTES]))
        if start == 0:
            piece.key, piece.block_bytes, piece.checksum = block.key, view.nbytes, block.checksum
        yield piece


class Assembly:
    """Puts blocks together from pieces, holding one at a time."""

    def __init__(self, max_block_bytes: int) -> None:
        self._max_block_bytes = max_block_bytes
        self._first: prefix_cache_pb2.BlockPiece | None = None
        self._data = bytearray()

    def add(self, piece: prefix_cache_pb2.BlockPiece) -> Block | None:
        """Takes the next piece; the block that it completes, if it does. Raises InvalidArgumentError."""
        if self._first is None:
            if len(piece.key) != KEY_BYTES:
                raise InvalidArgumentError("piece.key", f"must be {KEY_BYTES} bytes, got {len(piece.key)}")
            if not 0 < piece.block_bytes <= self._max_block_bytes:
                raise InvalidArgumentError(
                    "piece.block_bytes", f"must be 1 to {self._max_block_bytes}, got {piece.block_bytes}"
                )
            if len(piece.data) == piece.block_bytes:
                return Block(piece.key, piece.data, piece.checksum)
            self._first = piece
        elif piece.key:
            raise InvalidArgumentError("piece.key", "another block began before this one was complete")
        self._data += piece.data
        first = self._first
        if len(self._data) > first.block_bytes or not piece.data:
            raise InvalidArgumentError("piece.data", f"the block was announced with {first.block_bytes} bytes")
        if len(self._data) < first.block_bytes:
            return None
        block = Block(first.key, self._data, first.checksum)
        self._first, self._data = None, bytearray()
        return block


async def assembled(
    messages: AsyncIterable[object], piece_of: Callable[..., prefix_cache_pb2.BlockPiece], max_block_bytes: int
) -> AsyncIterator[Block]:
    """The blocks of a stream of messages. A block that the stream breaks off is left out."""
    assembly = Assembly(max_block_bytes)
    async for message in messages:
        block = assembly.add(piece_of(message))
        if block is not None:
            yield block
