"""What batches and books cost a gateway: taking many lines in, and keys, limits and ledger on the way of a stream."""

import asyncio
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
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings

_LINE = (
    '{"custom_id": "item-%d", "method": "POST", "url": "/v1/completions", '
    '"body": {"model": "target", "prompt": "def number_%d(", "max_tokens": 64}}\n'
)
_AT_ONCE = 2000
_TOKENS = 64
_REPEATS = 3


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
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_gateway(model, with_books=kept)) for kept in (True, False)]
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
async def _gateway(model: str, *, with_books: bool) -> AsyncIterator[Client]:
    pair = Pair(id="target", model=model, dtype="bfloat16")
    with TemporaryDirectory() as folder:
        database = f"sqlite:///{Path(folder) / 'gateway.sqlite'}"
        admin = _first_key(database) if with_books else None
        settings = SystemSettings((pair,), log_level="WARNING", database=database)
        async with running(settings) as launcher, AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client(launcher.address(), key=admin))
            if with_books:
                plan = admin_pb2.Plan(requests_per_minute=10**6, tokens_per_minute=10**9, max_streams=1000)
                await client.create_tenant("bench", plan)
                key = (await client.create_key("bench")).secret
                client = await stack.enter_async_context(Client(launcher.address(), key=key))
            yield client


def _first_key(database: str) -> str:
    command = [sys.executable, "-m", "paceline", "keys", "first", "--database", database]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
