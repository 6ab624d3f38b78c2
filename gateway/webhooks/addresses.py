"""Which addresses webhooks may have: public ones, and those of networks that the settings name.

A name is resolved once for every attempt, and what is connected to is the address that was checked: a name that leads
elsewhere a moment later (DNS rebinding) leads nowhere.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeAlias
from urllib.parse import urlsplit

from paceline.errors import FailedPreconditionError, InvalidArgumentError

_MAX_CHARACTERS = 2048
_RESOLVE_SECONDS = 5.0
_NAT64 = ip_network("64:ff9b::/96")
_PORTS = {"https": 443, "http": 80}
IpAddress: TypeAlias = IPv4Address | IPv6Address
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Addresses of a host, for a port. Raises OSError."""


class Addresses:
    """Checks where messages may go."""

    def __init__(self, networks: Sequence[str], resolve: Resolve | None = None) -> None:
        """`networks` are allowed although they may be private, and without encryption."""
        self._networks = [ip_network(network) for network in networks]
        self._resolve = resolve or _resolve

    def check(self, url: str) -> None:
        """Raises InvalidArgumentError for what cannot be an address of a webhook."""
        problem = self._problem(url)
        if problem:
            raise InvalidArgumentError("url", problem)

    async def resolve(self, url: str) -> list[str]:
        """The IP addresses of a webhook that may be connected to. Raises OSError, FailedPreconditionError for none."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await self._resolve(host, port)
        allowed = [text for text in found if self._may_have(parts.scheme, ip_address(text.partition("%")[0]))]
        if not allowed:
            raise FailedPreconditionError(f"{host} has no address that a webhook may have")
        return allowed

    def _problem(self, url: str) -> str:
        if len(url) > _MAX_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
            return f"must be at most {_MAX_CHARACTERS} printable ASCII characters"
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            return "is no URL"
        if parts.scheme != "https" and not (parts.scheme == "http" and self._networks):
            return "must begin with https://"
        if not host or parts.username is not None or parts.fragment:
            return "must have a host, and neither a user nor a fragment"
        try:
            address = ip_address(host)
        except ValueError:
            return ""
        return "" if self._may_have(parts.scheme, address) else "is an address that a webhook may not have"

    def _may_have(self, scheme: str, address: IpAddress) -> bool:
        meant = _meant(address)
        if any(meant in network for network in self._networks):
            return True
        return scheme == "https" and meant.is_global and not meant.is_multicast


def _meant(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 one leads to, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)


async def _resolve(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
