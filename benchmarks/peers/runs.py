"""Compares contenders: speed in turns on the same prompts, and whether speculation changes what they say."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks.peers.contenders import Answer, Asked, Contender

NUM_TOKENS = 128
MANY_TOKENS = 64
"""Tokens a stream where there are more than eight."""
LONG_PROMPT = 2000

Prompts = Iterator[Sequence[int]]


class Plan(NamedTuple):
    """How much is measured."""

    streams: Sequence[int]
    repeats: int
    """Runs of each kind."""
    compared: int
    """Prompts whose answers are compared with and without speculation."""


WHOLE = Plan((1, 4, 8, 32), 5, 8)
QUICK = Plan((1, 8), 3, 4)


class Speed(NamedTuple):
    """One contender at one number of streams, in tokens a second: medians."""

    plain: float
    speculating: float
    num_drafted: int
    """The setting of these that was fastest in a trial."""


class Changed(NamedTuple):
    """Streams whose tokens were not those of the contender's own plain run, of so many."""

    by_draft: int
    by_another: int
    num_streams: int


async def measure_speed(
    contenders: Mapping[str, Contender], prompts: Prompts, plan: Plan
) -> dict[int, dict[str, Speed]]:
    """Speeds by number of streams and contender, in turns. Prompts are fresh, the same for all, and others where a
    contender speculates: it may keep what it computed of those before.
    """
    found: dict[int, dict[str, Speed]] = {}
    for count in plan.streams:
        num_tokens = NUM_TOKENS if count <= 8 else MANY_TOKENS
        best = {}
        for name, contender in contenders.items():
            trials = [(await contender.ask(_fresh(prompts, count, num_tokens), n), n) for n in contender.settings]
            best[name] = max((answer.tokens_per_second, n) for answer, n in trials)[1]
            await contender.ask(_fresh(prompts, count, num_tokens), 0)
        runs: dict[tuple[str, bool], list[Answer]] = {}
        for _ in range(plan.repeats):
            asked = {speculates: _fresh(prompts, count, num_tokens) for speculates in (False, True)}
            for name, contender in contenders.items():
                for speculates in (False, True):
                    answer = await contender.ask(asked[speculates], best[name] if speculates else 0)
                    runs.setdefault((name, speculates), []).append(answer)
        found[count] = {
            name: Speed(_median(runs[name, False]), _median(runs[name, True]), best[name]) for name in contenders
        }
    return found


async def measure_prompt(contenders: Mapping[str, Contender], prompts: Prompts, repeats: int = 3) -> dict[str, float]:
    """Seconds from a prompt of 2,000 tokens to its first token, by contender: medians."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        long: list[int] = []
        while len(long) < LONG_PROMPT:
            long += next(prompts)
        for name, contender in contenders.items():
            seconds[name].append((await contender.ask(Asked([long[:LONG_PROMPT]], 1), 0)).seconds)
    return {name: statistics.median(found) for name, found in seconds.items()}


async def answers(
    contender: Contender, prompts: Sequence[Sequence[int]], temperature: float, num_drafted: int
) -> list[list[int]]:
    """What a contender says to each prompt, asked one after the other, so that nothing else is in a step."""
    return [
        (await contender.ask(Asked([prompt], NUM_TOKENS, temperature), num_drafted)).token_ids[0] for prompt in prompts
    ]


def differing(some: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    """Streams that are not the same."""
    return sum(list(one) != list(other) for one, other in zip(some, others, strict=True))


def _fresh(prompts: Prompts, count: int, num_tokens: int) -> Asked:
    return Asked([next(prompts) for _ in range(count)], num_tokens)


def _median(runs: Sequence[Answer]) -> float:
    return statistics.median(run.tokens_per_second for run in runs)
