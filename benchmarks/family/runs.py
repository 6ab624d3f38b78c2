"""Measures one pair: speculation on and off in turns, by number of streams and temperature, and its limit."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain, islice
from typing import NamedTuple

from benchmarks.family.steps import StepTimes, seconds_of
from paceline import Client
from paceline.cli.bench.limit import Limit, best_ratio
from paceline.cli.bench.load import Run, by_position, overall, run_streams
from paceline.cli.bench.prompts import Prompt, made_up
from paceline.cli.bench.summary import Summary, summarize
from paceline.requests import Options
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings
from services.local.threads import divide_threads
from services.verifier.settings import Speculation

_PROMPT_TOKENS = 64
_NUM_TOKENS = 128
_LEAST_TOKENS = 32
_RUN_SECONDS = 1.75
"""A run of many streams that would take longer produces fewer tokens a stream."""


_NUM_JUDGED = 12, 64
"""Acceptance is measured on so many prompts, of so many tokens each."""


class Plan(NamedTuple):
    """How much is measured."""

    streams: Sequence[int]
    temperatures: Sequence[float]
    pairs: int
    """Pairs of runs that count, on and off in turns; the one before them is the cold one."""
    draft_process: bool = False
    """Whether the draft has a process of its own; else it runs in the verifier's."""


WHOLE = Plan((1, 4, 8, 32), (0.0, 1.0), 7)
QUICK = Plan((1, 4, 8, 32), (0.0,), 4)


class Cell(NamedTuple):
    """One number of streams at one temperature."""

    temperature: float
    num_tokens: int
    """Tokens that each stream produced."""
    cold: float
    """On / off of the first pair of runs: the system had not met this number of streams before."""
    settled: Summary
    limit: Limit
    """The best that this pair allows by its measured steps and acceptance."""

    @property
    def share(self) -> float:
        """What was measured once settled, prompts left out, relative to the limit."""
        return self.settled.decoding_ratio / self.limit.ratio


class Measured(NamedTuple):
    """All of one pair."""

    cells: list[Cell]
    acceptance: dict[float, float]
    """Acceptance per position by temperature, of one proposed token a round, and one stream."""


class _Runs(NamedTuple):
    num_tokens: int
    on: list[Run]
    off: list[Run]


def measure_pair(target: str, draft: str, plan: Plan, seed: int) -> Measured:
    """Starts the pair and measures it."""
    threads = divide_threads(os.cpu_count() or 1, with_draft=plan.draft_process)
    verify = _steps(target, threads.verifier, plan.streams, is_draft=False)
    drafts = _steps(draft, threads.draft if plan.draft_process else threads.verifier, plan.streams, is_draft=True)
    pair = Pair(id="pair", model=target, draft=draft, draft_process=plan.draft_process)
    runs = asyncio.run(_measure(pair, plan, seed))
    acceptance = asyncio.run(_acceptance(pair, plan.temperatures, seed))
    cells = []
    for (temperature, count), (num_tokens, on, off) in runs.items():
        cold = on[0].tokens_per_second / off[0].tokens_per_second
        limit = best_ratio(acceptance[temperature], count, seconds_of(verify, count), seconds_of(drafts, count))
        cells.append(Cell(temperature, num_tokens, cold, summarize(on[1:], off[1:]), limit))
    return Measured(cells, acceptance)


async def _measure(pair: Pair, plan: Plan, seed: int) -> dict[tuple[float, int], _Runs]:
    most = 1 + (2 + plan.pairs) * sum(plan.streams) * len(plan.temperatures)
    async with _system(pair, Speculation.MEASURED, most, seed) as (client, prompts):
        await run_streams(client, [next(prompts)], {"max_tokens": 8, "speculation": False})
        return {
            (temperature, count): await _cell(client, prompts, count, temperature, plan.pairs)
            for temperature in plan.temperatures
            for count in plan.streams
        }


async def _cell(client: Client, prompts: Iterator[Prompt], count: int, temperature: float, pairs: int) -> _Runs:
    runs = _Runs(_NUM_TOKENS, [], [])
    chosen: list[Prompt] = []
    for number in range(1 + pairs):
        for turn, speculation in enumerate((True, False) if number % 2 == 0 else (False, True)):
            if not (number and turn):  # Both ways of the cold pair have prompts that nobody has asked.
                chosen = [next(prompts) for _ in range(count)]
            run = await run_streams(
                client,
                chosen,
                {
                    "max_tokens": runs.num_tokens,
                    "temperature": temperature,
                    "ignore_eos": True,
                    "speculation": speculation,
                },
            )
            (runs.on if speculation else runs.off).append(run)
        if not number:
            affordable = int(_RUN_SECONDS * runs.off[0].tokens_per_second / count)
            runs = runs._replace(num_tokens=max(_LEAST_TOKENS, min(_NUM_TOKENS, affordable)))
    return runs


async def _acceptance(pair: Pair, temperatures: Sequence[float], seed: int) -> dict[float, float]:
    """Where more is proposed, or to more streams, it is what is likelier: so of one token a round, and one stream."""
    count, num_tokens = _NUM_JUDGED
    found = {}
    async with _system(pair, Speculation.ALWAYS, count * len(temperatures), seed + 1) as (client, prompts):
        for temperature in temperatures:
            options: Options = {"temperature": temperature, "max_draft_tokens": 1}
            options |= {"max_tokens": num_tokens, "ignore_eos": True}
            runs = [await run_streams(client, [prompt], options) for prompt in islice(prompts, count)]
            found[temperature] = overall(by_position(chain.from_iterable(run.streams[0].rounds for run in runs))) or 0.0
    return found


@asynccontextmanager
async def _system(
    pair: Pair, speculation: Speculation, num_prompts: int, seed: int
) -> AsyncIterator[tuple[Client, Iterator[Prompt]]]:
    """Runs the pair; a client, and prompts. Proposals from the text itself are left out: they have their own page."""
    overrides = {"verifier": {"suffix_drafting": False, "verdict_file": "", "speculation": speculation.value}}
    async with (
        running(SystemSettings((pair,), log_level="WARNING", overrides=overrides)) as launcher,
        Client(launcher.address()) as client,
    ):
        (model,) = await client.list_models()
        yield client, iter(made_up(num_prompts, _PROMPT_TOKENS, model.target.vocab_size, seed))


def _steps(model: str, threads: int, streams: Sequence[int], *, is_draft: bool) -> StepTimes:
    command = [sys.executable, "-m", "benchmarks.family.steps", model, "--threads", str(threads)]
    command += ["--streams", *map(str, streams), *(["--draft"] if is_draft else [])]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: StepTimes = {int(count): [(rows, s) for rows, s in times] for count, times in json.loads(said).items()}
    return found
