"""Ports that are free stay so until they are used."""

import socket
from pathlib import Path

import pytest

from services.local import ports


def test_a_port_is_not_given_twice_and_is_none_of_those_that_connections_get() -> None:
    given = [ports.free_port() for _ in range(500)]
    assert len(set(given)) == len(given)
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert (low, high) != (32768, 60999) or max(given) < low, "Linux has its usual range"


def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    free = ports.free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.free_port()))
        taken.listen()
        offered = [taken.getsockname()[1], free]
        monkeypatch.setattr(ports, "_candidates", iter(offered))
        assert ports.free_port() == free


def test_where_none_is_free_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.free_port()))
        monkeypatch.setattr(ports, "_OFFERED", range(3))
        monkeypatch.setattr(ports, "_candidates", iter([taken.getsockname()[1]] * 3))
        with pytest.raises(OSError, match="no TCP port of loopback is free"):
            ports.free_port()
