"""The answer to a call that sends a stream of messages, though the other side ends it while they are sent."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

T = TypeVar("T")
WRITTEN_TOO_LATE = "Internal error from Core"
"""What grpc.aio says in the place of any status when a message is written in the moment in which a call ends."""
_STATUS_SECONDS = 1.0
_POLL_SECONDS = 0.005


async def response_to_stream(call: Any) -> Any:
    """The response to `call`. Raises grpc.aio.AioRpcError with the status that the other side gave.

    When a message is written in the moment in which the other side ends the call, grpc.aio sets an INTERNAL of its own
    in the place of the status that has come, or that comes a moment later.
    """
    first: list[grpc.aio.AioRpcError] = []
    call.add_done_callback(lambda ended: first.append(_status(ended)))
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if not _is_own(error):
            raise
        if first and not _is_own(first[0]):
            raise first[0] from error
        for _ in range(int(_STATUS_SECONDS / _POLL_SECONDS)):
            await asyncio.sleep(_POLL_SECONDS)
            if not _is_own(status := _status(call)):
                raise status from error
        raise


def _is_own(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == WRITTEN_TOO_LATE


def _status(call: Any) -> grpc.aio.AioRpcError:
    """How a call that is over has ended, for now."""
    return grpc.aio.AioRpcError(
        _at_once(call.code()),
        _at_once(call.initial_metadata()),
        _at_once(call.trailing_metadata()),
        _at_once(call.details()),
        _at_once(call.debug_error_string()),
    )


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        value: T = result.value
        return value
    coroutine.close()
    raise RuntimeError("the call is not over")
