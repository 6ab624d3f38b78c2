"""Which machine this process runs on."""

import platform
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@cache
def machine_id() -> str:
    """The same for all processes of a machine, containers included, as long as it runs."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return platform.node()
