"""How a call is made: its answer or its events, and what a gateway refuses as the error that it is."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc

from paceline.errors import from_call

Metadata = Sequence[tuple[str, str]]
"""gRPC metadata: (name, value) each, names in lower case."""
T = TypeVar("T")


async def answer(call: Awaitable[T]) -> T:
    """The answer of a call."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from error


async def events(start: Callable[[], Any]) -> AsyncGenerator[Any, None]:
    """The events of a call, which is over when the iteration is."""
    call = start()
    try:
        async for event in call:
            yield event
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from error
    finally:
        call.cancel()
