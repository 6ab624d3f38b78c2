"""What a certificate says: whose it is, by which names, and for how long."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from paceline.tls import TlsError


class CertificateFacts(NamedTuple):
    """The first certificate of a file."""

    names: tuple[str, ...]
    """Hosts, addresses and URIs."""
    not_before: datetime
    not_after: datetime


def read_certificate(path: Path) -> CertificateFacts:
    """What the first certificate of a PEM file says. Raises TlsError."""
    try:
        return facts_of(x509.load_pem_x509_certificate(path.read_bytes()))
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TlsError(f"{path} holds no certificate in PEM") from error


def facts_of(certificate: x509.Certificate) -> CertificateFacts:
    """What a certificate says."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    return CertificateFacts(
        tuple(str(name.value) for name in names), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )


def days_left(facts: CertificateFacts) -> float:
    """How long a certificate is valid yet, in days; negative once it has expired."""
    return (facts.not_after - datetime.now(UTC)).total_seconds() / 86400
