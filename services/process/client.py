"""The other end of ProcessService."""

import time
from typing import NamedTuple

import grpc

from paceline.internal.v1 import process_pb2, process_pb2_grpc

SERVICE = process_pb2.DESCRIPTOR.services_by_name["ProcessService"].full_name


class Asked(NamedTuple):
    """What a process said of itself, and when. Times are in seconds."""

    process: process_pb2.GetProcessResponse
    clock_offset: float
    """How far its clock is ahead of the one here: that of the middle of the round trip."""
    round_trip: float


async def ask_process(channel: grpc.aio.Channel, timeout: float) -> Asked | None:
    """What a process says of itself; None where it answers and is too old to say. Raises grpc.aio.AioRpcError."""
    stub = process_pb2_grpc.ProcessServiceStub(channel)
    sent, began = time.time(), time.monotonic()
    try:
        found = await stub.GetProcess(process_pb2.GetProcessRequest(), timeout=timeout)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return None
        raise
    round_trip = time.monotonic() - began
    return Asked(found, found.clock_seconds - (sent + round_trip / 2), round_trip)
