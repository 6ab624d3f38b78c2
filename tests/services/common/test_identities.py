"""Every method of every service, called by every identity, by who has none and by who shows no certificate."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import ValidationError

from paceline.internal.v1 import (
    adapter_store_pb2,
    draft_pb2,
    model_server_pb2,
    prefix_cache_pb2,
    process_pb2,
    verifier_pb2,
)
from paceline.v1 import (
    adapter_pb2,
    admin_pb2,
    batch_pb2,
    cache_pb2,
    inference_pb2,
    model_pb2,
    operations_pb2,
    usage_pb2,
    webhook_pb2,
)
from services.common.channel import open_channel
from services.common.identities import Identity, callers_of
from services.common.server import Served
from services.common.tls_settings import ChannelTls, tls_to
from services.local.certificate_folder import CertificateFolder
from support.served import served
from support.tls import Pair, as_identity, make_certificates, server_of, showing, sign

ENGINE = (model_server_pb2, process_pb2)
SERVICES = {
    Identity.GATEWAY: (adapter_pb2, admin_pb2, batch_pb2, cache_pb2, inference_pb2, model_pb2, operations_pb2,
                       usage_pb2, webhook_pb2),
    Identity.VERIFIER: (verifier_pb2, *ENGINE),
    Identity.DRAFT: (draft_pb2, *ENGINE),
    Identity.PREFIX_CACHE: (prefix_cache_pb2, process_pb2),
    Identity.ADAPTER_STORE: (adapter_store_pb2, process_pb2),
}  # fmt: skip
"""What each kind of process serves."""
MAY_CALL = {
    Identity.GATEWAY: "/paceline.v1. client",
    Identity.VERIFIER: "/paceline. gateway",
    Identity.DRAFT: "/paceline. gateway",
    Identity.PREFIX_CACHE: "MatchBlocks verifier draft, FetchBlocks verifier draft, StoreBlocks verifier draft, "
    "GetNamespaceStatistics gateway, DeleteNamespace gateway, GetProcess gateway",
    Identity.ADAPTER_STORE: "FetchAdapter verifier draft, StoreAdapter gateway, ResolveAdapter gateway, "
    "ListStoredAdapters gateway, RemoveAdapter gateway, GetProcess gateway",
}
"""Written out a second time: by a part of the method's name, who may call it."""


class Asked(NamedTuple):
    code: grpc.StatusCode
    details: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> CertificateFolder:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def methods_of(server: Identity) -> list[str]:
    """All methods that a kind of process serves, as gRPC names them."""
    services = [service for module in SERVICES[server] for service in module.DESCRIPTOR.services_by_name.values()]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def expected(server: Identity, method: str) -> set[str]:
    for line in MAY_CALL[server].split(", "):
        part, *who = line.split()
        if part in method:
            return set(who)
    raise AssertionError(f"nothing is said of {method}")


class _AnyMethod(grpc.GenericRpcHandler):
    """Answers every method of some services with nothing."""

    def __init__(self, methods: list[str]) -> None:
        self._methods = methods

    def service(self, details: Any) -> Any:
        async def answer(requests: Any, context: Any) -> bytes:
            return b""

        return grpc.stream_unary_rpc_method_handler(answer) if details.method in self._methods else None


@asynccontextmanager
async def process(folder: CertificateFolder, identity: Identity) -> AsyncIterator[str]:
    """Address of a server with the methods of a kind of process."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        server.add_generic_rpc_handlers((_AnyMethod(methods_of(identity)),))
        yield Served(())

    async with served(lifespan, server_of(folder, identity)) as address:
        yield address


async def ask(channel: grpc.aio.Channel, method: str) -> Asked:
    call: Any = channel.unary_unary(method)
    try:
        await call(b"", timeout=20)
    except grpc.aio.AioRpcError as error:
        return Asked(error.code(), error.details() or "")
    return Asked(grpc.StatusCode.OK, "")


@pytest.mark.parametrize("server", SERVICES)
async def test_who_may_call_what(folder: CertificateFolder, server: Identity) -> None:
    async with process(folder, server) as address:
        for caller in Identity:
            async with open_channel(address, tls=as_identity(folder, caller, server)) as channel:
                for method in methods_of(server):
                    asked = await ask(channel, method)
                    may = caller in expected(server, method)
                    assert (asked.code is grpc.StatusCode.OK) is may, (caller, method, asked)
                    if not may:
                        assert asked.code is grpc.StatusCode.PERMISSION_DENIED
                        assert f"the identity {caller} may not call {method[1:]}; " in asked.details
                asked = await ask(channel, "/paceline.v1.NoSuchService/NoSuchMethod")
                known = caller is Identity.CLIENT
                assert asked.code is (grpc.StatusCode.UNIMPLEMENTED if known else grpc.StatusCode.PERMISSION_DENIED)


@pytest.mark.parametrize("server", SERVICES)
async def test_health_and_reflection_answer_every_identity(folder: CertificateFolder, server: Identity) -> None:
    async with process(folder, server) as address:
        for caller in Identity:
            async with open_channel(address, tls=as_identity(folder, caller, server)) as channel:
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
                assert health.status == health_pb2.HealthCheckResponse.SERVING
                request = reflection_pb2.ServerReflectionRequest(list_services="")
                reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
                assert [answer async for answer in reflect]


@pytest.mark.parametrize("server", SERVICES)
async def test_nobody_answers_who_says_not_who_he_is(folder: CertificateFolder, server: Identity) -> None:
    """Certificates of the very authority, with no identity, with two, with one that there is not, or elsewhere's."""
    own = x509.UniformResourceIdentifier("spiffe://paceline/gateway")
    odd = {
        "nameless": [],
        "named": [x509.DNSName("gateway")],
        "two": [own, x509.UniformResourceIdentifier("spiffe://paceline/client")],
        "unheard-of": [x509.UniformResourceIdentifier("spiffe://paceline/operator")],
        "longer": [x509.UniformResourceIdentifier("spiffe://paceline/gateway/more")],
        "elsewhere": [x509.UniformResourceIdentifier("spiffe://elsewhere/gateway")],
        "no-spiffe": [x509.UniformResourceIdentifier("https://paceline/gateway")],
    }
    health = "/grpc.health.v1.Health/Check"
    async with process(folder, server) as address:
        for name, names in odd.items():
            pair = sign(folder, f"{name}-{server}", list(names))
            async with open_channel(address, tls=showing(folder, pair, server)) as channel:
                for method in (*methods_of(server), health, "/paceline.v1.NoSuchService/NoSuchMethod"):
                    asked = await ask(channel, method)
                    assert asked.code is grpc.StatusCode.UNAUTHENTICATED, (name, method, asked)
                    assert "says not who it is" in asked.details


@pytest.mark.parametrize("server", SERVICES)
async def test_no_connection_comes_about_without_a_certificate_that_holds(
    folder: CertificateFolder, server: Identity, tmp_path: Path
) -> None:
    elsewhere = make_certificates(tmp_path / "elsewhere")
    stranger = Pair(elsewhere.certificate(Identity.GATEWAY), elsewhere.key(Identity.GATEWAY))
    late = sign(folder, f"late-{server}", [x509.UniformResourceIdentifier("spiffe://paceline/gateway")], days=-1)
    async with process(folder, server) as address:
        for tls in (None, *(showing(folder, pair, server) for pair in (None, stranger, late))):
            async with open_channel(address, tls=tls) as channel:
                for method in (*methods_of(server)[:3], "/grpc.health.v1.Health/Check"):
                    assert (await ask(channel, method)).code is grpc.StatusCode.UNAVAILABLE, (tls, method)


def test_every_method_is_in_the_table() -> None:
    for server in SERVICES:
        for method in methods_of(server):
            assert callers_of(method) == expected(server, method)
    assert not callers_of("/somebody.elses.Service/Method")
    assert not callers_of("")
    assert not callers_of("/paceline.internal.v1.NewService/Method")
    assert callers_of("/grpc.channelz.v1.Channelz/GetServers") == {Identity.GATEWAY}


async def test_identities_belong_to_a_trust_domain(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certificates", trust_domain="example.org")

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        yield Served(())

    for domain, code in (("example.org", grpc.StatusCode.OK), ("paceline", grpc.StatusCode.UNAUTHENTICATED)):
        settings = server_of(folder, Identity.VERIFIER)
        assert settings.tls is not None
        settings = settings.model_copy(update={"tls": settings.tls.model_copy(update={"trust_domain": domain})})
        async with served(lifespan, settings) as address:
            async with open_channel(address, tls=as_identity(folder, Identity.GATEWAY, Identity.VERIFIER)) as channel:
                assert (await ask(channel, "/grpc.health.v1.Health/Check")).code is code


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ({}, "verifier"),
        ({"name": ""}, ""),
        ({"name": "paceline-{service}.default.svc"}, "paceline-verifier.default.svc"),
    ],
)
def test_a_service_is_known_by_a_name_that_settings_say(name: dict[str, str], expected: str) -> None:
    tls = tls_to(Identity.VERIFIER, ChannelTls(ca=Path("ca.pem"), **name))
    assert tls is not None
    assert (tls.name, tls.ca, tls.certificate) == (expected, Path("ca.pem"), None)
    assert tls_to(Identity.VERIFIER, None) is None
    with pytest.raises(ValidationError, match="go together"):
        ChannelTls(ca=Path("ca.pem"), certificate=Path("own.pem"))
