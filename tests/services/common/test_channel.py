"""Channels connect over slow networks, and notice peers that are gone or stand still."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline import Client, Tls
from services.common.channel import open_channel
from services.common.identities import Identity
from services.common.server import Served
from support.fakes import FakeDraft, FakeVerifier, serve_fakes
from support.served import served
from support.system import StartGateway, collect
from support.tls import as_identity, make_certificates, server_of

_SERVER = """
import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

from services.common.server import Served, running_server
from services.common.settings import ServerSettings


@asynccontextmanager
async def lifespan(server):
    yield Served(())


async def main():
    async with running_server(ServerSettings(port=0), lifespan) as running:
        print(running.port, flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
"""
_NOTICED_SECONDS = 15.0


@asynccontextmanager
async def _idle(server: grpc.aio.Server) -> AsyncIterator[Served]:
    yield Served(())


@asynccontextmanager
async def _far_away(address: str, delay: float) -> AsyncIterator[str]:
    """The address of something that listens and passes bytes on, in both directions, as late as this."""
    host, port = address.split(":")
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            loop.call_later(delay, _write, writer, data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near_reader, near_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, near_writer))
        for pair in ((reader, near_writer), (near_reader, writer)):
            tasks.add(asyncio.create_task(carry(*pair)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        for task in tasks:
            task.cancel()
        for writer in writers:
            writer.close()
        await asyncio.gather(*tasks, *(writer.wait_closed() for writer in writers), return_exceptions=True)


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)


async def test_a_peer_that_is_far_away_and_encrypts_is_connected_to(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certificates")
    tls = as_identity(folder, Identity.GATEWAY, Identity.VERIFIER)
    async with (
        served(_idle, server_of(folder, Identity.VERIFIER)) as address,
        _far_away(address, delay=0.8) as far,
        open_channel(far, tls=tls) as channel,
    ):
        request = health_pb2.HealthCheckRequest()
        response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_peer_that_is_far_away_is_connected_to() -> None:
    async with served(_idle) as address, _far_away(address, delay=0.8) as far, open_channel(far) as channel:
        request = health_pb2.HealthCheckRequest()
        response = await health_pb2_grpc.HealthStub(channel).Check(request, wait_for_ready=True, timeout=20)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_distant_system_that_encrypts_is_connected_to(start_gateway: StartGateway, tmp_path: Path) -> None:
    """A round trip of 300 ms between a client and its gateway, and between that and its verifier and draft."""
    folder = make_certificates(tmp_path / "certificates")
    async with AsyncExitStack() as stack:
        far = []
        for servicer, identity in ((FakeVerifier(), Identity.VERIFIER), (FakeDraft(), Identity.DRAFT)):
            served_at = serve_fakes(servicer, tls=server_of(folder, identity).tls)
            far.append(await stack.enter_async_context(_far_away(await stack.enter_async_context(served_at), 0.15)))
        system = await stack.enter_async_context(
            start_gateway(
                [far[0]], [far[1]],
                server=server_of(folder, Identity.GATEWAY, with_callers=False),
                channel_tls=folder.channels(Identity.GATEWAY),
            )
        )  # fmt: skip
        gateway = await stack.enter_async_context(_far_away(system.gateway, 0.15))
        client = await stack.enter_async_context(Client(gateway, tls=Tls(folder.ca)))
        reply = await collect(client.generate("abc", max_tokens=20))
    assert len(reply.token_ids) == 20


async def test_nobody_listening_is_noticed_at_once() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        started = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 5


async def test_a_peer_that_stands_still_is_noticed_on_a_silent_stream(repository: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVER, cwd=repository, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        async with open_channel(f"127.0.0.1:{port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(watch.read(), _NOTICED_SECONDS)
    finally:
        process.kill()
        await process.wait()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
