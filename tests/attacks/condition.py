"""What processes hold: memory and open files, by name."""

import asyncio
import time
from collections.abc import Mapping
from typing import NamedTuple

import psutil

_SETTLE_SECONDS = 30.0
_PAUSE_SECONDS = 0.25
_MORE_FILES = 24


class Condition(NamedTuple):
    """Of one process."""

    megabytes: float
    num_files: int
    """Open files and connections."""


def conditions(pids: Mapping[str, int]) -> dict[str, Condition]:
    """What processes hold now. Raises psutil.NoSuchProcess for one that has ended."""
    found = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        found[name] = Condition(process.memory_info().rss / 1e6, process.num_fds())
    return found


async def settled(pids: Mapping[str, int], before: Mapping[str, Condition]) -> dict[str, Condition]:
    """What processes hold once files are as before; or after half a minute, whatever it is."""
    give_up = time.monotonic() + _SETTLE_SECONDS
    while True:
        now = conditions(pids)
        if not left_open(before, now) or time.monotonic() > give_up:
            return now
        await asyncio.sleep(_PAUSE_SECONDS)


def left_open(before: Mapping[str, Condition], now: Mapping[str, Condition]) -> dict[str, int]:
    """How many more files processes have open than before, where that is more than a pool of connections takes."""
    more = {name: now[name].num_files - before[name].num_files for name in before}
    return {name: count for name, count in more.items() if count > _MORE_FILES}
