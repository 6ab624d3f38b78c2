"""Processes are started once until all serve, started again when they die, and given up when they keep dying."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.local import launcher as launchers
from services.local.child import GRPC_EXPERIMENTS, Child
from services.local.errors import LaunchError
from services.local.launcher import Launcher, Listener
from services.local.pair import Pair
from services.local.ports import listens
from services.local.system import GATEWAY, Process, System, SystemSettings, make_system

CACHE = "prefix-cache"
MANY = 2 * launchers._MAX_RESTARTS


class Lines(Listener):
    """Keeps all lines, each behind its process's name."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_line(self, name: str, line: str) -> None:
        self.lines.append(f"{name} {line}")


@pytest.fixture
async def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Launcher]:
    """A prefix cache alone, which is started again at once."""
    monkeypatch.setattr(launchers, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(launchers, "_MOST_PAUSE", 0.001)
    settings = SystemSettings((Pair(model="org/model"),), restart=True, prefix_cache=True)
    async with started(alone(CACHE, settings, tmp_path)) as launcher:
        yield launcher


def alone(name: str, settings: SystemSettings, folder: Path) -> System:
    """A system of one of its processes."""
    system = make_system(settings, folder)
    return system._replace(processes=tuple(process for process in system.processes if process.name == name))


@asynccontextmanager
async def started(system: System) -> AsyncIterator[Launcher]:
    launcher = Launcher(system)
    try:
        await launcher.start()
        yield launcher
    finally:
        await launcher.stop()


async def crash(launcher: Launcher, times: int) -> None:
    """Kills the cache so many times, each time as soon as it was started again."""
    for _ in range(times):
        before = launcher.children[CACHE]
        before.signal(signal.SIGKILL)
        while launcher.children[CACHE] is before and not launcher.failed.done():
            await asyncio.sleep(0.001)


async def test_what_keeps_dying_is_given_up(cache: Launcher) -> None:
    await crash(cache, launchers._MAX_RESTARTS)
    assert not cache.failed.done()
    await crash(cache, 1)
    assert (await cache.failed).startswith("the prefix-cache ended (exit code -9)")


async def test_crashes_of_long_ago_do_not_count(cache: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "_LONG_RUN_SECONDS", -1.0)  # All that ran is taken to have run for long.
    await crash(cache, MANY)
    assert not cache.failed.done()


async def test_what_is_started_while_all_is_stopped_is_stopped_too(
    cache: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, begun, may_go_on = Child.spawn, asyncio.Event(), asyncio.Event()

    async def slowly(process: Process) -> Child:
        begun.set()
        await may_go_on.wait()
        return await spawn(process)

    monkeypatch.setattr(Child, "spawn", slowly)
    cache.kill(CACHE)
    await begun.wait()
    stopping = asyncio.create_task(cache.stop())
    while not cache._stopping.is_set():
        await asyncio.sleep(0)
    may_go_on.set()
    await stopping
    assert cache.children[CACHE].returncode == -signal.SIGKILL


async def test_what_cannot_start_is_tried_once_and_said_in_a_sentence(tmp_path: Path) -> None:
    """A folder without a tokenizer."""
    system = alone(GATEWAY, SystemSettings((Pair(model=str(tmp_path)),), restart=True), tmp_path)
    heard = Lines()
    launcher = Launcher(system, heard)
    try:
        with pytest.raises(LaunchError, match=rf"^the gateway could not start .*{tmp_path}.*") as caught:
            await launcher.start()
    finally:
        await launcher.stop()
    assert "\n" not in str(caught.value)
    assert [line for line in heard.lines if "ended with exit code" in line] == ["gateway ended with exit code 1"]


def test_who_listens_on_a_port_is_told_from_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listens(os.getpid(), port)
        assert not listens(os.getppid(), port)
    assert not listens(os.getpid(), port)


async def test_lines_of_any_length_are_passed_on() -> None:
    program = "print('x' * 300_000); print('y' * 3_000_000); print('the end')"
    child_end, ours = os.pipe()
    os.close(child_end)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    lines: list[str] = []
    assert await Child(process, ours).read(lines.append) == 0
    assert lines[0] == "x" * 300_000
    assert "".join(lines[1:-1]) == "y" * 3_000_000
    assert lines[-1] == "the end"


def test_grpc_knows_the_way_that_processes_have_it_take() -> None:
    begun = subprocess.run(
        [sys.executable, "-c", "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"],
        env={**os.environ, "GRPC_EXPERIMENTS": GRPC_EXPERIMENTS}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "xperiment" not in begun.stderr
