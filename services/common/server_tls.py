"""What a server's port is encrypted with: certificates that are read again when they change."""

import logging

import grpc
from cryptography import x509

from paceline.tls import Contents, TlsFiles
from services.common.certificates import days_left, facts_of
from services.common.tls_settings import ServerTls

_log = logging.getLogger(__name__)
_SOON_DAYS = 7


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """What a port is opened with. Raises TlsError for files with which nothing can be encrypted."""
    files = TlsFiles(tls.client_ca, tls.certificate, tls.key)
    _tell(tls, files.contents)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Is called for every connection, before anything is sent; None changes nothing."""
        contents = files.changed()
        if contents is None:
            return None
        _tell(tls, contents)
        return _configuration(contents)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files.contents),
        fetch,  # type: ignore[arg-type]  # The stubs do not know that it may say None.
        require_client_authentication=tls.client_ca is not None,
    )


def _configuration(contents: Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(contents.key or b"", contents.certificate or b"")], contents.ca)


def _tell(tls: ServerTls, contents: Contents) -> None:
    """Logs whose certificate this is and how long it holds: louder when that is not long."""
    try:
        facts = facts_of(x509.load_pem_x509_certificate(contents.certificate or b""))
    except ValueError as error:  # What encrypts may still be more than can be read here.
        _log.warning("what the certificate %s says cannot be told: %s", tls.certificate, error)
        return
    left = days_left(facts)
    says = f"valid until {facts.not_after:%Y-%m-%d %H:%M} UTC, for {', '.join(facts.names) or 'nobody'}"
    if left < 0:
        _log.error("the certificate %s has expired: nobody will connect (%s)", tls.certificate, says)
    else:
        level = logging.WARNING if left < _SOON_DAYS else logging.INFO
        _log.log(level, "the certificate %s is %s", tls.certificate, says)
