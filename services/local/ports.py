"""Ports of this machine: which are free, and who listens on them."""

import os
import socket
from collections.abc import Iterator
from itertools import cycle

import psutil

_OFFERED = range(20_000, 30_000)
"""Below those that Linux, unless told otherwise, gives to whoever asks for any: a port that is free now is not taken by
somebody's outgoing connection before it is used. Above are those of Kubernetes."""
_FIRST = os.getpid() * 6181 % len(_OFFERED)
"""Processes begin far from each other, by the golden section, so that two are not given the same one at once."""
_candidates: Iterator[int] = cycle((*_OFFERED[_FIRST:], *_OFFERED[:_FIRST]))


def free_port() -> int:
    """A TCP port of loopback that nobody listens on, and that this process was not given of late.

    Raises OSError when there is none.
    """
    for _ in _OFFERED:
        port = next(_candidates)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no TCP port of loopback is free")


def listens(process_id: int, port: int) -> bool:
    """Whether it is this process that listens on the port, and not somebody else."""
    try:
        connections = psutil.Process(process_id).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)
