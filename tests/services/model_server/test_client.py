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

    def add_done_callback(self, callback: Any) -> None:
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


@pytest.mark.parametrize("ended_by", ["stream", "channel"])
async def test_a_write_to_a_stream_that_ends_before_it_is_open_ends_too(ended_by: str) -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        stream = SequenceStream[bytes, bytes](channel.stream_stream("/a.B/C")(wait_for_ready=True))
        writers = [asyncio.create_task(stream.write(b"")) for _ in range(3)]
        await asyncio.sleep(0.05)
        writers[0].cancel()  # The stream is not its own.
        await asyncio.sleep(0.05)
        assert [writer.done() for writer in writers] == [True, False, False]
        if ended_by == "stream":
            stream.cancel()
        else:
            await channel.close()
        async with asyncio.timeout(5):
            await asyncio.wait(writers)
        assert all(writer.cancelled() for writer in writers)
        assert not [task for task in asyncio.all_tasks() if "SequenceStream" in repr(task)]
