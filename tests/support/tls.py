"""Certificates of every kind that tests need: those of an authority, and those that nobody should accept."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from paceline import Tls
from services.common.identities import Identity
from services.common.settings import ServerSettings
from services.common.tls_settings import ServerTls
from services.local.authority import Authority
from services.local.certificate_folder import CertificateFolder
from support.served import SERVER

DAYS = 30.0


class Pair(NamedTuple):
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


def make_certificates(path: Path, trust_domain: str = "paceline") -> CertificateFolder:
    """An authority and a certificate of every identity."""
    folder = CertificateFolder(path)
    authority = Authority.create(folder, 10 * DAYS, overwrite=False)
    for identity in Identity:
        authority.issue(identity, (), DAYS, trust_domain, overwrite=False)
    return folder


def sign(folder: CertificateFolder, name: str, names: list[x509.GeneralName], *, days: float = DAYS) -> Pair:
    """A certificate of the folder's authority with whatever names; of negative days, one that has expired."""
    issuer = x509.load_pem_x509_certificate(folder.ca.read_bytes())
    signer = load_pem_private_key(folder.ca_key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2 * DAYS))
        .not_valid_after(now + timedelta(days=days))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    pair = Pair(folder.path / f"{name}.pem", folder.path / f"{name}-key.pem")
    pair.certificate.write_bytes(builder.sign(signer, SHA256()).public_bytes(Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pair


def expired(folder: CertificateFolder, identity: Identity) -> Pair:
    """A certificate of an identity that has expired, in every other way as it should be."""
    names = [x509.UniformResourceIdentifier(f"spiffe://paceline/{identity}"), x509.DNSName(identity)]
    return sign(folder, f"expired-{identity}", [*names, x509.DNSName("localhost")], days=-1)


def server_of(folder: CertificateFolder, identity: Identity, *, with_callers: bool = True) -> ServerSettings:
    """Settings of a server of an identity on a free port."""
    return SERVER.model_copy(update={"tls": ServerTls(**folder.server(identity, with_callers=with_callers))})


def showing(folder: CertificateFolder, pair: Pair | None, name: str = "") -> Tls:
    """A client that knows the authority and shows this."""
    certificate, key = pair or (None, None)
    return Tls(folder.ca, certificate, key, name)


def as_identity(folder: CertificateFolder, identity: Identity, server: Identity) -> Tls:
    """A client of an identity that calls a service."""
    return showing(folder, Pair(folder.certificate(identity), folder.key(identity)), name=server)
