"""Speculation on and off, and both beside transformers, in one run on one machine."""

import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer

from benchmarks.heavy import build_heavy
from benchmarks.systems import InProcess, Measured, Transformers, median, through_gateway
from models.corpus import load_corpus
from paceline import Client
from services.engine.config import Device, Dtype, EngineConfig
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings

NUM_TOKENS = 128
PROMPT_TOKENS = 128
REPEATS = 7
BATCH_REPEATS = 3
NUM_STREAMS = 8


class Ratio(NamedTuple):
    """A measure with a floor: the median of ratios of neighbouring runs."""

    name: str
    value: float
    floor: float
    detail: str


class Latency(NamedTuple):
    """Times of one system, in milliseconds."""

    name: str
    tokens_per_second: float
    first_p50: float
    first_p95: float
    gap_p50: float
    gap_p95: float
    acceptance: float | None


class Report(NamedTuple):
    """Everything that one run measured."""

    ratios: list[Ratio]
    latencies: list[Latency]
    mismatches: int
    """Pairs of outputs that should be identical and are not."""


def held_out_prompts(tokenizer_folder: str, count: int) -> list[list[int]]:
    """Different pieces of held-out files of the shipped pair's corpus, PROMPT_TOKENS each."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    documents = [tokenizer(document.text[: 1 << 15])["input_ids"] for document in load_corpus().held_out]
    prompts: list[list[int]] = []
    for start in range(0, max(map(len, documents)), PROMPT_TOKENS):
        pieces = [ids[start : start + PROMPT_TOKENS] for ids in documents]
        prompts.extend(piece for piece in pieces if len(piece) == PROMPT_TOKENS)
        if len(prompts) >= count:
            return prompts[:count]
    raise ValueError(f"the held-out files hold {len(prompts)} prompts, {count} are wanted")


Contender = Callable[[Sequence[Sequence[int]]], Awaitable[Measured]]
"""Continues prompts once and says how long that took."""


def run(shipped: str, draft: str, work_dir: Path) -> Report:
    """Measures everything. Takes some ten minutes on two cores."""
    heavy = build_heavy(shipped, work_dir / "heavy")
    prompts = held_out_prompts(shipped, 1 + REPEATS + (1 + BATCH_REPEATS) * NUM_STREAMS)
    measured = {name: asyncio.run(_measure(name, model, draft, prompts)) for name, model in
                (("heavy", heavy), ("shipped", shipped))}  # fmt: skip
    ratios = [*_heavy_ratios(measured["heavy"])]
    shipped_runs = measured["shipped"]
    ratios.append(_ratio("speculation on / off, shipped target, one stream", shipped_runs, "on", "off", 1.2))
    latencies = [
        _latency(f"{target}, {name}", runs[name])
        for target, runs in measured.items()
        for name in ("off", "on", f"off, {NUM_STREAMS} streams")
    ]
    mismatches = sum(
        a.token_ids != b.token_ids
        for runs in measured.values()
        for name in ("on", "in process")
        for a, b in zip(runs["off"], runs[name], strict=True)
    )
    return Report(ratios, latencies, mismatches)


async def _measure(name: str, model: str, draft: str, prompts: Sequence[Sequence[int]]) -> dict[str, list[Measured]]:
    """All contenders for one target, in turns. "Off" has a stack without a draft, so every core is the verifier's."""
    torch.set_num_threads(os.cpu_count() or 1)
    one: dict[str, Contender] = {}
    many: dict[str, Contender] = {}
    runs: dict[str, list[Measured]] = {}
    async with AsyncExitStack() as resources:
        for mode, draft_model in (("on", draft), ("off", None)):
            pair = Pair(model=model, draft=draft_model, dtype="bfloat16")
            launcher = await resources.enter_async_context(running(SystemSettings((pair,), log_level="WARNING")))
            client = await resources.enter_async_context(Client(launcher.address()))
            one[mode] = partial(through_gateway, client, num_tokens=NUM_TOKENS, speculation=mode == "on")
        many[f"off, {NUM_STREAMS} streams"] = one["off"]
        engine = InProcess(
            EngineConfig(model=model, device=Device.CPU, dtype=Dtype.BFLOAT16, num_threads=os.cpu_count())
        )
        one["in process"] = partial(_here, engine.generate)
        for dtype in (torch.bfloat16, torch.float32) if name == "heavy" else ():
            label = str(dtype).removeprefix("torch.")
            peer = Transformers(model, dtype, draft)
            one[f"transformers {label}"] = many[f"transformers {label}, batch"] = partial(_here, peer.generate)
            one[f"transformers {label}, assisted"] = partial(_here, partial(peer.generate, assisted=True))
        # No system sees a prompt twice: one that reuses prefixes would have an advantage.
        rest = iter(prompts)
        for contenders, repeats, width in ((one, REPEATS, 1), (many, BATCH_REPEATS, NUM_STREAMS)):
            for repeat in range(-1, repeats):
                chosen = [next(rest) for _ in range(width)]
                for contender_name, contender in contenders.items():
                    result = await contender(chosen)
                    if repeat >= 0:  # The one before is to warm up.
                        runs.setdefault(contender_name, []).append(result)
    return runs


async def _here(
    generate: Callable[[Sequence[Sequence[int]], int], Measured], prompts: Sequence[Sequence[int]]
) -> Measured:
    """On the main thread: another would have OpenMP threads of its own, and all of them would spin less."""
    return generate(prompts, NUM_TOKENS)


def _heavy_ratios(runs: dict[str, list[Measured]]) -> list[Ratio]:
    ratios = [_ratio("speculation on / off, heavy target, one stream", runs, "on", "off", 1.7)]
    for label, floors in (("bfloat16", (1.5, 2.5, 1.3)), ("float32", (0.0, 0.0, 0.0))):
        peer = f"transformers {label}"
        batch = f"off, {NUM_STREAMS} streams"
        ratios += [
            _ratio(f"off, heavy, one stream / transformers.generate in {label}", runs, "off", peer, floors[0]),
            _ratio(
                f"on, heavy, one stream / transformers assisted generation in {label}",
                runs, "on", f"{peer}, assisted", floors[1],
            ),
            _ratio(
                f"off, heavy, {NUM_STREAMS} streams / transformers.generate on a batch of {NUM_STREAMS} in {label}",
                runs, batch, f"{peer}, batch", floors[2],
            ),
        ]  # fmt: skip
    name = "through gateway and gRPC / engine in process, off, one stream"
    return [*ratios, _ratio(name, runs, "off", "in process", 0.9)]


def _ratio(name: str, runs: dict[str, list[Measured]], ours: str, others: str, floor: float) -> Ratio:
    """The median of the ratios of runs that were taken one after the other on the same prompt."""
    pairs = list(zip(runs[ours], runs[others], strict=True))
    value = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs)
    detail = f"{median(runs[ours]):.1f} / {median(runs[others]):.1f} tokens/s"
    return Ratio(name, value, floor, detail)


def _latency(name: str, runs: Sequence[Measured]) -> Latency:
    first = [seconds * 1e3 for run in runs for seconds in run.first_seconds]
    gaps = [seconds * 1e3 for run in runs for seconds in run.gaps_seconds]
    drafted = sum(run.num_drafted for run in runs)
    acceptance = sum(run.num_accepted for run in runs) / drafted if drafted else None
    return Latency(
        name, median(runs), _percentile(first, 50), _percentile(first, 95), _percentile(gaps, 50),
        _percentile(gaps, 95), acceptance,
    )  # fmt: skip


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
