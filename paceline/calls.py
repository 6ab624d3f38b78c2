"""How a call is made: its answer or its events, and what a gateway refuses as the error that it is."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from paceline.errors import ClosedError, from_call

Metadata = Sequence[tuple[str, str]]
"""gRPC metadata: (name, value) each, names in lower case."""
T = TypeVar("T")


async def answer(call: Awaitable[T]) -> T:
    """The answer of a call."""
    with raising():
        return await call


@contextmanager
def raising() -> Iterator[None]:
    """Raises what a call ends with as the error that it is.

    One whose channel is closed gRPC ends with asyncio's CancelledError, as if whoever waits for it were cancelled.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ClosedError from None


async def events(start: Callable[[], Any]) -> AsyncGenerator[Any, None]:
    """The events of a call, which is over when the iteration is."""
    call = start()
    try:
        with raising():
            async for event in call:
                yield event
    finally:
        call.cancel()
