"""A system with two verifiers of one model, either of which can be taken away while streams run."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import psutil

from paceline import Client
from services.local.child import Child
from services.local.launcher import Launcher, running
from services.local.loading import wait_serving
from services.local.pair import Pair
from services.local.ports import free_port
from services.local.system import Process, SystemSettings

FIRST, _SECOND = "verifier", "verifier 2"
_WATCH_SECONDS = 0.06
"""Long enough for the processor's time of a process, which counts in hundredths of a second, to say who is at work."""
_BUSY_SHARE = 0.25
_NUM_TEXTS, _TEXT_TOKENS = 6, 32
"""Short texts that begin differently: some of them come to each verifier that is there."""


class TwoVerifiers:
    """The two processes, and the gateway's client."""

    def __init__(self, launcher: Launcher, client: Client, processes: Mapping[str, Process]) -> None:
        self.client = client
        self.address = launcher.address()
        """The gateway's."""
        self._children = launcher.children
        self._processes = processes
        self._reading: dict[str, asyncio.Task[int]] = {}
        self._numbers = count()

    async def start(self, name: str) -> None:
        """Starts one, and returns when it serves."""
        process = self._processes[name]
        child = self._children[name] = await Child.spawn(process)
        self._reading[name] = asyncio.create_task(child.read(lambda _: None))
        await wait_serving(process.address, lambda: child.returncode is None)

    async def busy(self) -> str:
        """Name of the one that computes the only stream there is."""
        while True:
            before = self._seconds()
            await asyncio.sleep(_WATCH_SECONDS)
            used = {name: seconds - before[name] for name, seconds in self._seconds().items()}
            most, least = sorted(used, key=used.__getitem__, reverse=True)
            if used[most] > _BUSY_SHARE * _WATCH_SECONDS > 2 * used[least]:
                return most

    def kill(self, name: str) -> None:
        """Ends one as a crash does."""
        self._children[name].signal(signal.SIGKILL)

    def pause(self, name: str) -> None:
        """Has one stand still, its connections with it."""
        self._children[name].signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Has it go on."""
        self._children[name].signal(signal.SIGCONT)

    async def back(self, name: str, *, killed: bool) -> None:
        """Has one come back, and returns when the gateway uses both."""
        if killed:
            await self._children[name].wait()
            await self.start(name)
        else:
            self.go_on(name)
        await self.in_use()

    async def in_use(self) -> None:
        """Returns when the gateway has both compute something."""
        unused = {FIRST, _SECOND}
        while unused:
            await asyncio.sleep(_WATCH_SECONDS)
            before = self._seconds()
            texts = [f"{next(self._numbers)} = " for _ in range(_NUM_TEXTS)]
            await asyncio.gather(*(self._text(text) for text in texts))
            unused -= {name for name, seconds in self._seconds().items() if seconds - before[name] >= _WATCH_SECONDS}

    async def _text(self, prompt: str) -> None:
        async for _ in self.client.generate(prompt, max_tokens=_TEXT_TOKENS, ignore_eos=True, speculation=False):
            pass

    def _seconds(self) -> dict[str, float]:
        """What each has used of the processors."""
        times = {name: psutil.Process(self._children[name].pid).cpu_times() for name in self._processes}
        return {name: used.user + used.system for name, used in times.items()}


@asynccontextmanager
async def two_verifiers(
    pair: Pair, *, prefix_cache: bool, adapter_store: bool = False, gateway: Mapping[str, Any] | None = None
) -> AsyncIterator[TwoVerifiers]:
    """Two verifiers of a model and a gateway of these settings, with the pair's draft if it has one."""
    ports = {FIRST: free_port(), "draft": free_port()}
    second = free_port()
    model = {
        "id": pair.public_id,
        "tokenizer": pair.model,
        "verifiers": [f"127.0.0.1:{port}" for port in (ports[FIRST], second)],
        "drafts": [f"127.0.0.1:{ports['draft']}"] if pair.draft else [],
    }
    settings = SystemSettings(
        (pair,),
        ports=ports,
        log_level="WARNING",
        prefix_cache=prefix_cache,
        adapter_store=adapter_store,
        overrides={"gateway": {"models": [model], "audit_share": 0.0, **(gateway or {})}},
    )
    async with running(settings) as launcher, Client(launcher.address()) as client:
        first = next(process for process in launcher.system.processes if process.name == FIRST)
        server = first.settings.server.model_copy(update={"port": second})
        own = first.settings.model_copy(update={"server": server})
        processes = {FIRST: first, _SECOND: first._replace(name=_SECOND, settings=own)}
        verifiers = TwoVerifiers(launcher, client, processes)
        await verifiers.start(_SECOND)
        await verifiers.in_use()
        yield verifiers
