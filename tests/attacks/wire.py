"""Protobuf's wire format, written by hand: it can say what no message object can.

What is written behind a message changes it: of a single field the last value counts, repeated fields and maps grow,
messages within messages are merged. So every field at every depth is reached by bytes that follow the message.
See https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterable

VARINT, FIXED64, BYTES, GROUP_START, GROUP_END, FIXED32 = range(6)
MAX_VARINT = (1 << 64) - 1


def varint(number: int) -> bytes:
    """A number of at most 70 bits; negative ones as two's complement of 64 bits."""
    number = number if number >= 0 else number + (1 << 64)
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def tag(number: int, kind: int) -> bytes:
    """What begins a field."""
    return varint(number << 3 | kind)


def of_varint(number: int, value: int) -> bytes:
    """A field with an integer, a boolean or an enum's value."""
    return tag(number, VARINT) + varint(value)


def of_bytes(number: int, value: bytes) -> bytes:
    """A field with bytes, a string, a message or packed numbers."""
    return tag(number, BYTES) + varint(len(value)) + value


def of_fixed(number: int, value: bytes) -> bytes:
    """A field with four or eight bytes."""
    return tag(number, FIXED32 if len(value) == 4 else FIXED64) + value


def within(numbers: Iterable[int], field: bytes) -> bytes:
    """A field of a message that lies in others, outermost number first."""
    for number in reversed(tuple(numbers)):
        field = of_bytes(number, field)
    return field
