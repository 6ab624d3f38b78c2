"""Commands over encrypted connections, as they are typed: options, variables, and a line for each mistake."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.identities import Identity
from services.common.tls_settings import ServerTls
from services.local.certificate_folder import CertificateFolder
from support.gateway import FakeGateway, serve_gateway
from support.served import SERVER
from support.tls import expired, make_certificates, server_of
from support.typed import typed


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
async def address(folder: CertificateFolder) -> AsyncIterator[str]:
    """Of a gateway that encrypts."""
    async with serve_gateway(FakeGateway(), server_of(folder, Identity.GATEWAY, with_callers=False)) as served:
        yield served


@pytest.fixture
async def strict(folder: CertificateFolder) -> AsyncIterator[str]:
    """Of a gateway that asks for its callers' certificates."""
    async with serve_gateway(FakeGateway(), server_of(folder, Identity.GATEWAY)) as served:
        yield served


async def one_line(says: str, *arguments: str, **environment: str) -> None:
    done = await typed("models", *arguments, **environment)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith(says), done.err


async def test_every_command_takes_an_address_that_encrypts(address: str, folder: CertificateFolder) -> None:
    prompts = folder.path / "prompts.txt"
    prompts.write_text("def f(\n")
    for arguments in (
        ("generate", "def f(", "--max-tokens=3"),
        ("models",),
        ("adapters", "list"),
        ("bench", "--streams=1", "--repeats=1", "--max-tokens=4", f"--prompts={prompts}"),
    ):
        done = await typed(*arguments, f"--address=https://{address}", f"--ca={folder.ca}")
        assert done.code == 0, done.err


async def test_the_environment_says_it_once_for_all(address: str, strict: str, folder: CertificateFolder) -> None:
    done = await typed("models", PACELINE_ADDRESS=address, PACELINE_CA=str(folder.ca))
    assert done.code == 0, done.err
    names = {"PACELINE_CERT": folder.certificate(Identity.CLIENT), "PACELINE_CERT_KEY": folder.key(Identity.CLIENT)}
    done = await typed(
        "models", "--tls", PACELINE_ADDRESS=strict, PACELINE_CA=str(folder.ca),
        PACELINE_SERVER_NAME="gateway", **{name: str(path) for name, path in names.items()},
    )  # fmt: skip
    assert done.code == 0, done.err


async def test_plaintext_to_a_port_that_encrypts_and_the_reverse(address: str, folder: CertificateFolder) -> None:
    await one_line(f"{address} takes no connection in plaintext; https:// before", f"--address={address}")
    async with serve_gateway(FakeGateway()) as plain:
        says = f"{plain} speaks in plaintext, and TLS was asked for; leave https://"
        await one_line(says, f"--address=https://{plain}", f"--ca={folder.ca}")


async def test_a_gateway_that_is_not_who_is_meant(address: str, folder: CertificateFolder, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    for arguments in ((), (f"--ca={other.ca}",)):
        says = f"no authority that is known here vouches for {address}; --ca names the file"
        await one_line(says, f"--address=https://{address}", *arguments)
    says = f"the certificate of {address} does not have the name it needs; --server-name"
    await one_line(says, f"--address={address}", f"--ca={folder.ca}", "--server-name=elsewhere")
    late = expired(folder, Identity.GATEWAY)
    tls = ServerTls(certificate=late.certificate, key=late.key)
    async with serve_gateway(FakeGateway(), SERVER.model_copy(update={"tls": tls})) as too_late:
        says = f"the certificate of {too_late} has expired; whoever runs it renews it"
        await one_line(says, f"--address={too_late}", f"--ca={folder.ca}", "--server-name=gateway")


async def test_a_caller_whom_the_gateway_does_not_accept(strict: str, folder: CertificateFolder) -> None:
    at = (f"--address=https://{strict}", f"--ca={folder.ca}")
    await one_line(f"https://{strict} asks for a client's certificate; --cert and --cert-key show one", *at)
    late = expired(folder, Identity.CLIENT)
    shown = (f"--cert={late.certificate}", f"--cert-key={late.key}")
    await one_line(f"https://{strict} does not accept {late.certificate}; it has expired, or", *at, *shown)
    shown = (f"--cert={folder.certificate(Identity.DRAFT)}", f"--cert-key={folder.key(Identity.DRAFT)}")
    await one_line("the identity draft may not call paceline.v1.ModelService/ListModels; client may", *at, *shown)


async def test_files_that_are_of_no_use(address: str, folder: CertificateFolder) -> None:
    at = f"--address={address}"
    await one_line("/nowhere.pem cannot be read: No such file or directory", at, "--ca=/nowhere.pem")
    client = folder.certificate(Identity.CLIENT)
    await one_line("a certificate and its key go together, and there is no key: --cert and", at, f"--cert={client}")
    shown = (f"--cert={client}", f"--cert-key={folder.ca_key}")
    await one_line(f"{folder.ca_key} is not the key of {client}", at, *shown)
