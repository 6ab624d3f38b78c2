"""A development authority: makes certificates for a system's services, and renews them.

It is for machines that one person or team looks after. Keys are on P-256, the curve that gRPC's TLS takes from anybody.
Elsewhere any authority will do that writes the same names: cert-manager or SPIRE in Kubernetes, say.
"""

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.common.certificates import CertificateFacts, facts_of
from services.common.identities import Identity
from services.local.certificate_folder import CertificateFolder, write_whole

_BEFORE = timedelta(minutes=5)
"""Certificates hold from a little earlier on: clocks differ."""
_OF_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_NAME = "Paceline development authority"


class CertificatesError(RuntimeError):
    """Certificates cannot be made. The message is one sentence for the user."""


class Kept(NamedTuple):
    """One certificate of a folder."""

    what: str
    """An identity, or "ca"."""
    path: Path
    facts: CertificateFacts
    is_new: bool


class Authority:
    """The authority of one folder."""

    def __init__(self, folder: CertificateFolder, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.folder = folder
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, folder: CertificateFolder, days: float, *, overwrite: bool) -> "Authority":
        """Makes one and writes it. Raises CertificatesError where there is one that must not be overwritten."""
        key = generate_private_key(SECP256R1())
        certificate = _sign_authority(key, days)
        try:
            folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(folder.ca_key, _key_pem(key), overwrite=overwrite)
            write_whole(folder.ca, certificate.public_bytes(Encoding.PEM), overwrite=overwrite)
        except OSError as error:
            raise CertificatesError(f"{error.filename} cannot be written: {error.strerror}") from error
        return cls(folder, key, certificate)

    @classmethod
    def load(cls, folder: CertificateFolder) -> "Authority":
        """The one that is there. Raises CertificatesError."""
        certificate, key = load_certificate(folder.ca), _load_key(folder.ca_key)
        if key.public_key() != certificate.public_key():
            raise CertificatesError(f"{folder.ca_key} is not the key of {folder.ca}")
        return cls(folder, key, certificate)

    def issue(
        self, identity: Identity, names: Sequence[str], days: float, trust_domain: str, *, overwrite: bool
    ) -> Kept:
        """Makes a key and a certificate of an identity and writes them; keeps those that are there unless told.

        `names` are hosts and addresses beside the identity's own name. Raises CertificatesError.
        """
        certificate, key = self.folder.certificate(identity), self.folder.key(identity)
        if not overwrite and self.folder.has(identity):
            return Kept(identity, certificate, facts_of(load_certificate(certificate)), is_new=False)
        own = generate_private_key(SECP256R1())
        signed = self._sign(own, identity, _all_names(identity, names, trust_domain), days)
        try:
            write_whole(key, _key_pem(own), overwrite=overwrite)
            write_whole(certificate, signed.public_bytes(Encoding.PEM), overwrite=overwrite)
        except FileExistsError as error:
            raise CertificatesError(f"{certificate} and {key} go together, and only one of them is there") from error
        except OSError as error:
            raise CertificatesError(f"{error.filename} cannot be written: {error.strerror}") from error
        return Kept(identity, certificate, facts_of(signed), is_new=True)

    def renew(self, identity: Identity, days: float) -> Kept:
        """Replaces a certificate by one of the same names with a new key. Raises CertificatesError."""
        old = load_certificate(self.folder.certificate(identity))
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        own = generate_private_key(SECP256R1())
        signed = self._sign(own, identity, list(names), days)
        # Between these two lines they do not fit together, and whoever reads them keeps what it has.
        write_whole(self.folder.key(identity), _key_pem(own), overwrite=True)
        write_whole(self.folder.certificate(identity), signed.public_bytes(Encoding.PEM), overwrite=True)
        return Kept(identity, self.folder.certificate(identity), facts_of(signed), is_new=True)

    def renew_itself(self, days: float) -> Kept:
        """Has the authority's certificate hold for longer. Its key stays: what it signed holds as before."""
        self.certificate = _sign_authority(self._key, days)
        write_whole(self.folder.ca, self.certificate.public_bytes(Encoding.PEM), overwrite=True)
        return Kept("ca", self.folder.ca, facts_of(self.certificate), is_new=True)

    def _sign(
        self, key: EllipticCurvePrivateKey, identity: Identity, names: Sequence[x509.GeneralName], days: float
    ) -> x509.Certificate:
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity is not Identity.CLIENT:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        until = min(datetime.now(UTC) + timedelta(days=days), self.certificate.not_valid_after_utc)
        return (
            _builder(identity, self.certificate.subject, key, until)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _all_names(identity: Identity, names: Sequence[str], trust_domain: str) -> list[x509.GeneralName]:
    """What a certificate is to name. Only a gateway's has hosts by itself: for who calls services, theirs must name
    them, and what runs beside a gateway must not pass for one.
    """
    found: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"spiffe://{trust_domain}/{identity}")]
    if identity is not Identity.CLIENT:
        found.append(x509.DNSName(identity))
    hosts = (*_OF_THIS_MACHINE, *names) if identity is Identity.GATEWAY else names
    return [*found, *(general_name(name) for name in dict.fromkeys(hosts))]


def general_name(name: str) -> x509.GeneralName:
    """A host's name or an address, as certificates have it. Raises CertificatesError for what is neither."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        try:
            written = name.encode("idna").decode()
        except ValueError:
            written = ""
    if not _HOST.fullmatch(written):
        raise CertificatesError(f"{name!r} is neither a host's name nor an address")
    return x509.DNSName(written)


def _sign_authority(key: EllipticCurvePrivateKey, days: float) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    return (
        _builder(_NAME, subject, key, datetime.now(UTC) + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(name: str, issuer: x509.Name, key: EllipticCurvePrivateKey, until: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BEFORE)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a file. Raises CertificatesError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise CertificatesError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CertificatesError(f"{path} holds no certificate in PEM") from error


def _load_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise CertificatesError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise CertificatesError(f"{path} holds no private key in PEM") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise CertificatesError(f"{path} is no key on an elliptic curve")
    return key
