"""That nobody can hurt another: how long others wait, what is held afterwards, and what hung or idle ones hold up."""

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.crowded import NUM_PROMPTS, NUM_TIMES, PROMPT_BYTES, longest_health_wait
from benchmarks.page import machine, table, write_page
from benchmarks.steady import NUM_CLIENTS, memory_under_load
from benchmarks.stopped import NUM_STREAMS, seconds_until_elsewhere
from benchmarks.unread import NUM_PLACES, UNREAD_SECONDS, places_held

NUM_ATTACKS = 100_000
MINUTES = 6.0
"""How long the mixed load goes on; memory is looked at after a third of it, too."""
_ROOT = Path(__file__).resolve().parent.parent
_MOST_SHOWN = 8
_WAIT_SECONDS, _ELSEWHERE_SECONDS, _GATEWAY_MB, _GROWTH = 0.1, 13.0, 300.0, 1.05


class Measure(NamedTuple):
    """What was measured, in words, and the bound that it keeps or not."""

    name: str
    value: str
    bound: str
    holds: bool
    detail: str = ""


def run(target: str, draft: str, work_dir: Path, minutes: float = MINUTES) -> list[Measure]:
    """Measures everything. Takes some twenty-five minutes on two cores."""
    pieces: list[Callable[[], list[Measure]]] = [
        lambda: waits(target, work_dir),
        lambda: crowded(target),
        lambda: stopped(target),
        lambda: after_attacks(work_dir),
        lambda: steady(target, draft, minutes),
        lambda: unread(target),
    ]
    return [measure for piece in pieces for measure in piece()]


def waits(target: str, work_dir: Path) -> list[Measure]:
    """How long health checks and ListModels wait beside each single request of megabytes."""
    found = _attack(work_dir, "--alone", "--model", target)
    longest = found[0]
    rest = "; ".join(f"{wait['seconds'] * 1e3:.0f} ms beside {wait['beside']}" for wait in found[:_MOST_SHOWN])
    return [
        Measure(
            "longest wait of a health check or ListModels beside a single request",
            f"{longest['seconds'] * 1e3:.0f} ms",
            f"{_WAIT_SECONDS * 1e3:.0f} ms",
            longest["seconds"] <= _WAIT_SECONDS,
            f"{len(found)} requests, the worst: {rest}",
        )
    ]


def crowded(target: str) -> list[Measure]:
    """How long a health check waits while many long prompts are tokenized."""
    seconds = asyncio.run(longest_health_wait(target))
    name = f"longest wait of a health check while {NUM_PROMPTS} prompts of {PROMPT_BYTES >> 20} MiB are tokenized"
    bound = f"{_WAIT_SECONDS * 1e3:.0f} ms"
    return [
        Measure(
            name,
            f"{seconds * 1e3:.0f} ms",
            bound,
            seconds <= _WAIT_SECONDS,
            f"asked every 5 ms; median of {NUM_TIMES} times",
        )
    ]


def stopped(target: str) -> list[Measure]:
    """How long streams stand still whose verifier is stopped."""
    seconds = asyncio.run(seconds_until_elsewhere(target))
    name = "a stopped verifier (SIGSTOP), another there: until its streams go on"
    detail = f"the longest of {NUM_STREAMS} streams, all of them read to their ends"
    return [
        Measure(name, f"{seconds:.1f} s", f"{_ELSEWHERE_SECONDS:g} s", seconds <= _ELSEWHERE_SECONDS, detail),
    ]


def after_attacks(work_dir: Path, count: int = NUM_ATTACKS) -> list[Measure]:
    """What the gateway holds after attacks."""
    found = _attack(work_dir, "--count", str(count), "--seed", "1")
    # A process that has ended holds nothing; that it did is one of the faults.
    megabytes, faults = found["megabytes"].get("gateway", math.inf), found["faults"]
    return [
        Measure(
            f"memory of the gateway after {found['inputs']:,} attacks",
            f"{megabytes:.0f} MB",
            f"{_GATEWAY_MB:.0f} MB",
            megabytes <= _GATEWAY_MB,
        ),
        Measure(f"faults that {found['inputs']:,} attacks found", str(faults), "0", not faults),
    ]


def steady(target: str, draft: str, minutes: float = MINUTES) -> list[Measure]:
    """What processes hold after some time of mixed load, by what they held after a third of it."""
    grown = asyncio.run(memory_under_load(target, draft, minutes))
    return [
        Measure(
            f"memory of the {growth.process} after {minutes:g} minutes of mixed load / after {minutes / 3:g}",
            f"{growth.ratio:.3f}",
            f"{_GROWTH:g}",
            growth.ratio <= _GROWTH,
            f"{growth.late / 1e6:.0f} / {growth.early / 1e6:.0f} MB, {NUM_CLIENTS} clients",
        )
        for growth in grown
    ]


def unread(target: str) -> list[Measure]:
    """How many places clients hold that read nothing, once their time is over."""
    held = asyncio.run(places_held(target))
    name = f"places held by clients that read nothing, after {UNREAD_SECONDS:g} s"
    return [Measure(name, str(held), "0", not held, f"of {NUM_PLACES}, all taken by such clients")]


def write_attacks(measures: Sequence[Measure], folder: Path) -> Path:
    """Writes attacks.md into a folder and returns its path."""
    lines = [
        "# Nobody hurts another",
        "",
        f"Written by `make bench`: {machine()}. The pair that ships; attacks on a system of tiny models, a process of "
        "every kind. A single request is any that `make attack` makes of a field with megabytes, sent alone while "
        "health checks of all processes and ListModels are asked for every 5 ms by another process on the same cores. "
        "Each is sent three times, in turns, and its median counts.",
        "",
        *table(
            ("measure", "", "bound", ""),
            [
                (m.name, f"**{m.value}**" + ("" if m.holds else " (missed)"), f"at most {m.bound}", m.detail)
                for m in measures
            ],
        ),
    ]
    return write_page(folder, "attacks", lines)


def _attack(work_dir: Path, *arguments: str) -> Any:
    """The report of a run of tests/attacks, which is a program of its own."""
    work_dir.mkdir(parents=True, exist_ok=True)
    report = work_dir / "attacks.json"
    report.unlink(missing_ok=True)
    paths = os.pathsep.join((str(_ROOT), str(_ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "attacks", *arguments, "--report", str(report)]
    subprocess.run(command, check=False, cwd=_ROOT, env={**os.environ, "PYTHONPATH": paths})
    return json.loads(report.read_text())
