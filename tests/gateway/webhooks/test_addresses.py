"""Webhooks go to public addresses, and to networks that the settings name."""

from collections.abc import Sequence

import pytest

from gateway.webhooks.addresses import Addresses
from paceline.errors import FailedPreconditionError, InvalidArgumentError

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fc00::1", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "2002:7f00:1::",
    "64:ff9b::a9fe:a9fe", "2001:0:7f00:1:0:ffff:80ff:fffe",
]  # fmt: skip
PUBLIC = ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"]


def resolving(*found: str, networks: Sequence[str] = ()) -> Addresses:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return found

    return Addresses(networks, resolve)


@pytest.mark.parametrize("address", PRIVATE)
async def test_what_is_not_public_is_refused_however_it_is_written(address: str) -> None:
    written = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidArgumentError):
        Addresses(()).check(f"https://{written}/hook")
    with pytest.raises(FailedPreconditionError):
        await resolving(address).resolve("https://hooks.example/hook")
    assert await resolving(address, PUBLIC[0]).resolve("https://hooks.example/hook") == [PUBLIC[0]]


@pytest.mark.parametrize("address", PUBLIC)
async def test_what_is_public_is_allowed_with_encryption(address: str) -> None:
    written = f"[{address}]" if ":" in address else address
    Addresses(()).check(f"https://{written}:8443/hook?a=b")
    assert await resolving(address).resolve("https://hooks.example/hook") == [address]
    with pytest.raises(FailedPreconditionError):
        await resolving(address, networks=["10.0.0.0/8"]).resolve("http://hooks.example/hook")


async def test_a_network_of_the_settings_is_allowed_without_encryption_too() -> None:
    addresses = resolving("10.1.2.3", "192.168.1.1", networks=["10.0.0.0/8"])
    addresses.check("http://10.1.2.3/hook")
    assert await addresses.resolve("http://hooks.internal/hook") == ["10.1.2.3"]
    with pytest.raises(InvalidArgumentError):
        addresses.check("http://192.168.1.1/hook")


@pytest.mark.parametrize(
    "url",
    ["", "hooks.example", "http://hooks.example/", "ftp://hooks.example/", "https://", "https://user:x@hooks.example/",
     "https://hooks.example/#part", "https://hooks.example:port/", "https://[::1/", "https://hööks.example/",
     "https://hooks.example/a b", "https://hooks.example/\n", "https://hooks.example/" + "a" * 2048],
)  # fmt: skip
def test_what_is_no_address_of_a_webhook_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Addresses(()).check(url)


async def test_a_name_is_resolved() -> None:
    assert "127.0.0.1" in await Addresses(["127.0.0.0/8", "::1/128"]).resolve("http://localhost/hook")
