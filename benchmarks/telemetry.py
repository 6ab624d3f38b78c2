"""What telemetry costs: the same streams through a system that is traced and measured, and through one that is not."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from benchmarks.page import machine, table, write_page
from benchmarks.speculation import held_out_prompts
from benchmarks.systems import Measured, median, num_different, quartiles_of_pairs, through_gateway
from paceline import Client
from services.local.launcher import running
from services.local.pair import Pair
from services.local.ports import free_port
from services.local.system import SystemSettings

FLOOR = 0.97
TRACE_SHARE = 0.1
SCRAPE_SECONDS = 5.0
_NUM_TOKENS = 96
_STARTS, _REPEATS = 6, 20
"""Both systems are started so often, and run so often each time: one pair of runs differs from the next by far more
than what is looked for, and where a process lies in memory may decide on a percent for as long as it lives."""
_STREAMS = {1: 6, 16: 1}
"""Streams at once, and how often each time: a run of one is over in a fifth of a second."""
_WATCHED = ("gateway", "verifier", "draft")


class Cost(NamedTuple):
    """Tokens a second with telemetry and without, of so many streams at once."""

    num_streams: int
    watched: list[Measured]
    unwatched: list[Measured]

    @property
    def quartiles(self) -> list[float]:
        """Of the ratios of pairs of runs."""
        return quartiles_of_pairs(self.watched, self.unwatched)

    @property
    def ratio(self) -> float:
        """The median of them."""
        return self.quartiles[1]

    @property
    def holds(self) -> bool:
        """Whether it costs little, and no token."""
        return self.ratio >= FLOOR and not num_different(self.watched, self.unwatched)


class _Collector(grpc.GenericRpcHandler):
    """Takes whatever is exported, and answers with an empty message."""

    def service(self, _details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(_take)


async def _take(_request: bytes, _context: object) -> bytes:
    return b""


def run(target: str, draft: str) -> list[Cost]:
    """Measures everything, in a quarter of an hour on two cores."""
    return asyncio.run(_measure(target, draft))


def write_telemetry(costs: Sequence[Cost], folder: Path) -> Path:
    """Writes telemetry.md into a folder and returns its path."""
    lines = [
        "# What telemetry costs",
        "",
        f"Written by `make bench`: {machine()}. Shipped pair, always speculating, prompts of 128 tokens, {_NUM_TOKENS} "
        f"produced, prompt processing included. With telemetry {TRACE_SHARE:.0%} of the requests are traced, spans and "
        f"metrics of gateway, verifier and draft go to a collector by OTLP, and each is read by Prometheus every "
        f"{SCRAPE_SECONDS:g} s; who reads and collects runs on the same cores. Medians of the ratios of "
        f"{' and '.join(str(len(cost.watched)) for cost in costs)} pairs of runs in turns, of two "
        f"systems that stand beside each other, {_STARTS} times anew, either of them first.",
        "",
        *table(
            ("streams", "with / without, tokens/s", "bound", "middle half of the pairs", "with", "without"),
            [
                (
                    cost.num_streams,
                    f"**{cost.ratio:.3f}**{'' if cost.holds else ' (missed)'}",
                    f"at least {FLOOR:g}",
                    f"{cost.quartiles[0]:.2f} to {cost.quartiles[2]:.2f}",
                    f"{median(cost.watched):.0f} tokens/s",
                    f"{median(cost.unwatched):.0f} tokens/s",
                )
                for cost in costs
            ],
        ),
    ]
    return write_page(folder, "telemetry", lines)


async def _measure(target: str, draft: str) -> list[Cost]:
    pair = Pair(model=target, draft=draft, threads=1, draft_threads=1)
    prompts = cycle(held_out_prompts(target, 64))
    costs = [Cost(count, [], []) for count in _STREAMS]
    async with _collecting() as endpoint:
        for start in range(_STARTS):
            ports = {kind: free_port() for kind in _WATCHED}
            common = {"traces": "otlp", "trace_share": TRACE_SHARE, "metrics": "both", "otlp_endpoint": endpoint}
            telemetry = {kind: {**common, "prometheus_port": port} for kind, port in ports.items()}
            first, second = (telemetry, {}) if start % 2 else ({}, telemetry)
            async with _client(pair, first) as one, _client(pair, second) as other, asyncio.TaskGroup() as beside:
                reading = beside.create_task(_scrape(list(ports.values())))
                watched, unwatched = (one, other) if start % 2 else (other, one)
                await _compare(watched, unwatched, costs, prompts)
                reading.cancel()
    return costs


async def _compare(watched: Client, unwatched: Client, costs: Sequence[Cost], prompts: Iterator[Any]) -> None:
    """Runs of both in turns; the first warms all of it up."""
    for number in range(_REPEATS + 1):
        for cost in [one for one in costs for _ in range(_STREAMS[one.num_streams])]:
            mine = [next(prompts) for _ in range(cost.num_streams)]
            turns = [(watched, cost.watched), (unwatched, cost.unwatched)]
            for client, runs in turns if number % 2 else reversed(turns):
                measured = await through_gateway(client, mine, _NUM_TOKENS, speculation=True)
                if number:
                    runs.append(measured)


@asynccontextmanager
async def _client(pair: Pair, telemetry: Mapping[str, Mapping[str, Any]]) -> AsyncIterator[Client]:
    """A client of a system of its own."""
    overrides: dict[str, dict[str, Any]] = {kind: {"telemetry": own} for kind, own in telemetry.items()}
    overrides.setdefault("verifier", {}).update(speculation="always", verdict_file="")
    overrides.setdefault("gateway", {}).update(audit_share=0.0)
    settings = SystemSettings((pair,), log_level="WARNING", overrides=overrides)
    async with running(settings) as launcher, Client(launcher.address()) as client:
        yield client


@asynccontextmanager
async def _collecting() -> AsyncIterator[str]:
    """Address of a collector."""
    server = grpc.aio.server(handlers=[_Collector()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def _scrape(ports: Sequence[int]) -> None:
    """Reads processes as Prometheus does, again and again."""
    while True:
        for port in ports:
            await asyncio.to_thread(_read, f"http://127.0.0.1:{port}/metrics")
        await asyncio.sleep(SCRAPE_SECONDS)


def _read(url: str) -> None:
    with urllib.request.urlopen(url, timeout=10) as answer:
        answer.read()
