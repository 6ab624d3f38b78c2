"""Whether any stream is moved whose verifier lives, under a load of all kinds that goes on for half an hour."""

import asyncio
import urllib.request
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.page import machine, table, write_page
from benchmarks.steady import ADAPTERS, NUM_CLIENTS, mixed_load
from benchmarks.two_verifiers import two_verifiers
from services.local.pair import Pair
from services.local.ports import free_port

MINUTES = 30.0
_ENDED, _MOVED = "paceline_request_ended_total", "paceline_request_failovers_total"


class Load(NamedTuple):
    """What became of the requests of a load."""

    minutes: float
    outcomes: dict[str, int]
    """Requests by how they ended."""
    num_moved: int
    """Streams that were opened again elsewhere."""

    @property
    def holds(self) -> bool:
        """Whether none was moved, and none failed."""
        return not self.num_moved and not self.outcomes.get("failed")


def run(target: str, draft: str, minutes: float = MINUTES) -> Load:
    """Measures for so long."""
    return asyncio.run(_run(target, draft, minutes))


async def _run(target: str, draft: str, minutes: float) -> Load:
    pair, port = Pair(model=target, draft=draft), free_port()
    watched = {"telemetry": {"metrics": "prometheus", "prometheus_port": port}}
    async with two_verifiers(pair, prefix_cache=True, adapter_store=True, gateway=watched) as verifiers:
        for name in ADAPTERS:
            await verifiers.client.upload_adapter(Path(target).parent / "adapters" / name, name)
        before = await _counts(port)
        load = [asyncio.create_task(mixed_load(verifiers.address, number)) for number in range(NUM_CLIENTS)]
        done, _ = await asyncio.wait(load, timeout=60 * minutes, return_when=asyncio.FIRST_COMPLETED)
        counts = await _counts(port) - before
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
        for task in done:
            await task  # Raises what ended it.
    moved = counts.pop(_MOVED, 0)
    return Load(minutes, dict(sorted(counts.items())), moved)


async def _counts(port: int) -> "Counter[str]":
    """Requests by outcome, and streams that were moved. Raises RuntimeError where the gateway counts neither."""
    text = await asyncio.to_thread(_read, port)
    found = Counter[str]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in (_ENDED, _MOVED):
                found[sample.labels.get("outcome", _MOVED)] += int(sample.value)
    if len(found) < 2 or _MOVED not in found:
        raise RuntimeError(f"the gateway says neither {_ENDED} nor {_MOVED}")
    return found


def _read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def write_moved(load: Load, folder: Path) -> Path:
    """Writes moved.md into a folder and returns its path."""
    lines = [
        "# Streams that are moved though their verifier lives",
        "",
        f"Written by `make bench`: {machine()}. Two verifiers, a draft, a prefix cache and an adapter store beside "
        f"each other, and {NUM_CLIENTS} clients for {load.minutes:g} minutes: texts and chats, long and short, with "
        "adapters, three answers at once, some of them left in their midst or refused. On so few cores everyone waits "
        "for everyone: what is looked for is a verifier that is taken for dead.",
        "",
        *table(("requests", "number"), [*load.outcomes.items(), ("in all", sum(load.outcomes.values()))]),
        f"Streams moved to another verifier: **{load.num_moved}**, at most 0.",
        "",
    ]
    return write_page(folder, "moved", lines)
