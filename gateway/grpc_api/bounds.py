"""How large the requests of a service may be: what is larger is refused before a message is made of it."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import grpc

from paceline.errors import InvalidArgumentError


def bounded(server: grpc.aio.Server, max_bytes: int) -> grpc.aio.Server:
    """What stands for a server while a service is added to it, whose requests have at most so many bytes.

    A message of many small parts takes a hundred times its size in memory, and the event loop makes it.
    """
    return cast("grpc.aio.Server", _Server(server, max_bytes))


class _Server:
    def __init__(self, server: grpc.aio.Server, max_bytes: int) -> None:
        self._server = server
        self._max_bytes = max_bytes

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_Bounded(handler, self._max_bytes) for handler in handlers])

    def add_registered_method_handlers(self, *_: object) -> None:
        """Generated code adds every method in both ways; one is enough."""


class _Bounded(grpc.GenericRpcHandler):
    def __init__(self, inner: grpc.GenericRpcHandler, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler: Any = self._inner.service(handler_call_details)
        if handler is None:
            return None
        return handler._replace(request_deserializer=self._checked(handler.request_deserializer))

    def _checked(self, deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def decode(data: bytes) -> Any:
            if len(data) > self._max_bytes:
                problem = f"{len(data)} bytes are more than the limit of {self._max_bytes} bytes"
                raise InvalidArgumentError("request", problem)
            return deserialize(data)

        return decode
