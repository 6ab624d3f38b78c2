"""Settings of encryption: what a server shows and asks for, and what a process shows to the services that it calls."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from paceline.tls import Tls
from services.common.identities import Identity

_SERVICE = "{service}"


class ServerTls(BaseModel):
    """What a server encrypts with. The files are PEM, and read again when they change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: Path = Field(description="Certificate of this server, with those between it and its authority.")
    key: Path = Field(description="Its private key.")
    client_ca: Path | None = Field(
        None, description="Authorities of callers' certificates, which must name who calls; none: callers show none."
    )
    trust_domain: str = Field(
        "paceline", pattern="^[a-z0-9._-]{1,255}$", description="Callers' certificates name spiffe://TRUST_DOMAIN/WHO."
    )


class ChannelTls(BaseModel):
    """What a process encrypts its calls to other services with. The files are PEM, and read again when they change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: Path = Field(description="Authorities of the services' certificates.")
    certificate: Path | None = Field(None, description="Certificate that this process shows; none: it shows none.")
    key: Path | None = Field(None, description="Its private key.")
    name: str = Field(
        _SERVICE,
        description="Name that a service's certificate must have; {service} stands for verifier, draft, prefix-cache "
        "or adapter-store, empty for the host of the address.",
    )

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key go together")
        return self


def tls_to(service: Identity, tls: ChannelTls | None) -> Tls | None:
    """What a connection to a service is made with; None: it is in plaintext."""
    if tls is None:
        return None
    return Tls(tls.ca, tls.certificate, tls.key, tls.name.replace(_SERVICE, service))
