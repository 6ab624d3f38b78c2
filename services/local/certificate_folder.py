"""Where the certificates of a system lie: an authority, and a certificate a service identity, all in one folder."""

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.identities import Identity
from services.common.tls_settings import ChannelTls

_OWNERS_ALONE = 0o600


@dataclass(frozen=True, slots=True)
class CertificateFolder:
    """Names of files, and how they are written: whole, their owner's alone."""

    path: Path

    @property
    def ca(self) -> Path:
        """Certificate of the authority: whoever has it knows the others for what they are."""
        return self.path / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """Key of the authority: whoever has it makes certificates. No process needs it."""
        return self.path / "ca-key.pem"

    def certificate(self, identity: Identity) -> Path:
        """Certificate of an identity."""
        return self.path / f"{identity}.pem"

    def key(self, identity: Identity) -> Path:
        """Private key of an identity."""
        return self.path / f"{identity}-key.pem"

    def has(self, identity: Identity) -> bool:
        """Whether an identity has its certificate here."""
        return self.certificate(identity).exists() and self.key(identity).exists()

    def server(self, identity: Identity, *, with_callers: bool) -> dict[str, Any]:
        """Settings of a server of an identity; `with_callers` has its callers show who they are."""
        own = {"certificate": str(self.certificate(identity)), "key": str(self.key(identity))}
        return {**own, "client_ca": str(self.ca)} if with_callers else own

    def channels(self, identity: Identity) -> ChannelTls:
        """How an identity calls services."""
        return ChannelTls(ca=self.ca, certificate=self.certificate(identity), key=self.key(identity))


def write_whole(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Writes a file that is its owner's alone, and there whole or not at all.

    Raises FileExistsError where there is one that must not be overwritten, OSError where none can be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNERS_ALONE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            part.replace(path)
        else:
            path.hardlink_to(part)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
