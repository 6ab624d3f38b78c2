"""Clients over encrypted connections: what goes wrong is said in a sentence, and new certificates are taken up."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from paceline import Client, ClosedError, SyncClient, Tls, TlsError, UnavailableError
from paceline.connecting import (
    EXPIRED,
    OTHER_NAME,
    PLAINTEXT,
    REFUSED_AT_ONCE,
    UNKNOWN_AUTHORITY,
    problem_of,
)
from paceline.tls import TlsFiles
from services.common.identities import Identity
from services.common.settings import ServerSettings
from services.common.tls_settings import ServerTls
from services.local.authority import Authority
from services.local.certificate_folder import CertificateFolder
from support.gateway import FakeGateway, serve_gateway
from support.served import SERVER
from support.tls import Pair, expired, make_certificates, server_of, showing, sign


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return make_certificates(tmp_path / "certificates")


class Halting(FakeGateway):
    """Streams one token, and the others when it is told to; keeps the certificates that callers showed."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.showed: list[bytes] = []

    async def Generate(self, request, context):  # type: ignore[no-untyped-def]
        async for event in super().Generate(request, context):
            yield event
            await self.go.wait()

    async def Tokenize(self, request, context):  # type: ignore[no-untyped-def]
        self.showed.extend(context.auth_context().get("x509_pem_cert", ()))
        return await super().Tokenize(request, context)


def own(folder: CertificateFolder, identity: Identity = Identity.CLIENT) -> Pair:
    return Pair(folder.certificate(identity), folder.key(identity))


@asynccontextmanager
async def gateway(settings: ServerSettings) -> AsyncIterator[str]:
    async with serve_gateway(FakeGateway(), settings) as address:
        yield address


async def refused(address: str, tls: Tls | None) -> UnavailableError:
    async with Client(address, tls=tls) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.list_models()
    assert "\n" not in str(caught.value)
    return caught.value


async def test_a_gateway_is_asked_over_tls(folder: CertificateFolder) -> None:
    async with gateway(server_of(folder, Identity.GATEWAY, with_callers=False)) as address:
        async with Client(address, tls=Tls(folder.ca)) as client:
            assert await client.tokenize("abc") == [97, 98, 99]
        async with Client(f"https://{address}/", tls=Tls(folder.ca)) as client:
            assert await client.tokenize("abc") == [97, 98, 99]
        tls = Tls(str(folder.ca), name="gateway")
        with closing(await asyncio.to_thread(SyncClient, address, tls=tls)) as blocking:
            assert await asyncio.to_thread(blocking.tokenize, "abc") == [97, 98, 99]


async def test_a_gateway_may_ask_for_certificates(folder: CertificateFolder) -> None:
    async with gateway(server_of(folder, Identity.GATEWAY)) as address:
        async with Client(address, tls=showing(folder, own(folder))) as client:
            assert await client.tokenize("abc") == [97, 98, 99]
        assert (await refused(address, Tls(folder.ca))).reason == REFUSED_AT_ONCE
        late = expired(folder, Identity.CLIENT)
        assert (await refused(address, showing(folder, late))).reason == REFUSED_AT_ONCE


async def test_what_goes_wrong_in_connecting_is_one_sentence(folder: CertificateFolder, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    late = expired(folder, Identity.GATEWAY)
    of_late = SERVER.model_copy(update={"tls": ServerTls(certificate=late.certificate, key=late.key)})
    async with (
        gateway(server_of(folder, Identity.GATEWAY, with_callers=False)) as encrypted,
        gateway(SERVER) as plain,
        gateway(of_late) as too_late,
    ):
        for address, tls, reason, says in (
            (encrypted, None, REFUSED_AT_ONCE, f"{encrypted} closes connections at once: it asks for TLS, or for "),
            (plain, Tls(folder.ca), PLAINTEXT, f"{plain} speaks in plaintext, and TLS was asked for"),
            (encrypted, Tls(other.ca), UNKNOWN_AUTHORITY, f"no authority that is known here vouches for {encrypted}"),
            (encrypted, Tls(), UNKNOWN_AUTHORITY, f"no authority that is known here vouches for {encrypted}"),
            (encrypted, Tls(folder.ca, name="verifier"), OTHER_NAME, f"the certificate of {encrypted} does not have "),
            (too_late, Tls(folder.ca, name="gateway"), EXPIRED, f"the certificate of {too_late} has expired"),
        ):
            error = await refused(address, tls)
            assert (error.reason, str(error)[: len(says)]) == (reason, says)


def test_what_is_not_about_tls_is_left_as_it_is() -> None:
    for details in (
        "",
        "Socket closed",
        "the certificate of the moon has expired",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused",
    ):
        assert problem_of(details) is None


def test_where_is_told_for_other_kinds_of_addresses() -> None:
    for where, said in (("ipv6:%5B::1%5D:7100", "[::1]:7100"), ("unix:/run/paceline", "/run/paceline")):
        details = f"failed to connect to all addresses; last error: UNAVAILABLE: {where}: Socket closed"
        found = problem_of(details)
        assert found is not None
        assert found.says.startswith(f"{said} ")


async def test_what_contradicts_itself_is_refused_before_anything_is_sent(folder: CertificateFolder) -> None:
    for kind in (Client, SyncClient):
        with pytest.raises(ValueError, match="http:// is in plaintext, and TLS was asked for"):
            kind("http://127.0.0.1:7100", tls=Tls(folder.ca))
    with pytest.raises(TlsError, match="there is no key"):
        Tls(certificate=folder.certificate(Identity.CLIENT))
    with pytest.raises(TlsError, match="there is no certificate"):
        Tls(key=folder.key(Identity.CLIENT))


async def test_files_that_are_of_no_use_are_told_of_by_name(folder: CertificateFolder) -> None:
    client = own(folder)
    nonsense = folder.path / "nonsense.pem"
    nonsense.write_text("-----BEGIN NONSENSE-----")
    for tls, says in (
        (Tls("/nowhere/ca.pem"), "/nowhere/ca.pem cannot be read: No such file or directory"),
        (Tls(nonsense), f"{nonsense} holds no certificates in PEM"),
        (Tls(folder.ca, nonsense, client.key), "are no certificate and its key in PEM"),
        (Tls(folder.ca, client.certificate, nonsense), "are no certificate and its key in PEM"),
        (Tls(folder.ca, client.certificate, folder.key(Identity.DRAFT)), f"is not the key of {client.certificate}"),
    ):
        for kind in (Client, SyncClient):
            with pytest.raises(TlsError) as caught:
                kind("127.0.0.1:7100", tls=tls)
            assert says in str(caught.value)
            assert "PRIVATE" not in str(caught.value)


def test_files_are_read_again_when_they_changed_and_fit_together(folder: CertificateFolder) -> None:
    client = own(folder)
    files = TlsFiles(folder.ca, *client)
    first = files.contents
    assert files.changed() is None
    old_key = client.key.read_bytes()
    Authority.load(folder).renew(Identity.CLIENT, 1)
    new_key = client.key.read_bytes()
    client.key.write_bytes(old_key)  # As between the two writes of a renewal.
    assert files.changed() is None
    assert files.contents == first
    client.key.write_bytes(new_key)
    changed = files.changed()
    assert changed is not None
    assert changed.certificate == client.certificate.read_bytes() != first.certificate
    assert files.changed() is None
    client.key.unlink()
    assert files.changed() is files.changed() is None
    assert files.contents == changed
    client.key.write_bytes(new_key)
    assert files.changed() == changed


def test_files_may_be_changed_by_a_link_as_kubernetes_does(folder: CertificateFolder) -> None:
    mounted = folder.path / "mounted"
    for number in (1, 2):
        (folder.path / f"data{number}").mkdir()
        Authority.load(folder).renew(Identity.CLIENT, 1)
        for path in (folder.ca, *own(folder)):
            shutil.copy(path, folder.path / f"data{number}" / path.name)
    mounted.symlink_to("data1")
    files = TlsFiles(mounted / "ca.pem", mounted / "client.pem", mounted / "client-key.pem")
    first = files.contents
    (folder.path / "next").symlink_to("data2")
    os.replace(folder.path / "next", mounted)
    changed = files.changed()
    assert changed is not None
    assert changed != first


async def test_a_client_goes_on_with_its_new_certificate(folder: CertificateFolder) -> None:
    """What runs goes on over the old connection, what begins takes a new one with what the files hold by now."""
    gateway = Halting()
    async with serve_gateway(gateway, server_of(folder, Identity.GATEWAY)) as address:
        async with Client(address, tls=showing(folder, own(folder))) as client:
            stream = client.generate("abc", max_tokens=100)
            await anext(stream)
            await client.tokenize("abc")
            Authority.load(folder).renew(Identity.CLIENT, 1)
            await client.tokenize("abc")
            await client.tokenize("abc")
            gateway.go.set()
            assert [event.delta.token_ids[0] async for event in stream] == [*range(1, 100)]
    first, *others = gateway.showed
    assert others == [own(folder).certificate.read_bytes()] * 2
    assert first != others[0]


async def test_a_server_goes_on_with_its_new_certificate(folder: CertificateFolder) -> None:
    """It is renewed before it expires, and an authority's too: streams that run hear nothing of it."""
    server = sign(folder, "server", [], days=1)
    shutil.copy(own(folder, Identity.GATEWAY).certificate, server.certificate)
    shutil.copy(own(folder, Identity.GATEWAY).key, server.key)
    tls = ServerTls(certificate=server.certificate, key=server.key)
    halting = Halting()
    async with serve_gateway(halting, SERVER.model_copy(update={"tls": tls})) as address:
        async with Client(address, tls=Tls(folder.ca)) as client:
            stream = client.generate("abc", max_tokens=100)
            await anext(stream)
            late = expired(folder, Identity.GATEWAY)
            shutil.copy(late.key, server.key)
            shutil.copy(late.certificate, server.certificate)
            assert (await refused(address, Tls(folder.ca, name="gateway"))).reason == EXPIRED
            Authority.load(folder).renew(Identity.GATEWAY, 1)
            shutil.copy(own(folder, Identity.GATEWAY).key, server.key)
            shutil.copy(own(folder, Identity.GATEWAY).certificate, server.certificate)
            async with Client(address, tls=Tls(folder.ca)) as another:
                assert await another.tokenize("abc") == [97, 98, 99]
            halting.go.set()
            assert [event.delta.token_ids[0] async for event in stream] == [*range(1, 100)]


async def test_a_closed_client_leaves_no_old_connection(folder: CertificateFolder) -> None:
    async with serve_gateway(Halting(), server_of(folder, Identity.GATEWAY)) as address:
        client = Client(address, tls=showing(folder, own(folder)))
        stream = client.generate("abc", max_tokens=100)
        await anext(stream)
        Authority.load(folder).renew(Identity.CLIENT, 1)
        await client.tokenize("abc")
        await client.close()
        with pytest.raises(ClosedError):
            await anext(stream)
        assert not [task for task in asyncio.all_tasks() if "Channel" in repr(task.get_coro())]
