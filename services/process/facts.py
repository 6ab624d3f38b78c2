"""What a process says of itself whatever it does: its version, its clock, its disks, its certificates."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from paceline.tls import TlsError
from paceline.v1 import operations_pb2
from services.common.certificates import read_certificate
from services.common.tls_settings import ChannelTls, ServerTls

PACKAGE_VERSION = version("paceline")


def disks(folders: Mapping[str, Path]) -> list[operations_pb2.Disk]:
    """How much room there is in folders, by what is kept there; one that cannot be looked at has none."""
    found = []
    for use, folder in folders.items():
        try:
            room = shutil.disk_usage(folder)
        except OSError:
            found.append(operations_pb2.Disk(use=use))
        else:
            found.append(operations_pb2.Disk(use=use, free_bytes=room.free, total_bytes=room.total))
    return found


def certificates(server: ServerTls | None, channels: ChannelTls | None) -> list[operations_pb2.Certificate]:
    """What a process shows to those who call it, and to those whom it calls where that is another file."""
    found = []
    if server is not None:
        found.append(_certificate("server", server.certificate, asks_callers=server.client_ca is not None))
    own = None if channels is None else channels.certificate
    if own is not None and (server is None or own != server.certificate):
        found.append(_certificate("calls", own, asks_callers=False))
    return found


def _certificate(use: str, path: Path, *, asks_callers: bool) -> operations_pb2.Certificate:
    try:
        facts = read_certificate(path)
    except TlsError:
        return operations_pb2.Certificate(use=use, asks_callers=asks_callers)
    return operations_pb2.Certificate(
        use=use,
        names=facts.names,
        not_before_seconds=facts.not_before.timestamp(),
        not_after_seconds=facts.not_after.timestamp(),
        asks_callers=asks_callers,
    )
