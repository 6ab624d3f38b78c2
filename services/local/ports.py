"""Ports of this machine: which are free, and who listens on them."""

import socket

import psutil


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(process_id: int, port: int) -> bool:
    """Whether it is this process that listens on the port, and not somebody else."""
    try:
        connections = psutil.Process(process_id).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)
