"""Blocks as pieces of bounded size, and back."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext

from paceline.errors import InvalidArgumentError
from services.prefix_cache.block import KEY_BYTES, Block
from services.prefix_cache.encoding import Piece

PIECE_BYTES = 1 << 20
"""Most bytes of one piece: large enough for messages to cost little, small enough not to hold up others."""


def to_pieces(block: Block) -> Iterator[Piece]:
    """The pieces of a block, in order. Key, size and checksum stand on the first alone."""
    view = memoryview(block.data)
    yield Piece(block.key, view.nbytes, block.checksum, view[:PIECE_BYTES])
    for start in range(PIECE_BYTES, view.nbytes, PIECE_BYTES):
        yield Piece(b"", 0, 0, view[start : start + PIECE_BYTES])


class Assembly:
    """Puts blocks together from pieces, holding one at a time. A block of one piece is that piece, not copied."""

    def __init__(self, max_block_bytes: int) -> None:
        self._max_block_bytes = max_block_bytes
        self._first: Piece | None = None
        self._data = bytearray()

    @property
    def num_awaited(self) -> int:
        """Size of the block that has begun and is not whole; 0 between blocks."""
        return 0 if self._first is None else self._first.block_bytes

    def add(self, piece: Piece) -> Block | None:
        """Takes the next piece; the block that it completes, if it does. Raises InvalidArgumentError."""
        if self._first is None:
            if len(piece.key) != KEY_BYTES:
                raise InvalidArgumentError("piece.key", f"must be {KEY_BYTES} bytes, got {len(piece.key)}")
            if not 0 < piece.block_bytes <= self._max_block_bytes:
                raise InvalidArgumentError(
                    "piece.block_bytes", f"must be 1 to {self._max_block_bytes}, got {piece.block_bytes}"
                )
            if piece.data.nbytes == piece.block_bytes:
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


def _unbounded(_num_bytes: int) -> AbstractContextManager[None]:
    return nullcontext()


async def assembled(
    pieces: AsyncIterable[Piece],
    max_block_bytes: int,
    begun: Callable[[int], AbstractContextManager[None]] = _unbounded,
) -> AsyncGenerator[Block, None]:
    """The blocks of a stream of pieces. A block that the stream breaks off is left out.

    `begun(num_bytes)` is entered while the pieces of a block are waited for; what it raises ends the stream.
    """
    assembly = Assembly(max_block_bytes)
    with ExitStack() as on_its_way:
        async for piece in pieces:
            is_first = not assembly.num_awaited
            block = assembly.add(piece)
            if block is not None:
                on_its_way.close()
                yield block
            elif is_first:
                on_its_way.enter_context(begun(assembly.num_awaited))
