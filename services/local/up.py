"""`paceline up`: the whole system in one terminal."""

import asyncio
import re
import signal
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from services.local.launcher import Stack
from services.local.system import LaunchError, StackSettings

_LOADED = re.compile(r"loading weights: (\d+) %")
_COLOURS = {
    "prefix_cache": "magenta", "adapter_store": "blue", "draft": "yellow", "verifier": "green", "gateway": "cyan",
    "paceline": "bold",
}  # fmt: skip


async def keep_running(settings: StackSettings, console: Console) -> int:
    """Runs until SIGINT or SIGTERM (0) or until a process has failed for good (1)."""

    bars = Progress(
        SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}

    def on_line(name: str, line: str) -> None:
        if (loaded := _LOADED.search(line)) and name in tasks:
            bars.update(tasks[name], completed=int(loaded[1]))
            return
        console.print(Text(f"{name:>13} ", _COLOURS[name]) + Text(line))

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stack = Stack(settings, on_line)
    starting = asyncio.create_task(_start(stack, bars, tasks))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return 0
        await starting
        on_line("paceline", f"ready: the gateway listens on {stack.address()}. Ctrl-C stops everything.")
        waiting: list[asyncio.Future[Any]] = [stopped, stack.failed]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return 0
        on_line("paceline", stack.failed.result())
    except LaunchError as error:
        on_line("paceline", str(error))
    finally:
        starting.cancel()
        stopped.cancel()
        on_line("paceline", "stopping")
        await stack.stop()
    return 1


async def _start(stack: Stack, bars: Progress, tasks: dict[str, TaskID]) -> None:
    """Starts the stack behind progress bars, one a process, that fill as its weights are loaded."""
    with bars:
        tasks.update({name: bars.add_task(f"{name}: loading", total=100) for name in stack.settings.names})
        await stack.start(lambda name: bars.update(tasks[name], description=f"{name}: serving", completed=100))
