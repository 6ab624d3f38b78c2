"""How long a client waits in the midst of a stream whose verifier is killed or hangs, another one there."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import NamedTuple

from benchmarks.heavy import build_heavy
from benchmarks.page import machine, table, write_page
from benchmarks.reuse import PREFIX_TOKENS, prefixes, published
from benchmarks.two_verifiers import TwoVerifiers, two_verifiers
from services.local.pair import Pair

NUM_EVENTS = 100
"""Of each of two kinds."""
_NUM_PROMPTS, _PROMPT_TOKENS = 8, 180
_MAX_TOKENS = 1 << 10
"""More than come before a stream is left."""
_BEFORE_TOKENS, _AFTER_TOKENS = 20, 400
_PREFIX_REPEATS = 5
_PREFIX_AFTER_TOKENS = 40
_KILLED_SECONDS, _HUNG_SECONDS, _FETCHED_SHARE = 0.5, 1.5, 0.3


class Pauses(NamedTuple):
    """What streams waited that met with one kind of event."""

    name: str
    bound: float
    seconds: list[float]
    num_different: int
    """Streams whose tokens were not those of an undisturbed run."""

    @property
    def p99(self) -> float:
        """What 99 of 100 waited at most."""
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[98]

    @property
    def holds(self) -> bool:
        """Whether it keeps its bound, and all tokens."""
        return self.p99 <= self.bound and not self.num_different


class Fetched(NamedTuple):
    """What streams of long prompts waited whose verifier was killed, in seconds."""

    with_cache: list[float]
    computed: list[float]

    @property
    def ratio(self) -> float:
        """The median of ratios of runs of the same prompt."""
        return statistics.median(a / b for a, b in zip(self.with_cache, self.computed, strict=True))

    @property
    def holds(self) -> bool:
        """Whether the cache is worth it."""
        return self.ratio <= _FETCHED_SHARE


class _Stream(NamedTuple):
    token_ids: list[int]
    seconds: float
    """The longest wait for tokens after the event."""


def run(target: str, draft: str, work_dir: Path, num_events: int = NUM_EVENTS) -> tuple[list[Pauses], Fetched]:
    """Measures everything. Takes some twenty minutes on two cores: a verifier takes seconds to start anew."""
    prompts = [text[:_PROMPT_TOKENS] for text in prefixes(target, _NUM_PROMPTS)]
    pauses = asyncio.run(_pauses(Pair(model=target, draft=draft, threads=1), prompts, num_events))
    heavy = Pair(model=build_heavy(target, work_dir / "heavy"), dtype="bfloat16")
    texts = prefixes(target, 1 + _PREFIX_REPEATS)
    waits = [asyncio.run(_prefix_pauses(heavy, texts, prefix_cache=cache)) for cache in (True, False)]
    return pauses, Fetched(*waits)


async def _pauses(pair: Pair, prompts: Sequence[Sequence[int]], num_events: int) -> list[Pauses]:
    killed = Pauses("killed (SIGKILL)", _KILLED_SECONDS, [], 0)
    hung = Pauses("hangs (SIGSTOP)", _HUNG_SECONDS, [], 0)
    found = {True: killed, False: hung}
    async with two_verifiers(pair, prefix_cache=False) as verifiers:
        whole = [await _undisturbed(verifiers, prompt, _MAX_TOKENS) for prompt in prompts]
        for number in range(num_events):
            for kills, pauses in found.items():
                which = number % len(prompts)
                stream = await _struck(verifiers, prompts[which], _AFTER_TOKENS, kills=kills)
                pauses.seconds.append(stream.seconds)
                if stream.token_ids != whole[which][: len(stream.token_ids)]:
                    found[kills] = pauses._replace(num_different=pauses.num_different + 1)
    return list(found.values())


async def _prefix_pauses(pair: Pair, texts: Sequence[Sequence[int]], *, prefix_cache: bool) -> list[float]:
    seconds = []
    async with two_verifiers(pair, prefix_cache=prefix_cache) as verifiers:
        for number, text in enumerate(texts):
            if prefix_cache:  # What the stream needs is in the cache when its verifier dies.
                await _undisturbed(verifiers, text, 1)
                await published(verifiers.client, number + 1)
            stream = await _struck(verifiers, text, _PREFIX_AFTER_TOKENS, kills=True)
            if number:  # The first warms all up.
                seconds.append(stream.seconds)
    return seconds


async def _undisturbed(verifiers: TwoVerifiers, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The tokens of a stream that nothing befalls."""
    token_ids: list[int] = []
    async for event in verifiers.client.generate(prompt, max_tokens=num_tokens, temperature=0, ignore_eos=True):
        token_ids += event.delta.token_ids
    return token_ids


async def _struck(verifiers: TwoVerifiers, prompt: Sequence[int], num_after: int, *, kills: bool) -> _Stream:
    """A stream whose verifier is taken away in its midst, and is back when this returns."""
    token_ids: list[int] = []
    last, longest, struck_at = 0.0, 0.0, 0
    striking: asyncio.Task[str] | None = None
    events = verifiers.client.generate(prompt, max_tokens=_MAX_TOKENS, temperature=0, ignore_eos=True)
    async with aclosing(events):
        async for event in events:
            if not event.delta.token_ids:
                continue
            now = time.perf_counter()
            if striking is not None and striking.done():
                longest = max(longest, now - last)
                struck_at = struck_at or len(token_ids)
            last = now
            token_ids += event.delta.token_ids
            if striking is None and len(token_ids) >= _BEFORE_TOKENS:
                striking = asyncio.create_task(_strike(verifiers, kills=kills))
            if struck_at and len(token_ids) >= struck_at + num_after:
                break
    if striking is None or not struck_at:
        raise RuntimeError("a stream ended before anything befell it")
    await verifiers.back(await striking, killed=kills)
    return _Stream(token_ids, longest)


async def _strike(verifiers: TwoVerifiers, *, kills: bool) -> str:
    name = await verifiers.busy()
    (verifiers.kill if kills else verifiers.pause)(name)
    return name


def write_pauses(pauses: Sequence[Pauses], fetched: Fetched, folder: Path) -> Path:
    """Writes pauses.md into a folder and returns its path."""
    numbers = count(1)
    lines = [
        "# How long a client waits when its verifier is gone",
        "",
        f"Written by `make bench`: {machine()}. Two verifiers, one of which computes the only stream there is and is "
        "taken away in its midst; what is measured is the longest time without a token afterwards, at the client, with "
        f"what the other one computes anew. The pair that ships, prompts of {_PROMPT_TOKENS} tokens, "
        f"{len(pauses[0].seconds)} events of each kind, in turns. Between two of them both verifiers are in use again.",
        "",
        *table(
            ("its verifier", "p99", "bound", "median", "longest", "streams that differed"),
            [
                (
                    each.name,
                    f"**{each.p99:.2f} s**{'' if each.holds else ' (missed)'}",
                    f"{each.bound:g} s",
                    f"{statistics.median(each.seconds):.2f} s",
                    f"{max(each.seconds):.2f} s",
                    each.num_different,
                )
                for each in pauses
            ],
        ),
        f"Heavy target (see [speculation](speculation.md)), bfloat16, prompts of {PREFIX_TOKENS:,} tokens, the "
        "verifier killed:",
        "",
        *table(
            ("stream", "blocks from the prefix cache", "computed anew", "ratio"),
            [
                (next(numbers), f"{a:.2f} s", f"{b:.2f} s", f"{a / b:.2f}")
                for a, b in zip(fetched.with_cache, fetched.computed, strict=True)
            ],
        ),
        f"Median of the ratios: **{fetched.ratio:.2f}**{'' if fetched.holds else ' (missed)'}, at most "
        f"{_FETCHED_SHARE:g}.",
        "",
    ]
    return write_page(folder, "pauses", lines)
