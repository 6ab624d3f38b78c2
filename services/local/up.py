"""`paceline up`: a whole system in one terminal."""

import asyncio
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from paceline import Client, PacelineError
from paceline.v1.model_pb2 import Model, ModelInfo
from services.local.errors import LaunchError
from services.local.launcher import Launcher, Listener, get_ready
from services.local.loading import ask_room
from services.local.system import Process, System, SystemSettings, make_system
from services.model_server.settings import ModelServerSettings

_COLOURS = {
    "prefix-cache": "magenta", "adapter-store": "blue", "draft": "yellow", "verifier": "green", "gateway": "cyan",
    "paceline": "bold",
}  # fmt: skip
_DEFAULT_PORT = 7100


async def keep_running(settings: SystemSettings, console: Console) -> int:
    """Runs until SIGINT or SIGTERM (0) or until a process has failed for good (1). A second signal kills."""
    with tempfile.TemporaryDirectory(prefix="paceline-") as own_folder:
        try:
            system = make_system(await get_ready(settings), Path(own_folder))
        except LaunchError as error:
            console.print(Text(str(error), "red"))
            return 1
        return await _Terminal(system, console, is_quiet=settings.log_level in ("WARNING", "ERROR")).run()


class _Terminal(Listener):
    """Bars while processes start, their lines when they run, and what to type next."""

    def __init__(self, system: System, console: Console, *, is_quiet: bool) -> None:
        self._console = console
        self._launcher = Launcher(system, self)
        self._width = max(len(process.name) for process in system.processes)
        self._bars = Progress(
            SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._kinds = {process.name: process.kind for process in system.processes}
        self._held: list[tuple[str, str]] | None = [] if is_quiet else None
        """Lines of the start, which are shown once it has succeeded: if it does not, one sentence says why."""
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        running = asyncio.create_task(self._run())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                self._say("stopping; Ctrl-C once more kills")
                return 0
            self._say(running.result())
            return 1
        except (LaunchError, PacelineError) as error:
            self._say(str(error), "red")
            return 1
        finally:
            running.cancel()
            stopped.cancel()
            await asyncio.gather(running, stopped, return_exceptions=True)
            self._held = []
            await self._launcher.stop()
            if self._stop.is_set():
                self._say("stopped")

    def on_line(self, name: str, line: str) -> None:
        """See Listener."""
        if self._held is not None:
            self._held.append((name, line))
            return
        self._console.print(Text(f"{name:>{self._width}} ", _COLOURS[self._kinds[name]]) + Text(line))

    def on_progress(self, name: str, doing: str, fraction: float) -> None:
        """See Listener."""
        self._bars.update(self._tasks[name], description=f"{name:<{self._width}}  {doing:<22}", completed=fraction)

    def on_ready(self, name: str) -> None:
        """See Listener."""
        self.on_progress(name, "serving", 1.0)

    async def _run(self) -> str:
        """Starts the system, and returns why it has failed for good."""
        began = time.monotonic()
        with self._bars:
            for process in self._launcher.system.processes:
                self._tasks[process.name] = self._bars.add_task("", total=1.0)
                self.on_progress(process.name, "starting", 0.0)
            await self._launcher.start()
        held, self._held = self._held, None
        for name, line in held or ():
            self.on_line(name, line)
        async with Client(self._launcher.address(), tls=self._launcher.client_tls) as client:
            models = await client.list_models()
        engines = [process for process in self._launcher.system.processes if process.has_engine]
        rooms = dict(
            zip(
                (p.name for p in engines),
                await asyncio.gather(*(ask_room(p.address, self._launcher.tls_to(p)) for p in engines)),
                strict=True,
            )
        )
        self._show(models, rooms, time.monotonic() - began)
        return await self._launcher.failed

    def _show(self, models: Sequence[Model], rooms: Mapping[str, int], seconds: float) -> None:
        """Prints what runs, where, on how many threads and with room for how many tokens, and what to type next."""
        table = Table(box=None, show_header=False, pad_edge=False)
        for model in models:
            table.add_row("model", _described(model.target))
            table.add_row("draft", _described(model.draft) if model.draft.id else model.draft_problem or "none")
        for process in self._launcher.system.processes:
            room = rooms.get(process.name)
            metrics = f", metrics at http://{process.metrics_address}/metrics" if process.metrics_address else ""
            resources = "" if room is None else _resources(process, room)
            table.add_row(process.name, f"{process.address}{resources}{metrics}")
        port = self._launcher.system.processes[-1].port
        where = "" if port == _DEFAULT_PORT else f" --address {self._launcher.address()}"
        folder = self._launcher.system.certificates
        if folder is not None:
            where = f" --address https://{self._launcher.address()} --ca {folder.ca}"
        which = f" --model {models[0].target.id}" if len(models) > 1 else ""
        self._console.print(table)
        self._console.print(f"\nReady after {seconds:.0f} s. In another terminal:", markup=False)
        self._console.print(f'  paceline generate "def fibonacci(n):" --temperature 0{which}{where}', markup=False)
        self._console.print(f"  paceline chat{which}{where}", markup=False)
        self._console.print("Ctrl-C stops everything.", markup=False)

    def _say(self, what: str, style: str = "") -> None:
        self._console.print(Text(what, style))

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._launcher.kill_all()
        self._stop.set()


def _resources(process: Process, room: int) -> str:
    """What a process with an engine has to work with."""
    engine = process.settings.engine if isinstance(process.settings, ModelServerSettings) else None
    threads = engine.num_threads if engine is not None else None
    return f", room for {room:,} tokens" + (f", {threads} thread{'s' if threads > 1 else ''}" if threads else "")


def _described(info: ModelInfo) -> str:
    return f"{info.id}, {info.num_parameters / 1e6:.1f} M parameters, {info.dtype} on {info.device}"
