"""`paceline health`, as Docker and Kubernetes call it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from services.common.identities import Identity
from services.common.server import Served, running_server
from support.fakes import FakeVerifier, serve_fakes
from support.redis_server import free_ports
from support.served import SERVER, served
from support.tls import make_certificates, server_of
from support.typed import typed


async def test_what_serves_ends_with_0_and_what_does_not_with_1() -> None:
    async with serve_fakes(FakeVerifier()) as address:
        assert (await typed("health", "--address", address)).code == 0
    gone = await typed("health", "--address", address, "--seconds", "0.2")
    assert (gone.code, "does not answer" in gone.err) == (1, True)


async def test_what_is_still_loading_ends_with_1() -> None:
    @asynccontextmanager
    async def loading(server: grpc.aio.Server) -> AsyncIterator[Served]:
        yield Served((), ready.wait)

    ready, (port,) = asyncio.Event(), free_ports(1)

    async def run() -> None:
        async with running_server(SERVER.model_copy(update={"port": port}), loading):
            pass

    task = asyncio.create_task(run())
    async with asyncio.timeout(20):
        while "does not serve" not in (await typed("health", "--address", f"127.0.0.1:{port}")).err:
            pass
    ready.set()
    await task


async def test_a_process_asks_itself_with_its_own_certificate(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certificates")

    @asynccontextmanager
    async def nothing(server: grpc.aio.Server) -> AsyncIterator[Served]:
        yield Served(())

    async with served(nothing, server_of(folder, Identity.VERIFIER)) as address:
        own = folder.certificate(Identity.VERIFIER), folder.key(Identity.VERIFIER)
        certificates = [
            "--ca",
            str(folder.ca),
            "--cert",
            str(own[0]),
            "--cert-key",
            str(own[1]),
            "--server-name",
            "verifier",
        ]
        assert (await typed("health", "--address", address, *certificates)).code == 0
        assert (
            await typed("health", "--address", address, "--ca", str(folder.ca), "--server-name", "verifier")
        ).code == 1
