"""Where a gateway is, as people write it and as gRPC takes it."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from paceline.tls import Tls

EXAMPLE = "127.0.0.1:7100"
_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:")
"""Of targets without slashes: https://github.com/grpc/grpc/blob/master/doc/naming.md."""


SECURE, PLAIN = "https://", "http://"


def split(addresses: str | Sequence[str]) -> list[str]:
    """The addresses of some gateways, which may stand in one text with commas between them."""
    if not isinstance(addresses, str):
        return list(addresses)
    # Of these a target of gRPC holds several itself.
    return [addresses] if addresses.startswith(("ipv4:", "ipv6:")) else addresses.split(",")


def is_secure(address: str) -> bool:
    """Whether an address asks for TLS."""
    return address.strip().startswith(SECURE)


def to_target(address: str) -> str:
    """host:port, or another target of gRPC as it is, also where somebody wrote a web address.

    Raises ValueError, in a sentence, for what cannot be one.
    """
    plain = address.strip().removeprefix(PLAIN).removeprefix(SECURE).rstrip("/")
    if plain.startswith(_SCHEMES) or (":" in plain and "://" in plain):
        return plain
    try:
        has_port = urlsplit(f"//{plain}").port is not None
    except ValueError:
        has_port = False
    if not has_port or "/" in plain:
        raise ValueError(f"{address}: an address is host:port, such as {EXAMPLE}")
    return plain


def encryption(address: str, tls: Tls | None) -> Tls | None:
    """With what connections to an address are encrypted; None: in plaintext.

    Raises ValueError where the address says that it is in plaintext and something else that it is not.
    """
    if tls is not None and address.strip().startswith(PLAIN):
        raise ValueError(f"{address}: http:// is in plaintext, and TLS was asked for")
    return Tls() if tls is None and is_secure(address) else tls
