"""Batches beside interactive requests and alone, and what they cost a gateway."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import batch_gateway
from benchmarks.batch_load import (
    BUSY_SHARE,
    INTERACTIVE_TOKENS,
    ITEM_TOKENS,
    NUM_ASKED,
    NUM_ITEMS,
    NUM_STREAMS,
    OWN_TOKENS,
    PREFIX_TOKENS,
    SHORT_TOKENS,
    Prompt,
    Waits,
    different,
    full,
    items_beside,
    items_per_second,
    serving,
    streams_per_second,
    waits,
    waits_beside_a_batch,
    with_prefix,
)
from benchmarks.heavy import build_heavy
from benchmarks.page import machine, table, write_page
from benchmarks.speculation import PROMPT_TOKENS, held_out_prompts

MANY, MOST = 10_000, 1_000_000
_PROMPTS = 24
_PREFIX_ITEMS = 48


class Measure(NamedTuple):
    """What was measured, in words, and the bound that it keeps or not."""

    name: str
    value: str
    bound: str
    holds: bool
    detail: str = ""


def run(shipped: str, work_dir: Path) -> list[Measure]:
    """Measures everything. Takes some ten minutes on two cores."""
    heavy = build_heavy(shipped, work_dir / "heavy")
    prompts = held_out_prompts(shipped, _PROMPTS)
    pieces: list[Callable[[], list[Measure]]] = [
        lambda: beside(heavy, prompts),
        lambda: alone(heavy, prompts),
        lambda: prefixes(heavy, prompts),
        lambda: acceptance(shipped, MANY, 5.0),
        lambda: acceptance(shipped, MOST, 600.0, 200.0),
        lambda: books(heavy, prompts),
    ]
    return [measure for piece in pieces for measure in piece()]


def beside(model: str, prompts: Sequence[Prompt]) -> list[Measure]:
    """What interactive requests and a batch do to each other."""

    async def measure() -> tuple[Waits, Waits, float, float]:
        async with serving(model) as client:
            await waits(client, different(prompts, 4, 0))
            quiet, busy = Waits([], []), Waits([], [])
            for turn in range(2):  # By turns: a machine is not the same all the time.
                start = 1000 * (1 + turn)
                before = await waits(client, different(prompts, NUM_ASKED // 2, start))
                behind = full(prompts, 10_000 * (1 + turn))
                beside = await waits_beside_a_batch(client, different(prompts, NUM_ASKED // 2, start + 500), behind)
                for all_of, some in ((quiet, before), (busy, beside)):
                    all_of.first.extend(some.first)
                    all_of.gaps.extend(some.gaps)
            single = await items_per_second(client, different(prompts, NUM_ITEMS, 40_000), ITEM_TOKENS)
            asked = different(prompts, NUM_ASKED, 50_000)
            return quiet, busy, await items_beside(client, asked, full(prompts, 60_000)), single

    quiet, busy, items, single = asyncio.run(measure())
    (first, gap), (first_busy, gap_busy) = quiet.p95(), busy.p95()
    return [
        _at_most("time to first token p95, a full batch behind / without", first_busy, first, 1.15, "ms", 1e3),
        _at_most("time between tokens p95, a full batch behind / without", gap_busy, gap, 1.15, "ms", 1e3),
        _at_least(f"batch beside requests that keep the engine {BUSY_SHARE:.0%} busy / alone", items, single, 0.5),
    ]


def alone(model: str, prompts: Sequence[Prompt]) -> list[Measure]:
    """A batch, and the same as so many streams."""

    async def measure() -> tuple[float, float]:
        async with serving(model) as client:
            await items_per_second(client, different(prompts, NUM_STREAMS, 0), ITEM_TOKENS)
            batch = await items_per_second(client, different(prompts, 2 * NUM_ITEMS, 1000), ITEM_TOKENS)
            return batch, await streams_per_second(client, different(prompts, 2 * NUM_ITEMS, 2000), ITEM_TOKENS)

    return [
        _at_least(f"batch alone / the same items as {NUM_STREAMS} interactive streams", *asyncio.run(measure()), 0.95)
    ]


def prefixes(model: str, prompts: Sequence[Prompt]) -> list[Measure]:
    """A batch whose prompts begin alike, and one whose prompts do not."""

    async def measure() -> tuple[float, float]:
        async with serving(model) as client:
            await items_per_second(client, different(prompts, 8, 0), SHORT_TOKENS)
            alike = with_prefix(prompts, _PREFIX_ITEMS, 100, common=True)
            unlike = with_prefix(prompts, _PREFIX_ITEMS, 300, common=False)
            first = await items_per_second(client, alike, SHORT_TOKENS)
            return first, await items_per_second(client, unlike, SHORT_TOKENS)

    return [
        _at_least(
            "batch with 80 % common prefix / with as long prompts and none in common", *asyncio.run(measure()), 1.5
        )
    ]


def acceptance(target: str, count: int, seconds: float, megabytes: float | None = None) -> list[Measure]:
    """How long it takes to take so many lines in, and what the gateway grows by."""
    taken = asyncio.run(batch_gateway.take_in(target, count))
    measures = [
        Measure(
            f"accept {count:,} items on SQLite",
            f"{taken.seconds:.1f} s",
            f"at most {seconds:g} s",
            taken.seconds <= seconds,
        )
    ]
    if megabytes is not None:
        holds = taken.megabytes <= megabytes
        name = "memory that the gateway grows by meanwhile"
        measures.append(Measure(name, f"{taken.megabytes:.0f} MB", f"at most {megabytes:g} MB", holds))
    return measures


def books(model: str, prompts: Sequence[Prompt]) -> list[Measure]:
    """Keys, limits and ledger on the way of streams."""
    kept, none = asyncio.run(batch_gateway.books(model, prompts))
    return [_at_least(f"gateway with keys and limits / without, {NUM_STREAMS} streams", kept, none, 0.97, "tokens/s")]


def write_batch(measures: Sequence[Measure], folder: Path) -> Path:
    """Writes batch.md into a folder and returns its path."""
    lines = [
        "# Batches beside others, and alone",
        "",
        f"Written by `make bench`: {machine()}. Heavy target (see [speculation](speculation.md)), bfloat16, no draft. "
        f"Items and requests have prompts of {PROMPT_TOKENS} tokens of which no two share a block. Items produce "
        f"{ITEM_TOKENS} tokens, {NUM_STREAMS} at once; interactive requests {INTERACTIVE_TOKENS}, one after the other. "
        f"Prompts with a common prefix have {PREFIX_TOKENS} tokens in common and {OWN_TOKENS} of their own and produce "
        f"{SHORT_TOKENS}. Lines are taken in by a gateway that runs none of them. A gateway always keeps its ledger: "
        "what is compared are keys, limits and the tenant's own rows.",
        "",
        *table(
            ("measure", "", "bound", ""),
            [(m.name, f"**{m.value}**" + ("" if m.holds else " (missed)"), m.bound, m.detail) for m in measures],
        ),
    ]
    return write_page(folder, "batch", lines)


def _at_most(name: str, value: float, base: float, bound: float, unit: str, factor: float) -> Measure:
    detail = f"{value * factor:.1f} / {base * factor:.1f} {unit}"
    return Measure(name, f"{value / base:.2f}", f"at most {bound:g}", value / base <= bound, detail)


def _at_least(name: str, value: float, base: float, bound: float, unit: str = "items/s") -> Measure:
    return Measure(
        name, f"{value / base:.2f}", f"at least {bound:g}", value / base >= bound, f"{value:.1f} / {base:.1f} {unit}"
    )
