"""How large the requests of a service may be: what is larger is refused before a message is made of it."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import grpc

from paceline.errors import InvalidArgumentError

SMALL_BYTES = 1 << 16
"""More than a request holds that is no text and no file."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
Decode = Callable[[bytes], Any]


def bounded(
    server: grpc.aio.Server, max_bytes: int = SMALL_BYTES, data: Mapping[str, int] | None = None
) -> grpc.aio.Server:
    """What stands for a server while a service is added to it, whose requests have at most so many bytes.

    A message of many small parts takes a hundred times its size in memory, and the event loop makes it. `data` names
    methods whose requests may hold more in one field of bytes, which is taken in one piece, and that field's number.
    """
    return cast("grpc.aio.Server", _Server(server, max_bytes, data or {}))


class _Server:
    def __init__(self, server: grpc.aio.Server, max_bytes: int, data: Mapping[str, int]) -> None:
        self._server = server
        self._max_bytes = max_bytes
        self._data = data

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        bound = [_Bounded(handler, self._max_bytes, self._data) for handler in handlers]
        self._server.add_generic_rpc_handlers(bound)

    def add_registered_method_handlers(self, *_: object) -> None:
        """Generated code adds every method in both ways; one is enough."""


class _Bounded(grpc.GenericRpcHandler):
    def __init__(self, inner: grpc.GenericRpcHandler, max_bytes: int, data: Mapping[str, int]) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._data = data

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler: Any = self._inner.service(handler_call_details)
        if handler is None:
            return None
        field = self._data.get(handler_call_details.method.rpartition("/")[2])
        return handler._replace(
            request_deserializer=partial(_decode, handler.request_deserializer, self._max_bytes, field)
        )


def _decode(deserialize: Decode, max_bytes: int, field: int | None, message: bytes) -> Any:
    num_bytes = len(message)
    if num_bytes > max_bytes and field is not None:
        num_bytes = _num_beside(message, field, max_bytes)
    if num_bytes > max_bytes:
        size = f"{len(message)} bytes" if field is None else "the bytes beside its data"
        raise InvalidArgumentError("request", f"{size} exceed the limit of {max_bytes} bytes")
    return deserialize(message)


def _num_beside(message: bytes, field: int, most: int) -> int:
    """Bytes of an encoded message that are not of a field of bytes, or at least more than `most`.

    What cannot be read further is for the message's class to refuse. See https://protobuf.dev/programming-guides/encoding/.
    """
    at = beside = 0
    try:
        while at < len(message) and beside <= most:
            start = at
            key, at = _varint(message, at)
            number, kind = key >> 3, key & 7
            if kind == _BYTES:
                size, at = _varint(message, at)
                beside += at - start
                beside += size if number != field else 0
                at += size
            elif kind == _VARINT:
                _, at = _varint(message, at)
                beside += at - start
            else:
                at += _FIXED_SIZES.get(kind, most)  # Groups are in none of our messages.
                beside += at - start
    except IndexError:
        pass
    return beside


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends. Raises IndexError when it does not end."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
