"""When a process serves, and how far it is on the way there, as it says itself."""

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.internal.v1 import model_server_pb2 as pb
from paceline.internal.v1 import model_server_pb2_grpc
from paceline.tls import Tls
from services.common.channel import open_channel

Progress = Callable[[str, float], None]
"""Takes what is being done, in words, and how much of it is done, 0 to 1."""

_POLL_SECONDS = 0.1
_CALL_SECONDS = 2.0
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_PHASES = {
    pb.WatchLoadingResponse.PHASE_UNSPECIFIED: "starting",
    pb.WatchLoadingResponse.PHASE_WEIGHTS: "reading weights",
    pb.WatchLoadingResponse.PHASE_FORWARD: "preparing its forward",
    pb.WatchLoadingResponse.PHASE_MEASURING: "measuring steps",
    pb.WatchLoadingResponse.PHASE_READY: "ready",
}


async def wait_serving(address: str, is_meant: Callable[[], bool] = lambda: True, tls: Tls | None = None) -> None:
    """Returns once the server's health says SERVING, and it is the server that is meant."""
    async with open_channel(address, tls=tls) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                response = await health.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS)
                if response.status == health_pb2.HealthCheckResponse.SERVING and is_meant():
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AWAY:
                    raise
            await asyncio.sleep(_POLL_SECONDS)


async def watch_loading(address: str, on_progress: Progress, tls: Tls | None = None) -> None:
    """Passes on what a server with an engine says of its loading; returns when it is ready or says nothing of it."""
    async with open_channel(address, tls=tls) as channel:
        server = model_server_pb2_grpc.ModelServerServiceStub(channel)
        while True:
            try:
                async for said in server.WatchLoading(pb.WatchLoadingRequest()):
                    on_progress(_PHASES.get(said.phase, "loading"), said.fraction)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AWAY:
                    return
            await asyncio.sleep(_POLL_SECONDS)


async def ask_room(address: str, tls: Tls | None = None) -> int:
    """Tokens whose KV a server with an engine has room for. Raises grpc.aio.AioRpcError."""
    async with open_channel(address, tls=tls) as channel:
        server = model_server_pb2_grpc.ModelServerServiceStub(channel)
        return int((await server.GetModel(pb.GetModelRequest(), timeout=_CALL_SECONDS)).max_kv_tokens)
