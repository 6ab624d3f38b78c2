"""What batches and books cost a gateway: taking many lines in, and keys, limits and ledger on the way of a stream."""

import asyncio
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil

from benchmarks.batch_load import NUM_STREAMS, Prompt, different
from benchmarks.systems import through_gateway
from paceline import Client
from paceline.v1 import admin_pb2
from services.common.secret_url import SecretUrl
from services.local.child import Child
from services.local.launcher import Launcher, running
from services.local.loading import wait_serving
from services.local.pair import Pair
from services.local.ports import free_port
from services.local.system import GATEWAY, Process, SystemSettings

_LINE = (
    '{"custom_id": "item-%d", "method": "POST", "url": "/v1/completions", '
    '"body": {"model": "target", "prompt": "def number_%d(", "max_tokens": 64}}\n'
)
_AT_ONCE = 2000
_TOKENS = 64
_REPEATS = 5


class Taken(NamedTuple):
    """What it took to take a batch in."""

    seconds: float
    megabytes: float
    """What the gateway grew by, at most."""


async def take_in(target: str, count: int) -> Taken:
    """Submits so many lines to a gateway on SQLite that runs none of them."""
    overrides = {"gateway": {"max_batch_streams": 0}}
    settings = SystemSettings((Pair(id="target", model=target),), log_level="WARNING", overrides=overrides)
    async with running(settings) as launcher, Client(launcher.address()) as client:
        await client.create_batch(_lines(1000))
        process = psutil.Process(launcher.children["gateway"].pid)
        before = process.memory_info().rss
        most = [before]
        watching = asyncio.create_task(_watch(process, most))
        started = time.perf_counter()
        made = await client.create_batch(_lines(count))
        seconds = time.perf_counter() - started
        watching.cancel()
        if made.batch.counts.total != count:
            raise RuntimeError(f"{made.batch.counts.total} of {count} lines were accepted")
    return Taken(seconds, (max(most) - before) / 1e6)


async def books(model: str, prompts: Sequence[Prompt]) -> tuple[float, float]:
    """Median tokens a second of many streams with keys, limits and prices, and without, by turns."""
    speeds: list[list[float]] = [[], []]
    async with _both(model) as clients:
        for repeat in range(-1, _REPEATS):
            turns = list(zip(clients, speeds, strict=True))
            for client, measured in turns if repeat % 2 else reversed(turns):
                asked = different(prompts, NUM_STREAMS, NUM_STREAMS * (repeat + 1))
                result = await through_gateway(client, asked, _TOKENS, speculation=False)
                if repeat >= 0:  # The one before is to warm up.
                    measured.append(result.tokens_per_second)
    with_books, without = map(statistics.median, speeds)
    return with_books, without


def _lines(count: int) -> Iterator[bytes]:
    for start in range(0, count, _AT_ONCE):
        numbers = range(start, min(count, start + _AT_ONCE))
        yield "".join(_LINE % (number, number) for number in numbers).encode()


async def _watch(process: psutil.Process, seen: list[int]) -> None:
    while True:
        await asyncio.sleep(0.1)
        seen.append(process.memory_info().rss)


@asynccontextmanager
async def _both(model: str) -> AsyncIterator[tuple[Client, Client]]:
    """Clients of two gateways in front of the same verifier: one with keys and limits, and one without."""
    with TemporaryDirectory() as folder:
        database = f"sqlite:///{Path(folder) / 'kept.sqlite'}"
        admin = _first_key(database)
        pair = Pair(id="target", model=model, dtype="bfloat16")
        settings = SystemSettings((pair,), log_level="WARNING", database=database)
        async with running(settings) as launcher, AsyncExitStack() as stack:
            kept = await stack.enter_async_context(Client(launcher.address(), key=admin))
            plan = admin_pb2.Plan(requests_per_minute=10**6, tokens_per_minute=10**9, max_streams=1000)
            await kept.create_tenant("bench", plan)
            key = (await kept.create_key("bench")).secret
            kept = await stack.enter_async_context(Client(launcher.address(), key=key))
            beside = await stack.enter_async_context(_beside(launcher, f"sqlite:///{Path(folder) / 'none.sqlite'}"))
            yield kept, await stack.enter_async_context(Client(beside))


@asynccontextmanager
async def _beside(launcher: Launcher, database: str) -> AsyncIterator[str]:
    """The address of one more gateway of a running system, on a database of its own."""
    (like,) = (process for process in launcher.system.processes if process.kind == GATEWAY)
    server = like.settings.server.model_copy(update={"port": free_port()})
    own = {"server": server, "database": SecretUrl(database)}
    process = Process("beside", GATEWAY, like.settings.model_copy(update=own))
    child = await Child.spawn(process)
    reading = asyncio.create_task(child.read(_unread))
    try:
        await wait_serving(process.address)
        yield process.address
    finally:
        child.signal(signal.SIGTERM)
        await reading


def _unread(_: str) -> None:
    """Takes a line that a process writes."""


def _first_key(database: str) -> str:
    command = [sys.executable, "-m", "paceline", "keys", "first", "--database", database]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
