"""The gateway's end of a sequence's stream."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from services.model_server.client import SequenceStream


class Call:
    """One that is being opened, and ends in the moment in which whoever reads it is cancelled."""

    def __init__(self, end: Any) -> None:
        self._end = end

    async def read(self) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # As gRPC's task that opens a call does.
            if isinstance(self._end, Exception):
                raise self._end from None
        return self._end

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize(
    "end", [AioRpcError(grpc.StatusCode.UNIMPLEMENTED, Metadata(), Metadata()), grpc.aio.EOF], ids=["error", "end"]
)
async def test_a_cancelled_reader_ends_though_grpc_does_not_say_so(end: Any) -> None:
    async def read() -> None:
        async with SequenceStream[Any, Any](Call(end)) as stream:
            await stream.read()

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
