"""How connections are encrypted: PEM files of an authority, a certificate and its key, read again when they change."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger(__name__)
_TRIES = 3
_REASONS = {
    "KEY_VALUES_MISMATCH": "{key} is not the key of {certificate}",
    "KEY_TYPE_MISMATCH": "{key} is not the key of {certificate}",
    "BAD_DECRYPT": "{key} is encrypted, and there is nobody to ask for its password",
    "BAD_PASSWORD_READ": "{key} is encrypted, and there is nobody to ask for its password",
}


class TlsError(ValueError):
    """Files with which no connection can be encrypted. The message is one sentence, and shows nothing of a key."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What an encrypted connection is made with. The files are PEM, and read again when they change.

    Raises TlsError for a certificate without its key, and the other way round.
    """

    ca: str | Path | None = None
    """Authorities of servers' certificates; None: the public ones that gRPC brings."""
    certificate: str | Path | None = None
    """What this client shows, with all that lies between it and its authority; None: nothing."""
    key: str | Path | None = None
    name: str = ""
    """Name that the server's certificate must have; empty: the host of its address."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise TlsError(f"a certificate and its key go together, and there is no {missing}")


class Contents(NamedTuple):
    """What the files hold."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None


class TlsFiles:
    """The files of one end of connections, and what was last read of them that fits together."""

    def __init__(
        self, ca: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
    ) -> None:
        """Reads them. Raises TlsError."""
        self._paths = tuple(None if path is None else Path(path) for path in (ca, certificate, key))
        self._seen: tuple[tuple[int, int, int] | None, ...] = ()
        self.contents = self._read()

    def changed(self) -> Contents | None:
        """What they hold by now, when they changed since they were last asked for and fit together; else None.

        Files that were changed by halves, or cannot be read, leave all as it was; what is wrong is logged once.
        """
        try:
            seen = self._look()
            if seen == self._seen:
                return None
            self._seen = seen
            self.contents = self._read()
        except OSError as error:
            if self._seen:
                _log.warning("certificates stay as they were: %s cannot be read: %s", error.filename, error.strerror)
            self._seen = ()
            return None
        except TlsError as error:
            _log.warning("certificates stay as they were: %s", error)
            return None
        _log.info("certificates were read again")
        return self.contents

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What tells each file from one that took its place. Raises OSError."""
        looked = [None if path is None else path.stat() for path in self._paths]
        return tuple(None if it is None else (it.st_ino, it.st_mtime_ns, it.st_size) for it in looked)

    def _read(self) -> Contents:
        """What they hold, all from one state of the folder. Raises TlsError."""
        for _ in range(_TRIES):
            try:
                self._seen = self._look()
                contents = Contents(*(None if path is None else path.read_bytes() for path in self._paths))
                problem = self._problem(contents)
                if self._look() == self._seen:
                    break
            except OSError as error:
                raise TlsError(f"{error.filename} cannot be read: {error.strerror}") from error
        if problem:
            raise TlsError(problem)
        return contents

    def _problem(self, contents: Contents) -> str:
        """Why nothing can be encrypted with them, in a sentence; empty where it can."""
        ca, certificate, key = self._paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if contents.ca is not None:
            try:
                context.load_verify_locations(cadata=contents.ca.decode("ascii", errors="replace"))
            except (ssl.SSLError, ValueError):
                return f"{ca} holds no certificates in PEM"
        if contents.certificate is not None and certificate is not None and key is not None:
            try:
                context.load_cert_chain(certificate, key, password="")
            except ssl.SSLError as error:
                says = _REASONS.get(error.reason or "", "{certificate} and {key} are no certificate and its key in PEM")
                return says.format(certificate=certificate, key=key)
        return ""
