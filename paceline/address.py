"""Where a gateway is, as people write it and as gRPC takes it."""

from urllib.parse import urlsplit

EXAMPLE = "127.0.0.1:7100"
_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:")
"""Of targets without slashes: https://github.com/grpc/grpc/blob/master/doc/naming.md."""


def to_target(address: str) -> str:
    """host:port, or another target of gRPC as it is, also where somebody wrote a web address.

    Raises ValueError, in a sentence, for what cannot be one.
    """
    plain = address.strip().removeprefix("http://").rstrip("/")
    if plain.startswith("https://"):
        raise ValueError(f"{address}: connections are not encrypted here; host:port is enough")
    if plain.startswith(_SCHEMES) or (":" in plain and "://" in plain):
        return plain
    try:
        has_port = urlsplit(f"//{plain}").port is not None
    except ValueError:
        has_port = False
    if not has_port or "/" in plain:
        raise ValueError(f"{address}: an address is host:port, such as {EXAMPLE}")
    return plain
