"""Starts draft, verifier and gateway as processes of this machine, watches them, and stops them cleanly."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.channel import open_channel
from services.common.tokens import new_signing_key, public_key
from services.local.system import LaunchError, StackSettings

LineSink = Callable[[str, str], None]
"""Takes (process name, log line)."""

_ROOT = Path(__file__).resolve().parent.parent.parent
_HEALTH_POLL_SECONDS = 0.1
_STOP_SECONDS = 15.0
_MAX_RESTARTS = 5
_SPIN_COUNT = 20_000
"""Rounds, some 50 ns each, that an idle OpenMP thread spins before it sleeps: through the gaps of a step and between
two steps that follow each other, not through the wait for a proposal, whose draft wants the core."""
_SPIN_COUNT_ALONE = 100_000


class Stack:
    """The processes of one system, by the names that its settings give them."""

    def __init__(self, settings: StackSettings, on_line: LineSink | None = None) -> None:
        self._own_folder = tempfile.TemporaryDirectory(prefix="paceline-adapters-")
        self.settings = replace(settings, adapter_folder=settings.adapter_folder or self._own_folder.name)
        self._on_line = on_line
        self.addresses = {
            name: f"{settings.host}:{getattr(settings, f'{name}_port') or free_port()}" for name in settings.names
        }
        self.signing_key = new_signing_key()
        """Signs tokens for prefix cache and adapter store."""
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set to a sentence when a process has died and will not be started again."""

    def address(self, name: str = "gateway") -> str:
        """host:port of a process."""
        return self.addresses[name]

    async def start(self, on_ready: Callable[[str], None] | None = None) -> None:
        """Starts all processes and returns when all are serving. Raises LaunchError when one is not."""
        for name in self.settings.names:
            await self._spawn(name)
        waits = [asyncio.create_task(self._wait_ready(name, on_ready)) for name in self.settings.names]
        everything = asyncio.gather(*waits)
        waiting: list[asyncio.Future[Any]] = [everything, self.failed]
        done, _ = await asyncio.wait(waiting, timeout=self.settings.ready_seconds, return_when=asyncio.FIRST_COMPLETED)
        if everything not in done:
            everything.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await everything
            reason = self.failed.result() if self.failed.done() else "not ready in time"
            raise LaunchError(reason)
        await everything

    async def stop(self) -> None:
        """Ends the gateway, which lets its streams finish, then what served them; kills what does not end in time."""
        self._stopping = True
        for first in (True, False):
            await self._end([process for name, process in self.processes.items() if (name == "gateway") is first])
        for task in self._tasks:
            await task
        self._own_folder.cleanup()

    @staticmethod
    async def _end(running: Sequence[asyncio.subprocess.Process]) -> None:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        if running:
            await asyncio.wait([asyncio.create_task(p.wait()) for p in running], timeout=_STOP_SECONDS)
        for process in running:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def kill(self, name: str) -> None:
        """Kills a process at once, as a crash would."""
        self.processes[name].kill()

    async def _spawn(self, name: str) -> None:
        spin = _SPIN_COUNT if self.settings.draft_model else _SPIN_COUNT_ALONE
        environment = {"GOMP_SPINCOUNT": str(spin), **os.environ, "PYTHONUNBUFFERED": "1"}
        paths = [str(_ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        if name == "gateway":
            environment["PACELINE_GATEWAY_SIGNING_KEY"] = self.signing_key
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway" if name == "gateway" else f"services.{name}",
            *self.settings.arguments(name, self.addresses, public_key(self.signing_key)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self.processes[name] = process
        self._tasks.append(asyncio.create_task(self._watch(name, process)))

    async def _watch(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Passes log lines on until the process ends, then starts it again or says that it failed."""
        if process.stdout is None:
            raise LaunchError(f"{name} has no output")
        last = ""
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            last = line or last
            if self._on_line is not None:
                self._on_line(name, line)
        code = await process.wait()
        if self._stopping:
            return
        if self._on_line is not None:
            self._on_line(name, f"ended with exit code {code}")
        restarts = sum(1 for task in self._tasks if task.get_name() == f"restart-{name}")
        if self.settings.restart and restarts < _MAX_RESTARTS:
            self._tasks.append(asyncio.create_task(self._respawn(name, 2.0**restarts / 4), name=f"restart-{name}"))
        elif not self.failed.done():
            self.failed.set_result(f"{name} ended with exit code {code}: {last}")

    async def _respawn(self, name: str, delay: float) -> None:
        await asyncio.sleep(delay)
        if not self._stopping:
            await self._spawn(name)

    async def _wait_ready(self, name: str, on_ready: Callable[[str], None] | None) -> None:
        await wait_serving(self.address(name))
        if on_ready is not None:
            on_ready(name)


async def wait_serving(address: str) -> None:
    """Returns once the server's health says SERVING."""
    async with open_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                response = await health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
            await asyncio.sleep(_HEALTH_POLL_SECONDS)


@asynccontextmanager
async def running_stack(
    settings: StackSettings, on_line: LineSink | None = None, on_ready: Callable[[str], None] | None = None
) -> AsyncIterator[Stack]:
    """A stack that is serving, until the block ends."""
    stack = Stack(settings, on_line)
    try:
        await stack.start(on_ready)
        yield stack
    finally:
        await stack.stop()


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
