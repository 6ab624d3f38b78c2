"""What servers say of their certificates, at the start and when they change."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.channel import open_channel
from services.common.identities import Identity
from services.common.server import Served
from services.common.tls_settings import ServerTls
from services.common.tokens import new_signing_key, public_key
from services.local.authority import Authority
from services.local.certificate_folder import CertificateFolder
from support.served import SERVER, served
from support.tls import as_identity, expired, make_certificates, server_of
from support.typed import typed


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return make_certificates(tmp_path / "certificates")


@asynccontextmanager
async def _idle(server: grpc.aio.Server) -> AsyncIterator[Served]:
    yield Served(())


async def test_files_that_are_of_no_use_end_a_process_with_a_sentence(folder: CertificateFolder) -> None:
    certificate, key = folder.certificate(Identity.PREFIX_CACHE), folder.key(Identity.DRAFT)
    for given, says in (
        (f"--server.tls.key={key}", f"{key} is not the key of {certificate}\n"),
        ("--server.tls.key=/nowhere.pem", "/nowhere.pem cannot be read: No such file or directory\n"),
        ("--server.tls.client-ca=/dev/null", "settings of prefix-cache: server.tls.key: Field required\n"),
    ):
        done = await typed(
            "serve", "prefix-cache", "--server.port=0", "--telemetry.log-level=ERROR",
            f'--token-keys=["{public_key(new_signing_key())}"]', f"--server.tls.certificate={certificate}", given,
        )  # fmt: skip
        assert (done.code, done.err) == (1, says)


async def test_who_speaks_no_tls_harms_nobody(folder: CertificateFolder) -> None:
    """Random bytes, a plaintext client's first ones, half a greeting, and silence, from many at once."""
    chance = random.Random(7)
    tls = as_identity(folder, Identity.GATEWAY, Identity.VERIFIER)
    hello = bytes.fromhex("16030100c8010000c40303") + chance.randbytes(60)
    async with served(_idle, server_of(folder, Identity.VERIFIER)) as address:
        host, port = address.split(":")
        writers = []
        for number in range(80):
            _, writer = await asyncio.open_connection(host, int(port))
            greetings = (chance.randbytes(chance.randrange(1, 4000)), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", hello, b"")
            writer.write(greetings[number % 4])
            writers.append(writer)
        async with open_channel(address, tls=tls) as channel:
            for _ in range(5):
                found = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
                assert found.status == health_pb2.HealthCheckResponse.SERVING
        for writer in writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        async with open_channel(address, tls=tls) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)


async def test_how_long_a_certificate_holds_is_logged(
    folder: CertificateFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    late = expired(folder, Identity.VERIFIER)
    tls = ServerTls(certificate=late.certificate, key=late.key)
    async with served(_idle, SERVER.model_copy(update={"tls": tls})):
        (said,) = [each for each in caplog.records if "has expired" in each.message]
    assert said.levelno == logging.ERROR
    assert "nobody will connect" in said.message
    caplog.clear()
    async with served(_idle, server_of(folder, Identity.VERIFIER)) as address:
        (said,) = [each for each in caplog.records if "is valid until" in each.message]
        assert said.levelno == logging.INFO
        assert "spiffe://paceline/verifier" in said.message
        caplog.clear()
        Authority.load(folder).renew(Identity.VERIFIER, 2)
        async with open_channel(address, tls=as_identity(folder, Identity.DRAFT, Identity.VERIFIER)) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        (said,) = [each for each in caplog.records if "is valid until" in each.message]
        assert said.levelno == logging.WARNING
