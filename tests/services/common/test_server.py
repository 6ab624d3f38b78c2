"""Health follows the life of a service; reflection lists it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from paceline.v1 import model_pb2, model_pb2_grpc
from services.common.server import Served, running_server
from services.common.settings import ServerSettings
from support.served import SERVER
from support.system import System

NAME = "paceline.v1.ModelService"


async def _status(channel: grpc.aio.Channel, service: str = "") -> int:
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return response.status


async def test_health_is_not_serving_until_the_service_is_ready() -> None:
    built: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    server_seen: asyncio.Future[grpc.aio.Server] = asyncio.get_running_loop().create_future()
    port_seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        model_pb2_grpc.add_ModelServiceServicer_to_server(model_pb2_grpc.ModelServiceServicer(), server)
        add_port = server.add_insecure_port

        def record(address: str) -> int:
            port_seen.set_result(add_port(address))
            return port_seen.result()

        server.add_insecure_port = record  # type: ignore[method-assign]
        server_seen.set_result(server)
        yield Served((NAME,), ready=lambda: built)

    async def run() -> None:
        async with running_server(SERVER, lifespan):
            serving.set()
            await leave.wait()

    serving, leave = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await port_seen}") as channel:
        await channel.channel_ready()
        assert await _status(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not serving.is_set()
        built.set_result(None)
        await serving.wait()
        assert await _status(channel) == await _status(channel, NAME) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _status(channel, "paceline.v1.NoSuchService")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "paceline.v1.NoSuchService" in (caught.value.details() or "")
        assert NAME in (caught.value.details() or "")
        listed = await health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest())
        assert {listed.statuses[name].status for name in ("", NAME)} == {health_pb2.HealthCheckResponse.SERVING}
    leave.set()
    await task


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_with_no_proto_files_at_hand(system: System, version: str) -> None:
    service = f"grpc.reflection.{version}.ServerReflection"
    wanted = {
        "paceline.v1.InferenceService": {"Generate", "Chat", "Tokenize", "Detokenize"},
        service: {"ServerReflectionInfo"},
    }
    requests = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in wanted]
    async with grpc.aio.insecure_channel(system.gateway) as channel:
        ask = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        every = [reflection_pb2.ServerReflectionRequest(list_services=""), *requests]
        listed, *described = [response async for response in ask(iter(every))]
    names = {service.name for service in listed.list_services_response.service}
    assert {*wanted, "paceline.v1.ModelService", "grpc.health.v1.Health"} <= names
    for (name, methods), answer in zip(wanted.items(), described, strict=True):
        files = [FileDescriptorProto.FromString(f) for f in answer.file_descriptor_response.file_descriptor_proto]
        found = {f"{f.package}.{s.name}": {m.name for m in s.method} for f in files for s in f.service}
        assert methods <= found[name]


async def test_peers_may_ask_whether_a_silent_stream_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without data outlives many keepalive pings; gRPC's default is to end it after the third."""
    monkeypatch.setattr("services.common.server._MIN_PING_INTERVAL_MS", 50)

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        yield Served(())

    options = [("grpc.keepalive_time_ms", 1_000), ("grpc.http2.max_pings_without_data", 0)]
    async with (
        running_server(SERVER, lifespan) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options=options) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.create_task(watch.read())), 4.5)
        watch.cancel()


async def test_what_has_failed_does_not_wait_for_streams_to_finish() -> None:
    """A stream that its service has forgotten would hold a process that can do nothing any more."""
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    begun = asyncio.Event()

    class Forgotten(model_pb2_grpc.ModelServiceServicer):
        async def ListModels(self, request: object, context: object) -> model_pb2.ListModelsResponse:
            begun.set()
            await asyncio.Event().wait()
            return model_pb2.ListModelsResponse()

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        model_pb2_grpc.add_ModelServiceServicer_to_server(Forgotten(), server)
        yield Served((NAME,), failed=failed)

    async with asyncio.timeout(30):
        async with running_server(ServerSettings(port=0, grace_seconds=600), lifespan) as running:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.port}")
            call = model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
            await begun.wait()
            failed.set_exception(RuntimeError("broken on purpose"))
            failed.exception()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        await channel.close()


async def test_what_was_imported_is_left_alone_and_garbage_is_looked_for_from_then_on(repository: Path) -> None:
    program = """
import asyncio, contextlib, gc, os, signal
from services.common.server import serve
from services.common.settings import ProcessSettings, ServerSettings

@contextlib.asynccontextmanager
async def lifespan(server):
    print(gc.isenabled(), gc.get_freeze_count() > 1000, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    yield await asyncio.Event().wait()

gc.disable()
serve("nothing", ProcessSettings(server=ServerSettings(port=0)), lifespan)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=repository, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert (process.returncode, said.decode().split()) == (0, ["True", "True"])
