"""Starts the processes of a system, watches them, starts again what dies, and stops all of them cleanly."""

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from gateway.settings import GatewaySettings
from paceline import Client, Tls
from services.common.backoff import Backoff
from services.common.identities import Identity
from services.common.tls_settings import tls_to
from services.local.child import Child
from services.local.errors import LaunchError
from services.local.loading import wait_serving, watch_loading
from services.local.ports import listens
from services.local.preflight import check_processes
from services.local.system import GATEWAY, Process, System, SystemSettings, make_system

_STOP_SECONDS = 15.0
_STOP_EARLY_SECONDS = 0.5
"""The same for processes that have not served yet: no stream waits for them, and loading cannot be interrupted."""
_FIRST_PAUSE = 0.5
_MOST_PAUSE = 10.0
_MAX_RESTARTS = 5
_DRAFT_SECONDS = 5.0
_POLL_SECONDS = 0.05
_LONG_RUN_SECONDS = 60.0
"""Who ran for so long has recovered from what it died of before."""


class Listener:
    """Is told what happens to processes, by name. It does nothing with it."""

    def on_line(self, name: str, line: str) -> None:
        """A process has written a line."""

    def on_progress(self, name: str, doing: str, fraction: float) -> None:
        """A process is on its way: it is doing something, of which a fraction is done."""

    def on_ready(self, name: str) -> None:
        """A process serves for the first time."""


class Launcher:
    """The running processes of one system."""

    def __init__(self, system: System, listener: Listener | None = None) -> None:
        self.system = system
        self.children: dict[str, Child] = {}
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set to a sentence when a process has died and will not be started again."""
        self._listener = listener or Listener()
        self._processes = {process.name: process for process in system.processes}
        self._watching: list[asyncio.Task[None]] = []
        self._is_ready = False
        self._stopping = asyncio.Event()

    def address(self, name: str = GATEWAY) -> str:
        """host:port of a process."""
        return self._processes[name].address

    @property
    def client_tls(self) -> Tls | None:
        """What a client's connection to the gateway is made with; None: it is in plaintext."""
        folder = self.system.certificates
        if folder is None:
            return None
        return tls_to(Identity.GATEWAY, folder.channels(Identity.CLIENT))

    def tls_to(self, process: Process) -> Tls | None:
        """What a process is asked with, in the gateway's name; None: in plaintext."""
        folder = self.system.certificates
        return None if folder is None else tls_to(Identity(process.kind), folder.channels(Identity.GATEWAY))

    async def start(self) -> None:
        """Starts all processes and returns when all are serving. Raises LaunchError when one cannot."""
        check_processes(self.system.processes)
        for process in self.system.processes:
            self.children[process.name] = await Child.spawn(process)
            self._watching.append(asyncio.create_task(self._watch(process)))
        waits = asyncio.create_task(self._wait_all())
        try:
            await asyncio.wait(
                (waits, self.failed), timeout=self.system.ready_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if self.failed.done():
                raise LaunchError(self.failed.result())
            if not waits.done():
                raise LaunchError(f"not all processes were ready within {self.system.ready_seconds:.0f} s")
            await waits
        finally:
            waits.cancel()
            await asyncio.wait([waits])
        self._is_ready = True

    async def stop(self) -> None:
        """Ends the gateway, which lets its streams finish, then what served them; kills what does not end in time."""
        self._stopping.set()
        for first in (True, False):
            await self._end([child for name, child in self.children.items() if (name == GATEWAY) is first])
        await asyncio.gather(*self._watching)

    def kill(self, name: str) -> None:
        """Kills a process at once, as a crash would."""
        self.children[name].signal(signal.SIGKILL)

    def kill_all(self) -> None:
        """Kills all processes at once."""
        for name in self.children:
            self.kill(name)

    async def _end(self, children: Sequence[Child]) -> None:
        seconds = _STOP_SECONDS if self._is_ready else _STOP_EARLY_SECONDS
        for child in children:
            child.signal(signal.SIGTERM)
        if children:
            await asyncio.wait([asyncio.create_task(child.wait()) for child in children], timeout=seconds)
        for child in children:
            child.signal(signal.SIGKILL)
            await child.wait()

    async def _watch(self, process: Process) -> None:
        """Passes on what a process writes; starts it again when it dies, or says that it failed."""
        name, loop = process.name, asyncio.get_running_loop()
        backoff, num_restarts = Backoff(_FIRST_PAUSE, _MOST_PAUSE), 0
        while True:
            child, started = self.children[name], loop.time()
            code = await child.read(lambda line: self._listener.on_line(name, line))
            if self._stopping.is_set():
                return
            if loop.time() - started > _LONG_RUN_SECONDS:
                backoff.worked()
                num_restarts = 0
            self._listener.on_line(name, f"ended with exit code {code}")
            if not self._is_ready or not self.system.restart or num_restarts == _MAX_RESTARTS:
                if self._is_ready and process.kind == "draft":
                    self._listener.on_line(name, "is not started again; the system goes on without it")
                elif not self.failed.done():
                    verb = "ended" if self._is_ready else "could not start"
                    self.failed.set_result(f"the {name} {verb} (exit code {code}): {child.last_words()}")
                return
            num_restarts += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.failed()):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            try:
                self.children[name] = await Child.spawn(process)
            except OSError as error:
                if not self.failed.done():
                    self.failed.set_result(f"the {name} could not be started again: {error}")
                return
            if self._stopping.is_set():  # Whoever stops has looked at its predecessor.
                self.children[name].signal(signal.SIGKILL)

    async def _wait_all(self) -> None:
        """Waits until all processes serve, and the gateway knows that they do."""
        await asyncio.gather(*(self._wait_ready(process) for process in self.system.processes))
        for process in self.system.processes:
            if isinstance(process.settings, GatewaySettings):
                await self._wait_known(process.settings)

    async def _wait_known(self, settings: GatewaySettings) -> None:
        """Waits until the gateway has heard of all its models, and for a while of their drafts, which may not suit."""
        with_draft = {model.id for model in settings.models if model.drafts}
        loop = asyncio.get_running_loop()
        enough = loop.time() + _DRAFT_SECONDS
        async with Client(self.address(), tls=self.client_tls) as client:
            while True:
                models = await client.list_models()
                drafts = {model.target.id for model in models if model.draft.id or model.draft_problem}
                if all(model.available for model in models) and (with_draft <= drafts or loop.time() > enough):
                    return
                await asyncio.sleep(_POLL_SECONDS)

    async def _wait_ready(self, process: Process) -> None:
        name, tls = process.name, self.tls_to(process)
        if process.has_engine:
            await watch_loading(
                process.address, lambda doing, fraction: self._listener.on_progress(name, doing, fraction), tls
            )
        await wait_serving(process.address, lambda: listens(self.children[name].pid, process.port), tls)
        self._listener.on_ready(name)


async def get_ready(settings: SystemSettings) -> SystemSettings:
    """The same settings, once each model was looked at and lies in a folder. Raises LaunchError."""
    for pair in settings.models:
        pair.check()
    return replace(settings, models=tuple([await pair.ready() for pair in settings.models]))


@asynccontextmanager
async def running(settings: SystemSettings, listener: Listener | None = None) -> AsyncIterator[Launcher]:
    """A system that is serving, until the block ends. Raises LaunchError when it cannot be started."""
    settings = await get_ready(settings)
    with tempfile.TemporaryDirectory(prefix="paceline-") as own_folder:
        launcher = Launcher(make_system(settings, Path(own_folder)), listener)
        try:
            await launcher.start()
            yield launcher
        finally:
            await launcher.stop()
