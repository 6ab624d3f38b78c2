"""`paceline demo`: a completion with and without adapters, streamed, then speculation on and off side by side."""

import asyncio
import contextlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import typer
from rich.table import Table

from paceline import Client, PacelineError
from paceline.cli.serve import ENGINE, reach
from paceline.cli.terminal import fail, out

PROMPT = '''import os


class TemporaryFolder:
    """Create a folder, and remove it when it is no longer needed."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
'''
_MEASURED = (
    '''import json


def read_settings(path, default=None):
    """Return the settings in a file, or the default when there is none."""
''',
    '''class Counter:
    """Count how often each item was seen."""

    def __init__(self, items=()):
''',
    '''import socket


def is_open(host, port, timeout=None):
    """Tell whether somebody listens on a port."""
''',
)
"""Each is asked once with speculation and once without: a text that was seen before would be known by heart."""
_SHOWN_TOKENS = 96
_SHOWN_TEMPERATURE = 0.6
_SHOWN_SEED = 4
_STYLE_PROMPT = "class Counter:\n"
"""Says nothing of how code is to look: that is the adapters'."""
_STYLE_TOKENS = 56
_MEASURED_TOKENS = 64


class Run(NamedTuple):
    """One measured completion."""

    token_ids: list[int]
    tokens_per_second: float
    drafted: int
    accepted: int


def demo() -> None:
    """Starts everything, streams completions with and without adapters, and compares speculation on and off."""
    reach(ENGINE)
    from services.local.errors import LaunchError

    try:
        raise typer.Exit(asyncio.run(_demo()))
    except (LaunchError, PacelineError) as error:
        fail(str(error))


async def _demo() -> int:
    """Returns 0, or 1 when speculation changed the output."""
    from services.local.launcher import running
    from services.local.pair import Pair, shipped_adapters, shipped_model
    from services.local.system import SystemSettings

    pair = Pair(model=shipped_model("target"), draft=shipped_model("draft"))
    async with contextlib.AsyncExitStack() as resources:
        with out.status("starting draft, verifier and gateway"):
            settings = SystemSettings((pair,), adapter_store=True, log_level="WARNING")
            launcher = await resources.enter_async_context(running(settings))
            client = await resources.enter_async_context(Client(launcher.address()))
        return _report(await _run(client, shipped_adapters()))


async def _run(client: Client, folders: Sequence[Path]) -> dict[bool, list[Run]]:
    """Shows texts, and measures with speculation and without."""
    await _show(client, PROMPT, "", _SHOWN_TOKENS)
    adapters = [await _upload(client, folder) for folder in folders]
    for adapter in ["", *adapters] if adapters else []:
        out.rule(f"with adapter {adapter}" if adapter else "without an adapter", align="left")
        await _show(client, _STYLE_PROMPT, adapter, _STYLE_TOKENS)
    runs: dict[bool, list[Run]] = {True: [], False: []}
    with out.status("measuring"):
        for prompt in _MEASURED:
            for speculation in (True, False):
                runs[speculation].append(await _measure(client, prompt, speculation))
    return runs


async def _upload(client: Client, folder: Path) -> str:
    return (await client.upload_adapter(folder, folder.name)).name


async def _show(client: Client, prompt: str, adapter: str, num_tokens: int) -> None:
    out.print(prompt, end="", style="dim")
    events = client.generate(
        prompt,
        adapter=adapter,
        max_tokens=num_tokens,
        temperature=_SHOWN_TEMPERATURE,
        seed=_SHOWN_SEED,
        ignore_eos=True,
    )
    async for event in events:
        out.print(event.delta.text, end="", markup=False, highlight=False)
    out.print("\n")


async def _measure(client: Client, prompt: str, speculation: bool) -> Run:
    token_ids: list[int] = []
    usage = None
    events = client.generate(
        prompt, max_tokens=_MEASURED_TOKENS, temperature=0, ignore_eos=True, speculation=speculation
    )
    async for event in events:
        token_ids.extend(event.delta.token_ids)
        if event.HasField("usage"):
            usage = event.usage
    if usage is None:
        raise RuntimeError("the stream ended without its usage")
    seconds = usage.total_seconds - usage.time_to_first_token_seconds
    return Run(token_ids, (len(token_ids) - 1) / seconds, usage.num_drafted_tokens, usage.num_accepted_tokens)


def _report(runs: dict[bool, list[Run]]) -> int:
    on, off = (statistics.median(run.tokens_per_second for run in runs[mode]) for mode in (True, False))
    drafted = sum(run.drafted for run in runs[True])
    accepted = sum(run.accepted for run in runs[True])
    identical = all(a.token_ids == b.token_ids for a, b in zip(runs[True], runs[False], strict=True))
    table = Table(
        title=f"{_MEASURED_TOKENS} tokens, greedy, median of {len(_MEASURED)} texts", box=None, title_justify="left"
    )
    table.add_column("speculation")
    table.add_column("tokens/s", justify="right")
    table.add_row("off", f"{off:.1f}")
    table.add_row("on", f"{on:.1f}")
    table.add_row("on / off", f"{on / off:.2f}")
    table.add_row("acceptance", f"{accepted / drafted:.0%}" if drafted else "nothing drafted")
    table.add_row("identical", "yes" if identical else "NO")
    out.print(table)
    return 0 if identical else 1
