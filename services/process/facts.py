"""What a process says of itself whatever it does: its version, its clock, its disks."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from paceline.v1 import operations_pb2

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
