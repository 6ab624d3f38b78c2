"""How well the network is hidden, and that speculation is never slower: delays, and loads from 1 to 32 streams.

Delays are added by a TCP relay between gateway and draft. There verifier and draft have a core each, so that the draft
drafts ahead; for the loads they share cores as `paceline up` has them share, and "off" has no draft process.
"""

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.heavy import build_heavy
from benchmarks.relay import DelayingRelay
from benchmarks.speculation import NUM_TOKENS, held_out_prompts
from benchmarks.systems import Measured, through_gateway
from paceline import Client
from services.local.launcher import running
from services.local.pair import Pair
from services.local.ports import free_port
from services.local.system import SystemSettings

DELAYS_MS = (0, 2, 5, 10)
DELAY_REPEATS = 6
LOADS = (1, 2, 4, 8, 16, 32)
LOAD_REPEATS = 5


class Delayed(NamedTuple):
    """One delay, each way."""

    delay_ms: int
    relative: float
    """Tokens a second relative to no delay: the median of pairs on the same prompt."""
    tokens_per_second: float
    ready: float
    """Share of rounds after the prompt's own that began with a proposal already there."""


class Loaded(NamedTuple):
    """One number of streams."""

    num_streams: int
    ratio: float
    """Speculation on / off, tokens a second: the median of pairs on the same prompts."""
    on: float
    off: float
    drafted: float
    """Proposed tokens a round."""


class AheadReport(NamedTuple):
    """Everything that one run measured."""

    delays: list[Delayed]
    loads: list[Loaded]
    mismatches: int


def run(shipped: str, draft: str, work_dir: Path) -> AheadReport:
    """Measures everything. Takes some half an hour on two cores."""
    heavy = build_heavy(shipped, work_dir / "heavy")
    count = 1 + DELAY_REPEATS + (1 + LOAD_REPEATS) * sum(LOADS)
    prompts = held_out_prompts(shipped, count)
    delayed = asyncio.run(_delays(heavy, draft, prompts[: 1 + DELAY_REPEATS]))
    on, off = asyncio.run(_loads(heavy, draft, prompts[1 + DELAY_REPEATS :]))
    mismatches = sum(a.token_ids != b.token_ids for load in LOADS for a, b in zip(on[load], off[load], strict=True))
    mismatches += sum(
        a.token_ids != b.token_ids for runs in delayed.values() for a, b in zip(runs, delayed[0], strict=True)
    )
    return AheadReport(
        [_delayed(delay, runs, delayed[0]) for delay, runs in delayed.items()],
        [_loaded(load, on[load], off[load]) for load in LOADS],
        mismatches,
    )


async def _delays(model: str, draft: str, prompts: Sequence[Sequence[int]]) -> dict[int, list[Measured]]:
    """A system for each delay, in turns; none sees a prompt twice."""
    runs: dict[int, list[Measured]] = {delay: [] for delay in DELAYS_MS}
    async with AsyncExitStack() as resources:
        clients = {}
        for delay in DELAYS_MS:
            port = free_port()
            relay = await resources.enter_async_context(DelayingRelay(port).running())
            relay.delay_seconds = delay / 1e3
            pair = Pair(model=model, draft=draft, dtype="bfloat16", threads=1, draft_threads=1)
            settings = SystemSettings(
                (pair,), log_level="WARNING", ports={"draft": port}, draft_addresses=(f"127.0.0.1:{relay.port}",)
            )
            launcher = await resources.enter_async_context(running(settings))
            clients[delay] = await resources.enter_async_context(Client(launcher.address()))
        for index, prompt in enumerate(prompts):
            for delay, client in clients.items():
                result = await through_gateway(client, [prompt], NUM_TOKENS, speculation=True)
                if index:  # The first is to warm up.
                    runs[delay].append(result)
    return runs


async def _loads(
    model: str, draft: str, prompts: Sequence[Sequence[int]]
) -> tuple[dict[int, list[Measured]], dict[int, list[Measured]]]:
    """Speculation on and off, in turns, for each number of streams."""
    on: dict[int, list[Measured]] = {load: [] for load in LOADS}
    off: dict[int, list[Measured]] = {load: [] for load in LOADS}
    async with AsyncExitStack() as resources:
        clients = []
        for draft_model in (draft, None):
            pair = Pair(model=model, draft=draft_model, dtype="bfloat16")
            launcher = await resources.enter_async_context(running(SystemSettings((pair,), log_level="WARNING")))
            clients.append(await resources.enter_async_context(Client(launcher.address())))
        rest = iter(prompts)
        for load in LOADS:
            for repeat in range(-1, LOAD_REPEATS):
                chosen = [next(rest) for _ in range(load)]
                ways = list(zip(clients, (on, off), (True, False), strict=True))
                for client, runs, speculation in ways if repeat % 2 else reversed(ways):
                    result = await through_gateway(client, chosen, NUM_TOKENS, speculation=speculation)
                    if repeat >= 0:
                        runs[load].append(result)
    return on, off


def _delayed(delay: int, runs: Sequence[Measured], base: Sequence[Measured]) -> Delayed:
    relative = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in zip(runs, base, strict=True))
    rounds = sum(run.num_rounds - 1 for run in runs)
    return Delayed(delay, relative, _median(runs), sum(run.num_ready_rounds for run in runs) / rounds)


def _loaded(load: int, on: Sequence[Measured], off: Sequence[Measured]) -> Loaded:
    ratio = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in zip(on, off, strict=True))
    drafted = sum(run.num_drafted for run in on) / sum(run.num_rounds for run in on)
    return Loaded(load, ratio, _median(on), _median(off), drafted)


def _median(runs: Sequence[Measured]) -> float:
    return statistics.median(run.tokens_per_second for run in runs)
