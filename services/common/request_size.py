"""How large requests may be: what is larger is refused before a message is made of it.

A message of many small parts takes a hundred times its size in memory, and the event loop makes it while others wait.
One long text, one file's piece or one packed list of token ids is made in a few milliseconds, however long it is. So of
every request to every service what lies beside such fields is counted on the wire, and bounded.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor

from paceline.errors import InvalidArgumentError

SMALL_BYTES = 1 << 16
"""More than a request holds that is no text, no file and no list of tokens."""
_KEYS_BYTES = 160 << 10
"""Of a request that names each block of a prompt by its key: two bytes a block lie beside the keys themselves."""
_LARGE = {
    "paceline.v1.GenerateRequest": ("prompt", "token_ids", "resume"),
    "paceline.v1.TokenIds": ("ids",),
    "paceline.v1.ChatRequest": ("messages", "tools", "documents", "template_arguments", "resume"),
    "paceline.v1.ChatMessage": ("content", "parts", "fields"),
    "paceline.v1.ContentPart": ("text",),
    "paceline.v1.Resume": ("choices",),
    "paceline.v1.ReceivedChoice": ("token_ids",),
    "paceline.v1.TokenizeRequest": ("text",),
    "paceline.v1.DetokenizeRequest": ("token_ids",),
    "paceline.v1.UploadAdapterRequest": ("data",),
    "paceline.v1.CreateBatchRequest": ("data",),
    "paceline.internal.v1.StoreAdapterRequest": ("header", "data"),
    "paceline.internal.v1.StoreAdapterHeader": ("base",),
    "paceline.internal.v1.AdapterBase": ("modules",),
    "paceline.internal.v1.AdapterModule": ("name",),
    "paceline.internal.v1.MatchBlocksRequest": ("keys",),
    "paceline.internal.v1.FetchBlocksRequest": ("keys",),
    "paceline.internal.v1.StoreBlocksRequest": ("piece",),
    "paceline.internal.v1.BlockPiece": ("data",),
    "paceline.internal.v1.VerifyRequest": ("open",),
    "paceline.internal.v1.ProposeRequest": ("open",),
    "paceline.internal.v1.Open": ("token_ids", "bad_words"),
    "paceline.internal.v1.TokenSequence": ("token_ids",),
}
"""Fields that may be of any size that the server takes; those that are messages are looked into."""
_MOST = {
    "paceline.internal.v1.MatchBlocksRequest": _KEYS_BYTES,
    "paceline.internal.v1.FetchBlocksRequest": _KEYS_BYTES,
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES = 10
_CONTINUES = 0x80
_CONTINUED = bytes(range(_CONTINUES, 0x100))
"""Bytes of a number that more of it follow."""
_MAX_NUMBERS = 1 << 21
"""Most token ids of a request, contexts of two million tokens. More of them take the event loop a tenth of a second."""


class _Large(NamedTuple):
    """A field that may be large."""

    is_numbers: bool
    within: "Mapping[int, _Large]"
    """By their numbers, those that may be large in it; empty where it is no message."""


def check_size(message: bytes, descriptor: Descriptor) -> None:
    """Raises InvalidArgumentError where an encoded request is larger than a request of its type may be."""
    if len(message) <= SMALL_BYTES:
        return
    most = _MOST.get(descriptor.full_name, SMALL_BYTES)
    fields = _large_fields(descriptor)
    if num_beside(message, fields, most) > most:
        size = "the bytes beside its texts and data" if fields else f"{len(message)} bytes"
        raise InvalidArgumentError("request", f"{size} exceed the limit of {most} bytes")


def num_beside(message: bytes, fields: Mapping[int, _Large], most: int) -> int:
    """Bytes of an encoded message that are not of these fields, or at least more than `most`.

    Raises InvalidArgumentError for more numbers in them than anybody needs. What cannot be read further is for the
    message's class to refuse. See https://protobuf.dev/programming-guides/encoding/.
    """
    beside = num_numbers = 0
    spans = [(0, len(message), fields)]
    try:
        while spans and beside <= most:
            at, end, large = spans.pop()
            while at < end and beside <= most:
                start = at
                # Numbers of one byte, the most frequent, are read here: a call takes as long as all the rest.
                key, at = (message[at], at + 1) if message[at] < _CONTINUES else _varint(message, at)
                number, kind = key >> 3, key & 7
                if kind == _BYTES:
                    size, at = (message[at], at + 1) if message[at] < _CONTINUES else _varint(message, at)
                    beside += at - start
                    field = large.get(number)
                    if field is None:
                        beside += size
                    elif field.within and size:
                        spans.append((at, min(at + size, end), field.within))
                    elif field.is_numbers:
                        num_numbers += len(message[at : at + size].translate(None, _CONTINUED))
                    at += size
                elif kind == _VARINT:
                    _, at = _varint(message, at)
                    beside += at - start
                else:
                    at += _FIXED_SIZES.get(kind, most)  # Groups are in none of our messages.
                    beside += at - start
    except IndexError:
        pass
    if num_numbers > _MAX_NUMBERS:
        raise InvalidArgumentError("request", f"{num_numbers} token ids exceed the limit of {_MAX_NUMBERS}")
    return beside


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends. Raises IndexError when it does not end where numbers must."""
    number = 0
    for length in range(_VARINT_BYTES):
        byte = message[at + length]
        number |= (byte & 0x7F) << 7 * length
        if byte < _CONTINUES:
            return number, at + length + 1
    raise IndexError


@cache
def _large_fields(descriptor: Descriptor) -> Mapping[int, _Large]:
    fields = [descriptor.fields_by_name[name] for name in _LARGE.get(descriptor.full_name, ())]
    return {
        field.number: _Large(
            field.type not in (field.TYPE_BYTES, field.TYPE_STRING, field.TYPE_MESSAGE),
            _large_fields(field.message_type) if field.message_type else {},
        )
        for field in fields
    }
