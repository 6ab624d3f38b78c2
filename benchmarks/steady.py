"""What processes take of memory under a load of all kinds that goes on and on."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from paceline import Client, ClosedError, InvalidArgumentError, Tls
from paceline.internal.v1 import load_pb2
from services.common.channel import open_channel
from services.local.launcher import Launcher, running
from services.local.pair import Pair
from services.local.system import SystemSettings
from services.model_server.load_reports import SERVICE

NUM_CLIENTS = 8
ADAPTERS = ("two-spaces", "docstrings")
_CLEAR_EVERY = 200
_WORDS = ("import", "class", "def", "return", "self", "None", "for", "in", "if", "else", "print", "yield", "async")


class Growth(NamedTuple):
    """Of one process: bytes held early, and at the end."""

    process: str
    early: int
    late: int

    @property
    def ratio(self) -> float:
        """Late by early."""
        return self.late / self.early


async def memory_under_load(target: str, draft: str, minutes: float) -> list[Growth]:
    """What each process holds after a third of the time, and after all of it.

    Raises TimeoutError when an engine still has something to do half a minute after everybody left.
    """
    pair = Pair(model=target, draft=draft)
    settings = SystemSettings((pair,), log_level="WARNING", prefix_cache=True, adapter_store=True, overrides=_BOUNDS)
    async with running(settings) as launcher, Client(launcher.address()) as client:
        for name in ADAPTERS:
            await client.upload_adapter(Path(target).parent / "adapters" / name, name)
        load = [asyncio.create_task(mixed_load(launcher.address(), number)) for number in range(NUM_CLIENTS)]
        early = await _held_after(launcher, 60 * minutes / 3, load)
        late = await _held_after(launcher, 60 * minutes * 2 / 3, load)
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
        async with asyncio.timeout(_LEFT_SECONDS):
            for process in launcher.system.processes:
                while process.has_engine and await is_busy(process.address):
                    await asyncio.sleep(_SAMPLE_SECONDS)
    return [Growth(name, early[name], late[name]) for name in early]


async def is_busy(address: str, tls: Tls | None = None) -> bool:
    """Whether a verifier or a draft has sequences, or blocks that are in use."""
    async with open_channel(address, tls=tls) as channel:
        call: Any = channel.unary_stream(
            f"/{SERVICE}/StreamCoreMetrics",
            request_serializer=load_pb2.LoadReportRequest.SerializeToString,
            response_deserializer=load_pb2.LoadReport.FromString,
        )(load_pb2.LoadReportRequest())
        report = await call.read()
        call.cancel()
    return any(report.named_metrics.values()) or any(report.utilization.values())


_BOUNDS = {"prefix-cache": {"memory_bytes": 16 << 20}}
"""The cache is full soon, and again when it was cleared: what it may hold is no growth."""
_PEAK_SECONDS = 30.0
_SAMPLE_SECONDS = 0.5
_LEFT_SECONDS = 30.0


async def _held_after(launcher: Launcher, seconds: float, load: Sequence["asyncio.Task[None]"]) -> dict[str, int]:
    """Most bytes that processes hold at the end of some more time under the load. Raises what ended the load before."""
    until, held = time.monotonic() + seconds, dict.fromkeys(launcher.children, 0)
    while (left := until - time.monotonic()) > 0:
        pause = _SAMPLE_SECONDS if left < _PEAK_SECONDS else left - _PEAK_SECONDS + _SAMPLE_SECONDS
        await asyncio.wait(load, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        for task in load:
            if task.done():
                await task
        if left < _PEAK_SECONDS:
            for name, child in launcher.children.items():
                held[name] = max(held[name], psutil.Process(child.pid).memory_info().rss)
    return held


async def mixed_load(address: str, number: int) -> None:
    """One client's requests, one after the other: texts and chats, long and short; some of them are left, refused, read
    slowly, or lose their connection.

    Raises what goes wrong otherwise.
    """
    rng = random.Random(number)
    async with Client(address) as client:
        for count in itertools.count(1):
            await _ask_something(client, address, rng)
            if count % _CLEAR_EVERY == 0:
                await client.clear_cache()


async def _ask_something(client: Client, address: str, rng: random.Random) -> None:
    text = " ".join(rng.choices(_WORDS, k=rng.choice((3, 30, 300))))
    tokens = rng.choice((4, 30, 120))
    with suppress(InvalidArgumentError):
        match rng.randrange(8):
            case 0:
                await _read(client.chat([{"role": "user", "content": text}], max_tokens=tokens))
            case 1:
                await _read(client.generate(text, max_tokens=tokens, adapter=rng.choice(ADAPTERS)))
            case 2:
                await _read(client.generate(text, max_tokens=400, ignore_eos=True), leave_after=rng.randrange(20))
            case 3:
                await _read(client.generate(text, max_tokens=tokens, n=3, logprobs=5, temperature=0.7))
            case 4:
                await client.detokenize(await client.tokenize(text * 20))
            case 5:
                await _read(client.generate(text, max_tokens=tokens, ignore_eos=True), pause=rng.random())
            case 6:
                await _lose(Client(address), text, rng.randrange(20))
            case _:
                await _read(client.generate(text, max_tokens=tokens, temperature=rng.choice((0.0, 0.8, -1.0))))


async def _read(events: AsyncGenerator[Any, None], leave_after: int | None = None, pause: float = 0.0) -> None:
    """Reads a stream to its end, or so many events of it, after so many seconds in which it reads nothing."""
    count = 0
    async with aclosing(events):
        async for _ in events:
            if not count:
                await asyncio.sleep(pause)
            count += 1
            if leave_after is not None and count > leave_after:
                return


async def _lose(client: Client, text: str, after: int) -> None:
    """Closes a client's connection behind so many events of a stream, or at its end."""
    count = 0
    async with client:
        with suppress(ClosedError):
            async for _ in client.generate(text, max_tokens=400, ignore_eos=True):
                count += 1
                if count > after:
                    await client.close()
