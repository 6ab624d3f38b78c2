"""One run: so many streams at once, and what a client sees of them."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from paceline.cli.bench.prompts import Prompt
from paceline.client import Client
from paceline.requests import Options


class Stream(NamedTuple):
    """What one stream gave. Times are in seconds."""

    token_ids: list[int]
    first_seconds: float
    """From the request to its first token."""
    gaps: list[float]
    """Between tokens; a delivery of several tokens counts as that many equal gaps."""
    rounds: list[tuple[int, int]]
    """Proposed tokens that were verified, and how many of them were accepted, round by round."""


class Run(NamedTuple):
    """Streams that ran at once, and how long all of them took, in seconds."""

    streams: list[Stream]
    seconds: float
    began: float = 0.0
    """By a clock that only goes forward: of two runs with the same prompts the second finds them computed."""

    @property
    def tokens_per_second(self) -> float:
        """Over all streams, from the first request to the last token."""
        return sum(len(stream.token_ids) for stream in self.streams) / self.seconds

    @property
    def decoding_per_second(self) -> float:
        """The same once prompts are computed: streams by the mean time between two tokens of one."""
        gaps = [gap for stream in self.streams for gap in stream.gaps]
        return len(self.streams) * len(gaps) / sum(gaps) if gaps else 0.0


class Position(NamedTuple):
    """How often a proposed token at a place of its proposal was judged, and accepted: all before it had been."""

    num_judged: int
    num_accepted: int

    @property
    def acceptance(self) -> float:
        """Acceptance per position."""
        return self.num_accepted / self.num_judged


async def run_streams(client: Client, prompts: Sequence[Prompt], options: Options) -> Run:
    """Asks all prompts at once. A prompt's seed is its place, unless the options have one.

    Raises what one of the streams raised; then the others are ended.
    """
    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_stream(client, prompt, {"seed": place, **options}))
                for place, prompt in enumerate(prompts)
            ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return Run([task.result() for task in tasks], time.perf_counter() - started, started)


async def _stream(client: Client, prompt: Prompt, options: Options) -> Stream:
    stream = Stream([], 0.0, [], [])
    started = last = time.perf_counter()
    async for event in client.generate(prompt, **options):
        count = len(event.delta.token_ids)
        if not count:
            continue
        now = time.perf_counter()
        if stream.token_ids:
            stream.gaps.extend([(now - last) / count] * count)
        else:
            stream = stream._replace(first_seconds=now - started)
        last = now
        stream.token_ids.extend(event.delta.token_ids)
        stream.rounds.append((event.delta.num_drafted_tokens, event.delta.num_accepted_tokens))
    return stream


def by_position(rounds: Iterable[tuple[int, int]]) -> list[Position]:
    """Acceptance by place in a proposal, from the first on."""
    positions: list[Position] = []
    for num_drafted, num_accepted in rounds:
        for place in range(min(num_drafted, num_accepted + 1)):
            if place == len(positions):
                positions.append(Position(0, 0))
            judged, accepted = positions[place]
            positions[place] = Position(judged + 1, accepted + (place < num_accepted))
    return positions


def overall(positions: Sequence[Position]) -> float | None:
    """Acceptance per position over all places; None where nothing was proposed."""
    judged = sum(position.num_judged for position in positions)
    return sum(position.num_accepted for position in positions) / judged if judged else None
