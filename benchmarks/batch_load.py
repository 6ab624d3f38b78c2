"""Batches and interactive requests on one heavy target: what each does to the other."""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from benchmarks.systems import through_gateway
from paceline import Client
from paceline.v1 import batch_pb2
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings

NUM_STREAMS = 32
ITEM_TOKENS = 32
NUM_ITEMS = 96
INTERACTIVE_TOKENS = 48
NUM_ASKED = 20
"""Interactive requests of one piece."""
BUSY_SHARE = 0.3
PREFIX_TOKENS, OWN_TOKENS, SHORT_TOKENS = 512, 128, 4
_BEGUN = 8
_POLL_SECONDS = 0.25
"""Whoever asks how a batch fares every few milliseconds takes the cores that it would run on."""
_FULL_ITEMS = 2000
Prompt = Sequence[int]


class Waits(NamedTuple):
    """What interactive requests saw, in seconds."""

    first: list[float]
    gaps: list[float]

    def p95(self) -> tuple[float, float]:
        """Of the time to the first token, and between tokens."""
        return _p95(self.first), _p95(self.gaps)


@asynccontextmanager
async def serving(model: str) -> AsyncIterator[Client]:
    """A client of a system with this target and no draft, whose gateway runs as many items as there are streams."""
    overrides = {"gateway": {"max_batch_streams": NUM_STREAMS}}
    pair = Pair(model=model, dtype="bfloat16")
    settings = SystemSettings((pair,), log_level="WARNING", overrides=overrides)
    async with running(settings) as launcher, Client(launcher.address()) as client:
        yield client


def lines(prompts: Sequence[Prompt], num_tokens: int) -> bytes:
    """A batch that continues these prompts, each by so many tokens."""
    body = {"max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    made = [
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": {"prompt": [*prompt], **body}}
        for number, prompt in enumerate(prompts)
    ]
    return b"".join(json.dumps(each).encode() + b"\n" for each in made)


def different(prompts: Sequence[Prompt], count: int, start: int = 0) -> list[list[int]]:
    """So many prompts that share no computed block: each begins with its own number."""
    numbers = range(start, start + count)
    return [[5 + number % 500, 5 + number // 500, *prompts[number % len(prompts)][2:]] for number in numbers]


async def items_per_second(client: Client, prompts: Sequence[Prompt], num_tokens: int) -> float:
    """Of a batch alone, from its acceptance to its end."""
    made = await client.create_batch(lines(prompts, num_tokens))
    started = time.perf_counter()
    await _until_ended(client, made.batch.id)
    return len(prompts) / (time.perf_counter() - started)


async def streams_per_second(client: Client, prompts: Sequence[Prompt], num_tokens: int) -> float:
    """The same as interactive requests, as many at once as a batch has, and with what speculation decides for both."""
    rest = list(prompts)

    async def ask() -> None:
        while rest:
            await _ask(client, rest.pop(), num_tokens, speculation=True)

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(NUM_STREAMS)))
    return len(prompts) / (time.perf_counter() - started)


async def waits(client: Client, prompts: Sequence[Prompt]) -> Waits:
    """What requests see that follow each other."""
    seen = Waits([], [])
    for prompt in prompts:
        measured = await through_gateway(client, [prompt], INTERACTIVE_TOKENS, speculation=False)
        seen.first.extend(measured.first_seconds)
        seen.gaps.extend(measured.gaps_seconds)
    return seen


async def waits_beside_a_batch(client: Client, prompts: Sequence[Prompt], behind: Sequence[Prompt]) -> Waits:
    """The same while a batch fills all that is idle."""
    async with _batch(client, behind):
        return await waits(client, prompts)


async def items_beside(client: Client, prompts: Sequence[Prompt], behind: Sequence[Prompt]) -> float:
    """Items a second of a batch beside requests that keep the engine busy for a share of the time."""
    async with _batch(client, behind) as batch_id:
        started, before = time.perf_counter(), await _num_done(client, batch_id)
        for prompt in prompts:
            began = time.perf_counter()
            await _ask(client, prompt, INTERACTIVE_TOKENS)
            await asyncio.sleep((time.perf_counter() - began) * (1 - BUSY_SHARE) / BUSY_SHARE)
        return (await _num_done(client, batch_id) - before) / (time.perf_counter() - started)


def full(prompts: Sequence[Prompt], start: int) -> list[list[int]]:
    """More items than any piece lets come to an end."""
    return different(prompts, _FULL_ITEMS, start)


def with_prefix(prompts: Sequence[Prompt], count: int, start: int, *, common: bool) -> list[list[int]]:
    """Prompts of which four fifths are the same in all, or the same number of tokens in none."""
    long = [token for prompt in prompts[: PREFIX_TOKENS // len(prompts[0])] for token in prompt]
    owns = different(prompts, count, start)
    firsts = [[5 + start % 500, 6]] * count if common else [own[:2] for own in owns]
    return [[*first, *long[2:], *own[:OWN_TOKENS]] for first, own in zip(firsts, owns, strict=True)]


async def _ask(client: Client, prompt: Prompt, num_tokens: int, *, speculation: bool = False) -> None:
    await through_gateway(client, [prompt], num_tokens, speculation=speculation)


@asynccontextmanager
async def _batch(client: Client, prompts: Sequence[Prompt]) -> AsyncIterator[str]:
    """A batch that runs while the block lasts."""
    batch_id = (await client.create_batch(lines(prompts, ITEM_TOKENS))).batch.id
    try:
        while await _num_done(client, batch_id) < _BEGUN:
            await asyncio.sleep(0.05)
        yield batch_id
    finally:
        await client.cancel_batch(batch_id)
        await _until_ended(client, batch_id)


async def _num_done(client: Client, batch_id: str) -> int:
    return (await client.get_batch(batch_id)).counts.completed


async def _until_ended(client: Client, batch_id: str) -> None:
    ended = (batch_pb2.BATCH_STATE_COMPLETED, batch_pb2.BATCH_STATE_CANCELLED)
    while (await client.get_batch(batch_id)).state not in ended:
        await asyncio.sleep(_POLL_SECONDS)


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
