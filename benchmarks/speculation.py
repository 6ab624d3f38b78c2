"""Speculation on and off, and both beside transformers, in one run on one machine."""

import asyncio
import gc
import os
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer

from benchmarks.heavy import build_heavy
from benchmarks.systems import InProcess, Measured, Transformers, median, through_gateway
from gateway.client import Client
from gateway.launcher import StackSettings, running_stack
from models.corpus import load_corpus
from services.engine.config import Device, Dtype, EngineConfig

NUM_TOKENS = 128
PROMPT_TOKENS = 128
REPEATS = 5
NUM_STREAMS = 8


class Ratio(NamedTuple):
    """A measure with a floor: the ratio of two medians of one run."""

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
    """The first tokens of held-out files of the shipped pair's corpus."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    prompts = []
    for document in load_corpus().held_out:
        ids = tokenizer(document.text[: PROMPT_TOKENS * 12])["input_ids"]
        if len(ids) >= PROMPT_TOKENS:
            prompts.append(ids[:PROMPT_TOKENS])
        if len(prompts) == count:
            return prompts
    raise ValueError(f"only {len(prompts)} held-out files are long enough")


def run(shipped: str, draft: str, work_dir: Path) -> Report:
    """Measures everything. Takes some ten minutes on two cores."""
    heavy = build_heavy(shipped, work_dir / "heavy")
    prompts = held_out_prompts(shipped, NUM_STREAMS)
    ratios: list[Ratio] = []
    latencies: list[Latency] = []
    mismatches = 0
    for name, model, floor in (("heavy", heavy, 1.7), ("shipped", shipped, 1.2)):
        on, off, eight = asyncio.run(_gateway(model, draft, prompts))
        mismatches += sum(a.token_ids != b.token_ids for a, b in zip(on, off, strict=True))
        ratios.append(_ratio(f"speculation on / off, {name} target, one stream", on, off, floor))
        latencies += [
            _latency(f"{name}, off, one stream", off),
            _latency(f"{name}, on, one stream", on),
            _latency(f"{name}, off, {NUM_STREAMS} streams", eight),
        ]
        if name == "heavy":
            ratios += _beside_transformers(model, draft, prompts, on, off, eight)
        inside = _in_process(model, prompts)
        mismatches += sum(a.token_ids != b.token_ids for a, b in zip(inside, off, strict=True))
        if name == "heavy":
            ratios.append(_ratio("through gateway and gRPC / engine in process, off, one stream", off, inside, 0.9))
    return Report(ratios, latencies, mismatches)


async def _gateway(
    model: str, draft: str, prompts: Sequence[Sequence[int]]
) -> tuple[list[Measured], list[Measured], list[Measured]]:
    """Runs on and off in turns, each on a stack of its own, so that off has every core for the verifier."""
    on: list[Measured] = []
    off: list[Measured] = []
    eight: list[Measured] = []
    async with AsyncExitStack() as resources:
        clients = {}
        for mode, draft_model in ((True, draft), (False, None)):
            settings = StackSettings(model=model, draft_model=draft_model, dtype="bfloat16", log_level="WARNING")
            stack = await resources.enter_async_context(running_stack(settings))
            clients[mode] = await resources.enter_async_context(Client(stack.address()))
            await through_gateway(clients[mode], prompts[-1:], NUM_TOKENS, speculation=mode)
        for repeat in range(REPEATS):
            prompt = prompts[repeat : repeat + 1]
            on.append(await through_gateway(clients[True], prompt, NUM_TOKENS, speculation=True))
            off.append(await through_gateway(clients[False], prompt, NUM_TOKENS, speculation=False))
        eight = [await through_gateway(clients[False], prompts, NUM_TOKENS, speculation=False) for _ in range(3)]
    return on, off, eight


def _in_process(model: str, prompts: Sequence[Sequence[int]]) -> list[Measured]:
    engine = InProcess(EngineConfig(model, device=Device.CPU, dtype=Dtype.BFLOAT16, num_threads=os.cpu_count()))
    engine.generate(prompts[-1:], NUM_TOKENS)
    return [engine.generate(prompts[repeat : repeat + 1], NUM_TOKENS) for repeat in range(REPEATS)]


def _beside_transformers(
    model: str,
    draft: str,
    prompts: Sequence[Sequence[int]],
    on: list[Measured],
    off: list[Measured],
    eight: list[Measured],
) -> list[Ratio]:
    torch.set_num_threads(os.cpu_count() or 1)
    ratios: list[Ratio] = []
    for dtype, floors in ((torch.bfloat16, (1.5, 2.5, 1.3)), (torch.float32, (0.0, 0.0, 0.0))):
        peer = Transformers(model, dtype, draft)
        plain = [peer.generate(prompts[i : i + 1], NUM_TOKENS) for i in range(3)]
        assisted = [peer.generate(prompts[i : i + 1], NUM_TOKENS, assisted=True) for i in range(3)]
        label = str(dtype).removeprefix("torch.")
        ratios += [
            _ratio(f"off, heavy, one stream / transformers.generate in {label}", off, plain, floors[0]),
            _ratio(f"on, heavy, one stream / transformers assisted generation in {label}", on, assisted, floors[1]),
            _ratio(
                f"off, heavy, {NUM_STREAMS} streams / transformers.generate on a batch of {NUM_STREAMS} in {label}",
                eight,
                [peer.generate(prompts, NUM_TOKENS) for _ in range(2)],
                floors[2],
            ),
        ]
        del peer
        gc.collect()
    return ratios


def _ratio(name: str, ours: Sequence[Measured], others: Sequence[Measured], floor: float) -> Ratio:
    a, b = median(ours), median(others)
    return Ratio(name, a / b, floor, f"{a:.1f} / {b:.1f} tokens/s")


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
