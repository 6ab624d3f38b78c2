"""Certificates, and real Envoys with the files that ship."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.lifespan import gateway_lifespan
from services.common.identities import Identity
from services.local.certificate_folder import CertificateFolder
from support.envoy import Envoy, StartEnvoy, lay, running_envoy
from support.fakes import FakeVerifier, serve_fakes
from support.lasting import Lasting, StartLasting
from support.served import served
from support.system import gateway_settings
from support.tls import make_certificates, server_of


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateFolder:
    return make_certificates(tmp_path_factory.mktemp("certificates") / "all")


@pytest.fixture
def start_edge(certificates: CertificateFolder, tmp_path: Path) -> StartEnvoy:
    """Starts an edge before these gateways."""

    @asynccontextmanager
    async def start(gateways: Sequence[str], **changed: Any) -> AsyncIterator[Envoy]:
        folder = lay(tmp_path / "edge", certificates, Identity.CLIENT)
        async with running_envoy(folder, "edge", {"gateway": gateways}, **changed) as envoy:
            await envoy.healthy("gateway", len(gateways))
            yield envoy

    return start


@pytest.fixture
def start_mesh(certificates: CertificateFolder, tmp_path: Path) -> StartEnvoy:
    """Starts a mesh's proxy before these verifiers and drafts."""

    @asynccontextmanager
    async def start(
        verifiers: Sequence[str], drafts: Sequence[str] = (), num_healthy: int | None = None
    ) -> AsyncIterator[Envoy]:
        folder = lay(tmp_path / "mesh", certificates, Identity.GATEWAY)
        async with running_envoy(folder, "mesh", {"verifier": verifiers, "draft": drafts}) as envoy:
            await envoy.healthy("verifier", len(verifiers) if num_healthy is None else num_healthy)
            await envoy.healthy("draft", len(drafts))
            yield envoy

    return start


@pytest.fixture
def start_encrypted_gateway(certificates: CertificateFolder, tokenizer_folder: Path) -> StartLasting:
    """Starts a gateway with mutual TLS, whose one verifier is scripted, until it is told to drain."""

    @asynccontextmanager
    async def gateway(verifier: FakeVerifier, grace_seconds: float) -> AsyncIterator[str]:
        async with serve_fakes(verifier) as address:
            settings = gateway_settings("fake", str(tokenizer_folder), [address], resume_seconds=5.0)
            server = server_of(certificates, Identity.GATEWAY).model_copy(update={"grace_seconds": grace_seconds})
            async with served(gateway_lifespan(settings), server) as own:
                yield own

    def start(verifier: FakeVerifier, grace_seconds: float = 0.2) -> AbstractAsyncContextManager[Lasting]:
        return Lasting.running(gateway(verifier, grace_seconds))

    return start
