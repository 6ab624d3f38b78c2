"""Messages with pieces of blocks, written and read without copying the data.

The encoding of protocol buffers (its documentation, "Encoding"), for the few fields that FetchBlocksResponse,
StoreBlocksRequest and BlockPiece have: a message object copies the data when it is made, written, read and asked for.
Whoever uses the generated classes writes and reads the same bytes.
"""

from collections.abc import Iterator
from typing import NamedTuple

from paceline.errors import InvalidArgumentError
from paceline.internal.v1 import prefix_cache_pb2 as pb

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
_MOST_BESIDE_DATA = 4096
"""Bytes that a message may have beside the data: who keeps the data keeps the whole message."""
_Value = int | memoryview


class Piece(NamedTuple):
    """A BlockPiece; `data` is a part of the message that it came in."""

    key: bytes
    block_bytes: int
    checksum: int
    data: memoryview


class PieceMessage(NamedTuple):
    """A FetchBlocksResponse, whose namespace is empty, or a StoreBlocksRequest."""

    namespace: str
    piece: Piece


def write_fetch_response(piece: Piece) -> bytes:
    """An encoded FetchBlocksResponse."""
    return b"".join(_framed(pb.FetchBlocksResponse.PIECE_FIELD_NUMBER, piece))


def write_store_request(namespace: str, piece: Piece) -> bytes:
    """An encoded StoreBlocksRequest."""
    named = pb.StoreBlocksRequest(namespace=namespace).SerializeToString()
    return b"".join((named, *_framed(pb.StoreBlocksRequest.PIECE_FIELD_NUMBER, piece)))


def read_fetch_response(message: bytes) -> PieceMessage:
    """What an encoded FetchBlocksResponse says. Raises InvalidArgumentError."""
    fields = dict(_fields(memoryview(message)))
    return PieceMessage("", _piece(message, fields.get(pb.FetchBlocksResponse.PIECE_FIELD_NUMBER)))


def read_store_request(message: bytes) -> PieceMessage:
    """What an encoded StoreBlocksRequest says. Raises InvalidArgumentError."""
    fields = dict(_fields(memoryview(message)))
    piece = _piece(message, fields.get(pb.StoreBlocksRequest.PIECE_FIELD_NUMBER))
    namespace = _bytes(fields.get(pb.StoreBlocksRequest.NAMESPACE_FIELD_NUMBER))
    try:
        return PieceMessage(str(namespace, "utf-8"), piece)
    except UnicodeDecodeError as error:
        raise InvalidArgumentError("namespace", "must be UTF-8") from error


def _framed(field: int, piece: Piece) -> tuple[bytes, bytes, memoryview]:
    head = pb.BlockPiece(key=piece.key, block_bytes=piece.block_bytes, checksum=piece.checksum).SerializeToString()
    head += _begin(pb.BlockPiece.DATA_FIELD_NUMBER, piece.data.nbytes)
    return _begin(field, len(head) + piece.data.nbytes), head, piece.data


def _begin(field: int, num_bytes: int) -> bytes:
    """Tag and length of a field with so many bytes."""
    encoded = bytearray([field << 3 | _BYTES])
    while num_bytes >= 0x80:
        encoded.append(num_bytes & 0x7F | 0x80)
        num_bytes >>= 7
    encoded.append(num_bytes)
    return bytes(encoded)


def _piece(message: bytes, value: _Value | None) -> Piece:
    fields = dict(_fields(_bytes(value)))
    block_bytes = fields.get(pb.BlockPiece.BLOCK_BYTES_FIELD_NUMBER, 0)
    checksum = fields.get(pb.BlockPiece.CHECKSUM_FIELD_NUMBER, 0)
    if not isinstance(block_bytes, int) or not isinstance(checksum, int):
        raise _malformed()
    key = bytes(_bytes(fields.get(pb.BlockPiece.KEY_FIELD_NUMBER)))
    data = _bytes(fields.get(pb.BlockPiece.DATA_FIELD_NUMBER))
    if len(message) - data.nbytes > _MOST_BESIDE_DATA:
        raise InvalidArgumentError("piece", f"the message has more than {_MOST_BESIDE_DATA} bytes beside the data")
    return Piece(key, block_bytes, checksum, data)


def _bytes(value: _Value | None) -> memoryview:
    if isinstance(value, int):
        raise _malformed()
    return memoryview(b"") if value is None else value


def _fields(view: memoryview) -> Iterator[tuple[int, _Value]]:
    """Number and value of each field of a message. The last one of a number counts, as the specification has it."""
    at, end = 0, view.nbytes
    while at < end:
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _varint(view, at)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            size, at = _varint(view, at)
        elif kind in _FIXED_SIZES:
            size = _FIXED_SIZES[kind]
        else:
            raise _malformed()
        if size > end - at:
            raise _malformed()
        value = view[at : at + size]
        yield tag >> 3, value if kind == _BYTES else int.from_bytes(value, "little")
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A variable-length integer, and where what follows it begins."""
    number = 0
    for index, byte in enumerate(view[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number & (1 << 64) - 1, at + index + 1
    raise _malformed()


def _malformed() -> InvalidArgumentError:
    return InvalidArgumentError("piece", "the message is malformed")
