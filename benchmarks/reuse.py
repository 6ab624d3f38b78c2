"""What the prefix cache saves: time to the first token with a prefix in the verifier, in the service, nowhere."""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from benchmarks import transfer
from benchmarks.heavy import build_heavy
from benchmarks.page import machine, table, write_page
from benchmarks.systems import through_gateway
from benchmarks.transfer import NAMESPACE, Transfer
from models.corpus import load_corpus
from paceline import Client
from services.common.tokens import TokenMint
from services.local.launcher import Launcher, running
from services.local.loading import wait_serving
from services.local.pair import Pair
from services.local.system import SystemSettings

PREFIX_TOKENS = 2000
_SUFFIX_TOKENS = 15
_BLOCK_TOKENS = 16
REPEATS = 5
_QUIET_TOKENS = 128
_NUM_STREAMS = 2
_MOVES = 3


class Measure(NamedTuple):
    """The median of ratios of neighbouring runs, and the bound that it has to keep."""

    name: str
    value: float
    bound: float
    at_least: bool
    detail: str

    @property
    def holds(self) -> bool:
        """Whether it keeps its bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


class Times(NamedTuple):
    """Seconds to the first token, one entry a run; entries at the same place were taken one after the other."""

    cold: list[float]
    without: list[float]
    in_verifier: list[float]
    cold_again: list[float]
    in_service: list[float]


def run(shipped: str, work_dir: Path) -> list[Measure]:
    """Measures everything. Takes some five minutes on two cores."""
    heavy = build_heavy(shipped, work_dir / "heavy")
    times, quiet, busy = asyncio.run(_measure(heavy, prefixes(shipped, 2 * REPEATS + 2)))
    moved = transfer.measure()
    return [
        _at_most("prefix in the verifier / cold", times.in_verifier, times.cold, 0.15),
        _at_most("verifier restarted, prefix in the service / cold", times.in_service, times.cold_again, 0.35),
        _at_most("no prefix in common: with the service / without it", times.cold, times.without, 1.05),
        _throughput(moved),
        _at_most("between tokens of two streams, while 1 GB is stored and fetched / quiet", busy, quiet, 1.2),
    ]


def write_reuse(measures: Sequence[Measure], folder: Path) -> Path:
    """Writes reuse.md into a folder and returns its path."""
    lines = [
        "# Prompts computed once",
        "",
        f"Written by `make bench`: {machine()}. Heavy target (see [speculation](speculation.md)), bfloat16, prompts of "
        f"{PREFIX_TOKENS} tokens that are shared and {_SUFFIX_TOKENS} that are not, time to the first token at the "
        f"client; medians of the ratios of {REPEATS} pairs. Blocks of {_BLOCK_TOKENS} tokens take 459 kB. The gigabyte "
        "is moved in blocks of 1 MB by another process, which gives way to the models as the cache does; medians of "
        f"{_MOVES} pairs.",
        "",
        *table(
            ("measure", "ratio", "bound", ""),
            [
                (m.name, f"**{m.value:.2f}**", f"at {'least' if m.at_least else 'most'} {m.bound:g}", m.detail)
                for m in measures
            ],
        ),
    ]
    return write_page(folder, "reuse", lines)


def prefixes(tokenizer_folder: str, count: int) -> list[list[int]]:
    """Different texts of PREFIX_TOKENS tokens from held-out files."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids: list[int] = []
    for document in load_corpus().held_out:
        ids += tokenizer(document.text[: 1 << 15])["input_ids"]
    if len(ids) < count * PREFIX_TOKENS:
        raise ValueError(f"the held-out files hold {len(ids)} tokens")
    return [ids[index * PREFIX_TOKENS : (index + 1) * PREFIX_TOKENS] for index in range(count)]


async def _measure(model: str, shared: Sequence[list[int]]) -> tuple[Times, list[float], list[float]]:
    times = Times([], [], [], [], [])
    async with AsyncExitStack() as resources:
        launchers, clients = [], []
        for prefix_cache in (True, False):
            pair = Pair(model=model, dtype="bfloat16")
            settings = SystemSettings((pair,), log_level="WARNING", prefix_cache=prefix_cache, restart=True)
            launchers.append(await resources.enter_async_context(running(settings)))
            clients.append(await resources.enter_async_context(Client(launchers[-1].address())))
        launcher, (client, plain) = launchers[0], clients
        for number, prefix in enumerate(shared[: 1 + REPEATS]):
            cold = await _first_token(client, prefix, 0, cached=False)
            await published(client, number + 1)
            without = await _first_token(plain, prefix, 0, cached=False)
            hit = await _first_token(client, prefix, 1, cached=True)
            if number:  # The first is to warm up.
                times.cold.append(cold)
                times.without.append(without)
                times.in_verifier.append(hit)
        await _restart_verifier(launcher)
        for number in range(1 + REPEATS):
            cold = await _first_token(client, shared[1 + REPEATS + number], 0, cached=False)
            fetched = await _first_token(client, shared[number], 2, cached=True)
            if number:
                times.cold_again.append(cold)
                times.in_service.append(fetched)
        quiet, busy = [], []
        texts = [prefix[:128] for prefix in shared[:_NUM_STREAMS]]
        for _ in range(_MOVES):
            quiet.append(statistics.median(await _gaps(client, texts)))
            busy.append(await _gaps_while_moving(launcher, client, texts))
    return times, quiet, busy


async def _first_token(client: Client, prefix: list[int], suffix: int, *, cached: bool) -> float:
    """Seconds to the first token behind a prefix and another end for each `suffix`."""
    prompt = prefix + [3 + suffix] * _SUFFIX_TOKENS
    started = time.perf_counter()
    seconds, reused = 0.0, 0
    async for event in client.generate(prompt, max_tokens=1, temperature=0, ignore_eos=True):
        if event.HasField("delta"):
            seconds = time.perf_counter() - started
        elif event.HasField("usage"):
            reused = event.usage.num_cached_tokens
    if reused != (PREFIX_TOKENS if cached else 0):
        raise RuntimeError(f"{reused} tokens were reused")
    return seconds


async def published(client: Client, num_prefixes: int) -> None:
    """Returns once the service has all blocks of so many prompts."""
    while True:
        found = await client.cache_statistics()
        if found.tiers[0].num_blocks >= num_prefixes * (PREFIX_TOKENS // _BLOCK_TOKENS):
            return
        await asyncio.sleep(0.05)


async def _restart_verifier(launcher: Launcher) -> None:
    process = launcher.children["verifier"]
    launcher.kill("verifier")
    await process.wait()
    await wait_serving(launcher.address("verifier"))


async def _gaps(client: Client, prompts: Sequence[Sequence[int]]) -> list[float]:
    return (await through_gateway(client, prompts, _QUIET_TOKENS, speculation=False)).gaps_seconds


async def _gaps_while_moving(launcher: Launcher, client: Client, prompts: Sequence[Sequence[int]]) -> float:
    """Median time between tokens from the beginning of a move to its end."""
    token = TokenMint(launcher.system.signing_key, 3600).sequence_token(NAMESPACE)
    arguments = [launcher.address("prefix-cache"), token]
    moving = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.transfer", *arguments)
    gaps: list[float] = []
    while moving.returncode is None:
        gaps += await _gaps(client, prompts)
    if moving.returncode:
        raise RuntimeError("the gigabyte was not moved")
    return statistics.median(gaps)


def _at_most(name: str, ours: Sequence[float], others: Sequence[float], bound: float) -> Measure:
    value = statistics.median(a / b for a, b in zip(ours, others, strict=True))
    detail = f"{1e3 * statistics.median(ours):.0f} / {1e3 * statistics.median(others):.0f} ms"
    return Measure(name, value, bound, at_least=False, detail=detail)


def _throughput(moved: Transfer) -> Measure:
    detail = f"{moved.fetched / 1e6:.0f} / {moved.raw / 1e6:.0f} MB/s"
    name = "fetch from memory, blocks of 1 MB / plain gRPC stream of bytes"
    return Measure(name, moved.ratio, 0.7, at_least=True, detail=detail)
