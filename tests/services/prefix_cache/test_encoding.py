"""What is written and read by hand is what the generated classes write and read; nonsense is refused, not believed."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import InvalidArgumentError
from paceline.internal.v1 import prefix_cache_pb2 as pb
from services.prefix_cache.block import Block, sealed
from services.prefix_cache.encoding import (
    Piece,
    read_fetch_response,
    read_store_request,
    write_fetch_response,
    write_store_request,
)
from services.prefix_cache.pieces import PIECE_BYTES, assembled, to_pieces

U64 = st.integers(0, 2**64 - 1)
PIECES = st.builds(Piece, st.binary(max_size=40), U64, U64, st.binary(max_size=300).map(memoryview))


def as_message(piece: Piece) -> pb.BlockPiece:
    return pb.BlockPiece(key=piece.key, block_bytes=piece.block_bytes, checksum=piece.checksum, data=bytes(piece.data))


@given(PIECES, st.text(max_size=20))
def test_written_and_read_as_the_generated_classes_do(piece: Piece, namespace: str) -> None:
    fetched = pb.FetchBlocksResponse(piece=as_message(piece))
    stored = pb.StoreBlocksRequest(namespace=namespace, piece=as_message(piece))
    assert pb.FetchBlocksResponse.FromString(write_fetch_response(piece)) == fetched
    assert pb.StoreBlocksRequest.FromString(write_store_request(namespace, piece)) == stored
    assert read_fetch_response(fetched.SerializeToString()).piece == piece
    assert read_store_request(stored.SerializeToString()) == (namespace, piece)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    for read in (read_fetch_response, read_store_request):
        try:
            read(message)
        except InvalidArgumentError:
            continue


@pytest.mark.parametrize("cut", [1, 5, 30, 70])
def test_a_message_that_breaks_off_is_refused(cut: int) -> None:
    message = write_fetch_response(next(to_pieces(sealed(b"k" * 32, b"d" * 64))))
    with pytest.raises(InvalidArgumentError):
        read_fetch_response(message[:-cut])


def test_a_message_that_is_mostly_something_else_is_refused() -> None:
    """Whoever keeps the data would keep all of it, past every bound."""
    unknown = pb.StoreBlocksRequest(namespace="x" * 10_000).SerializeToString()
    message = write_store_request("a", next(to_pieces(sealed(b"k" * 32, b"d"))))
    assert read_store_request(message).piece.data == b"d"
    with pytest.raises(InvalidArgumentError, match="beside the data"):
        read_store_request(unknown + message)


async def collect(pieces: list[Piece], most: int = 1 << 30) -> list[Block]:
    async def stream() -> AsyncIterator[Piece]:
        for piece in pieces:
            yield piece

    return [block async for block in assembled(stream(), most)]


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
async def test_a_block_is_put_together_from_its_pieces(size: int) -> None:
    blocks = [sealed(bytes([number]) * 32, bytes([number]) * size) for number in range(3)]
    pieces = [piece for block in blocks for piece in to_pieces(block)]
    assert max(piece.data.nbytes for piece in pieces) <= PIECE_BYTES
    found = await collect(pieces)
    assert [(block.key, bytes(block.data)) for block in found] == [(b.key, bytes(b.data)) for b in blocks]
    assert all(block.is_intact for block in found)
    assert len(await collect(pieces[:-1])) == 2


@pytest.mark.parametrize(
    "pieces",
    [
        [Piece(b"short", 4, 0, memoryview(b"data"))],
        [Piece(b"k" * 32, 0, 0, memoryview(b""))],
        [Piece(b"k" * 32, 2000, 0, memoryview(b"data"))],
        [Piece(b"k" * 32, 8, 0, memoryview(b"data")), Piece(b"l" * 32, 4, 0, memoryview(b"data"))],
        [Piece(b"k" * 32, 8, 0, memoryview(b"data")), Piece(b"", 0, 0, memoryview(b""))],
        [Piece(b"k" * 32, 8, 0, memoryview(b"data")), Piece(b"", 0, 0, memoryview(b"longer"))],
    ],
    ids=["key", "no size", "too large", "interrupted", "empty", "too long"],
)
async def test_pieces_that_do_not_fit_are_refused(pieces: list[Piece]) -> None:
    with pytest.raises(InvalidArgumentError):
        await collect(pieces, 1000)
