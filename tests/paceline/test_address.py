"""Addresses are taken as people write them, or refused in a sentence; by commands and by clients alike."""

import pytest

from paceline import Client, SyncClient
from paceline.address import to_target


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:7100", "127.0.0.1:7100"),
        ("http://127.0.0.1:7100", "127.0.0.1:7100"),
        ("http://gateway.example:7100/", "gateway.example:7100"),
        ("https://gateway.example:7100/", "gateway.example:7100"),
        (" localhost:7100\n", "localhost:7100"),
        ("[::1]:7100", "[::1]:7100"),
        ("dns:///gateway:7100", "dns:///gateway:7100"),
        ("unix:///run/paceline", "unix:///run/paceline"),
        ("unix:run/paceline", "unix:run/paceline"),
        ("ipv4:127.0.0.1:7100", "ipv4:127.0.0.1:7100"),
        ("ipv6:[::1]:7100", "ipv6:[::1]:7100"),
        ("dns:gateway:7100", "dns:gateway:7100"),
        ("unix-abstract:paceline", "unix-abstract:paceline"),
    ],
)
def test_what_people_write_is_understood(address: str, target: str) -> None:
    assert to_target(address) == target


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://somewhere", "an address is host:port"),
        ("somewhere", "an address is host:port"),
        ("http://somewhere", "an address is host:port"),
        ("somewhere:7100/path", "an address is host:port"),
        ("somewhere:port", "an address is host:port"),
        ("somewhere:71000", "an address is host:port"),
        ("", "an address is host:port"),
    ],
)
async def test_what_cannot_be_an_address_is_refused_in_words(address: str, says: str) -> None:
    for kind in (Client, SyncClient):
        with pytest.raises(ValueError, match=says):
            kind(address)
