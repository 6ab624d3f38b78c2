"""`paceline up`: the whole system in one terminal."""

import asyncio
import signal
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from gateway.launcher import LaunchError, Stack, StackSettings

_COLOURS = {"draft": "yellow", "verifier": "green", "gateway": "cyan", "paceline": "bold"}


async def keep_running(settings: StackSettings, console: Console) -> int:
    """Runs until SIGINT or SIGTERM (0) or until a process has failed for good (1)."""

    def on_line(name: str, line: str) -> None:
        console.print(Text(f"{name:>8} ", _COLOURS[name]) + Text(line))

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stack = Stack(settings, on_line)
    starting = asyncio.create_task(_start(stack, console))
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


async def _start(stack: Stack, console: Console) -> None:
    """Starts the stack behind a progress display, one line a process."""
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {name: progress.add_task(f"{name}: loading", total=1) for name in stack.names}
        await stack.start(lambda name: progress.update(tasks[name], description=f"{name}: serving", completed=1))
