"""Values at the edge of what a field can hold, and beyond it, by the kind of the field.

All fields of all messages are found in their descriptors: what is added to a proto is attacked from then on.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from attacks.wire import BYTES, GROUP_END, GROUP_START, of_bytes, of_fixed, of_varint, tag, varint, within

_MANY = 1_000, 1_000_000, 5_000_000
_MAP_SIZES = 1_024, 1_025, 50_000
_HUGE_BYTES = 500_000
_MAX_DEPTH = 5
_DEEP = 5_000
_INTEGERS = (
    *(0, 1, 2, 16, 17, 64, 65, 100, 101, 255, 256, 511, 512, 513, 1024, 1025, 65_536, 65_537),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 70) - 1),
    *(-1, -2, -100, -101, -(1 << 31), -(1 << 63)),
)
_FLOATS = (
    *(0x0000_0000, 0x8000_0000, 0x3F80_0000, 0xBF80_0000),  # 0, -0, 1, -1
    *(0x0000_0001, 0x8000_0001, 0x007F_FFFF, 0x0080_0000),  # the least denormals, the largest, the least normal
    *(0x7F7F_FFFF, 0xFF7F_FFFF, 0x7F80_0000, 0xFF80_0000),  # the largest numbers, infinities
    *(0x7FC0_0000, 0xFFC0_0000, 0x7F80_0001, 0x7FFF_FFFF),  # quiet and signalling not-a-numbers
    *(0x42C8_0000, 0x42C8_0001, 0x4000_0000, 0x4000_0001),  # 100 and 2, and what is just above
    *(0x3F7F_FFFF, 0x3F80_0001, 0x3400_0000, 0x2EDB_E6FF),  # about 1, 1e-7, 1e-10
)
_DOUBLES = (0, 1, 1 << 63, 0x7FEF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000, 0x7FF8_0000_0000_0000, 0xFFF8_0000_0000_0001)
_TEXTS = (
    *(b"", b" ", b"\0", b"a\0b", b"\r\n", b"\x1b[2J\x07", b"\x7f", b"-", b".", b"..", b"../../../../etc/passwd"),
    *(b"public", b"default", b"tenant/victim", b"tenant/../victim", b"TENANT/VICTIM", b"victim", b"/", b"//", b"*"),
    *(b"%s%n%x", b"{}{0}{a.b}", b"{{ 7*7 }}{% raw %}", b"'; DROP TABLE blocks;--", b"$(id)", b"<|endoftext|>"),
    *(b"0" * 64, b"f" * 64, b"F" * 64, b"g" * 64, b"0" * 63, b"0" * 65, b"1" * 129, b"a" * 257, b"a" * 300),
    *("\u200f\u202e\ufeff".encode(), "\U0010ffff\U000e0001".encode(), "e\u0301".encode() * 50),
    *("\U0001f468\u200d\U0001f469".encode(), "\u0130\u1e9e\ufb01".encode(), "\ufffd\ufffe\uffff".encode()),
    *("\u2028\u2029\x85".encode(), "\u0660\u0661".encode(), "\u00e9".encode() * 200, "\U00020000".encode() * 64),
    *(b"{", b"[]", b"null", b"1e999", b"[" * 3_000, b'{"a": ' + b"[" * 3_000 + b"]" * 3_000 + b"}", b'{"a": NaN}'),
    *(b'{"content": "\\ud800"}', b'{"content": null, "tool_calls": 5, "role": ["a"]}', b'{"content": {"a": []}}'),
    *(b'[{"type": "function", "function": {"name": "\\udfff", "parameters": {"$ref": "#"}}}]', b'{"": {"": ""}}'),
    *(b'{"messages": 1, "loop": 2, "range": 3, "eos_token": 4, "__class__": 5}', b'{"a": ' + b"9" * 5_000 + b"}"),
    # What follows is no UTF-8: bytes that never occur, overlong, surrogates, past the last code point, cut off.
    *(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"a\x80"),
)
_LONG_TEXTS = (b"a", 10_000), (b" ", 70_000), (b"\xc3\xa9", 5_000), (b"\xf0\x9f\x92\xa3", 5_000), (b"\0", 9_000)
_HUGE_TEXTS = (b"a", 4_000_000), (b"x ", 2_500_000), (b"\xff", 1_000_000), (b"\xf0\x9f\x92\xa3", 1_100_000)
_BYTES = (b"", 1), (b"\0", 1), (b"\xff", 31), (b"\0", 32), (b"\xff", 32), (b"\0", 33), (b"\0", 65_536), (b"\0", 1 << 20)


class _Value(NamedTuple):
    """A field on the wire: `head`, and `unit` as often as `count` says."""

    name: str
    head: bytes
    unit: bytes = b""
    count: int = 0


class Extreme(NamedTuple):
    """What brings a field to an extreme when its bytes follow a message."""

    path: str
    """Names of the field and of those that it lies in, such as "sampling.stop"."""
    numbers: tuple[int, ...]
    """Numbers of the fields that it lies in."""
    value: _Value

    @property
    def data(self) -> bytes:
        """Its bytes."""
        return within(self.numbers, self.value.head + self.value.unit * self.value.count)

    @property
    def is_huge(self) -> bool:
        """Whether reading it takes a good part of a second."""
        return len(self.value.unit) * self.value.count > _HUGE_BYTES

    def __str__(self) -> str:
        return f"{self.path} = {self.value.name}"


@cache
def extremes(message: Descriptor) -> tuple[Extreme, ...]:
    """All extremes of all fields of a message, also those of the messages in it."""
    return tuple(_of_message(message, (), ""))


def _of_message(message: Descriptor, numbers: tuple[int, ...], path: str) -> Iterator[Extreme]:
    for field in message.fields:
        for value in _of_field(field):
            yield Extreme(path + field.name, numbers, value)
        if field.message_type is not None and len(numbers) < _MAX_DEPTH:  # Messages may hold their own kind.
            yield from _of_message(field.message_type, (*numbers, field.number), f"{path}{field.name}.")
    for value in _strange(message):
        yield Extreme(f"{path}?", numbers, value)


def _of_field(field: FieldDescriptor) -> Iterator[_Value]:
    """What one field can be made to hold."""
    number, inner = field.number, field.message_type
    is_bytes = inner is not None or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    values = list(_values(field))
    yield from values
    if inner is not None:
        yield _Value("no message", of_bytes(number, b"\xff\xff\xff"))
        yield _Value("a deep group in it", of_bytes(number, tag(9, GROUP_START) * _DEEP + tag(9, GROUP_END) * _DEEP))
        if inner.GetOptions().map_entry:
            yield from _of_map(number, inner)
    if field.is_repeated:
        for count in _MANY:
            yield _Value(f"{count} times {values[0].name}", b"", values[0].head, count)
            if not is_bytes:
                yield _Value(f"{count} packed ones", tag(number, BYTES) + varint(count), b"\x01", count)
        if not is_bytes:
            yield _Value("none, packed", of_bytes(number, b""))
            yield _Value("packed extremes", of_bytes(number, varint((1 << 32) - 1) * _MANY[0]))
            yield _Value("packed and cut off", of_bytes(number, b"\x80"))
    yield _Value("another kind", of_varint(number, 1) if is_bytes else of_bytes(number, b"abc"))
    yield _Value("longer than the message", tag(number, BYTES) + varint(1 << 40))


def _of_map(number: int, entry: Descriptor) -> Iterator[_Value]:
    keys, values = (list(_values(entry.fields_by_name[name])) for name in ("key", "value"))
    for value in values:
        yield _Value(f"{value.name} without a key", of_bytes(number, value.head))
        yield _Value(f"{value.name} for {keys[1].name}", of_bytes(number, keys[1].head + value.head))
    for key in keys:
        yield _Value(f"key {key.name}", of_bytes(number, key.head + values[1].head))
    has_texts = entry.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
    for count in _MAP_SIZES:
        each = (of_bytes(1, b"%d" % at) if has_texts else of_varint(1, at) for at in range(count))
        made = b"".join(of_bytes(number, key + values[2].head) for key in each)
        yield _Value(f"{count} entries", made)


def _values(field: FieldDescriptor) -> Iterator[_Value]:
    """A field with each of the values that its type has at its edges."""
    number = field.number
    match field.type:
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_FIXED32 | FieldDescriptor.TYPE_SFIXED32:
            for bits in _FLOATS:
                yield _Value(f"bits {bits:08x}", of_fixed(number, bits.to_bytes(4, "little")))
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FIXED64 | FieldDescriptor.TYPE_SFIXED64:
            for bits in _DOUBLES:
                yield _Value(f"bits {bits:016x}", of_fixed(number, bits.to_bytes(8, "little")))
        case FieldDescriptor.TYPE_STRING:
            for text in _TEXTS:
                yield _Value(repr(text), of_bytes(number, text))
            for text, count in (*_LONG_TEXTS, *_HUGE_TEXTS):
                yield _Value(f"{count} times {text!r}", tag(number, BYTES) + varint(len(text) * count), text, count)
        case FieldDescriptor.TYPE_BYTES:
            for data, count in _BYTES:
                yield _Value(f"{count} times {data!r}", tag(number, BYTES) + varint(len(data) * count), data, count)
        case FieldDescriptor.TYPE_MESSAGE | FieldDescriptor.TYPE_GROUP:
            yield _Value("empty", of_bytes(number, b""))
        case _:
            for value in _INTEGERS:
                yield _Value(str(value), of_varint(number, value))


def _strange(message: Descriptor) -> Iterator[_Value]:
    """Fields that the message does not have, and what is no field."""
    unused = max((field.number for field in message.fields), default=0) + 1_000
    group, end = tag(unused, GROUP_START), tag(unused, GROUP_END)
    yield _Value("an unknown number", of_varint(unused, 7))
    yield _Value("unknown bytes", of_bytes((1 << 29) - 1, b"x" * 1_000))
    yield _Value("field 0", of_varint(0, 1))
    yield _Value("an unknown group", group + of_varint(1, 1) + end)
    yield _Value("deep unknown groups", group * _DEEP + end * _DEEP)
    yield _Value("a group without an end", group)
    yield _Value("an end without a group", end)
    yield _Value("a kind that is none", bytes([15 << 3 | 7]))
    yield _Value("a varint of eleven bytes", b"\x08" + b"\xff" * 11)
