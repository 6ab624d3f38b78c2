"""`paceline demo`: texts with and without adapters, streamed, then speculation off and on, live and side by side."""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import typer
from rich.table import Table

from paceline import Client, PacelineError
from paceline.cli.serve import ENGINE, reach
from paceline.cli.terminal import fail, out
from paceline.v1.inference_pb2 import Delta

_STYLE_PROMPT = "class Counter:\n"
"""Says nothing of how code is to look: that is the adapters'."""
_STYLE_TOKENS = 56
_STYLE_TEMPERATURE = 0.6
_STYLE_SEED = 4
_COMPARED = (
    '''import os


class TemporaryFolder:
    """Create a folder, and remove it when it is no longer needed."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
''',
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
"""Each is asked once with speculation and once without: a text that was seen before would be known by heart. The first
is shown as it comes."""
_COMPARED_TOKENS = 64
_WARM_UP = "def main():\n"
_WARM_UP_TOKENS = 16
_ACCEPTED = "green"
_OWN = "bold"
_USUAL = "usual"


class Run(NamedTuple):
    """One measured completion."""

    token_ids: list[int]
    tokens_per_second: float
    """Behind the first token."""
    drafted: int
    accepted: int


def demo() -> None:
    """Starts everything, streams texts with and without adapters, and compares speculation on and off."""
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
    from services.local.usual import build_usual

    began = time.monotonic()
    async with contextlib.AsyncExitStack() as resources:
        folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="paceline-demo-"))
        with out.status("making a target of usual size, then starting drafts, verifiers and gateway"):
            usual = build_usual(Path(folder) / _USUAL)
            # One of the two is idle while the other works: each may have all cores.
            cores = os.cpu_count() or 1
            small = Pair(model=shipped_model("target"), threads=cores)
            pair = Pair(id=_USUAL, model=usual, draft=shipped_model("draft"), threads=cores, draft_threads=1)
            settings = SystemSettings((small, pair), adapter_store=True, log_level="WARNING")
            launcher = await resources.enter_async_context(running(settings))
            client = await resources.enter_async_context(Client(launcher.address()))
        out.print(f"ready after {time.monotonic() - began:.0f} s\n", style="dim")
        await _show_adapters(client, small.public_id, shipped_adapters())
        return report(await compare(client, _USUAL))


async def _show_adapters(client: Client, model: str, folders: Sequence[Path]) -> None:
    adapters = [await _upload(client, model, folder) for folder in folders]
    for adapter in ["", *adapters] if adapters else []:
        out.rule(f"with adapter {adapter}" if adapter else "a small model, without an adapter", align="left")
        out.print(_STYLE_PROMPT, end="", style="dim")
        events = client.generate(
            _STYLE_PROMPT,
            model=model,
            adapter=adapter,
            max_tokens=_STYLE_TOKENS,
            temperature=_STYLE_TEMPERATURE,
            seed=_STYLE_SEED,
            ignore_eos=True,
        )
        async for event in events:
            out.print(event.delta.text, end="")
        out.print("\n")


async def _upload(client: Client, model: str, folder: Path) -> str:
    return (await client.upload_adapter(folder, folder.name, model=model)).name


async def compare(client: Client, model: str) -> dict[bool, list[Run]]:
    """Shows a text without speculation and with it, and measures both ways on it and on others."""
    (size,) = (found.target.num_parameters for found in await client.list_models() if found.target.id == model)
    out.print(
        "What follows is on a target that was made a moment ago: it says what the small one says, at the cost of the "
        f"{size / 1e6:.0f} million parameters that it has.\n",
        style="dim",
    )
    await _run(client, model, _WARM_UP, speculation=True, num_tokens=_WARM_UP_TOKENS)
    await _run(client, model, _WARM_UP, speculation=False, num_tokens=_WARM_UP_TOKENS)
    runs: dict[bool, list[Run]] = {False: [], True: []}
    for speculation, done in runs.items():
        out.rule("with speculation" if speculation else "without speculation", align="left")
        out.print(_COMPARED[0], end="", style="dim")
        run = await _run(client, model, _COMPARED[0], speculation=speculation, is_shown=True)
        out.print(f"\n\n{run.tokens_per_second:.0f} tokens/s\n", style="dim")
        done.append(run)
    out.print("green", style=_ACCEPTED, end="")
    out.print(" was proposed by the draft and accepted by the target, ", end="")
    out.print("bold", style=_OWN, end="")
    out.print(" is what the target decided itself\n")
    with out.status("measuring on more texts"):
        for number, prompt in enumerate(_COMPARED[1:]):
            for speculation in (True, False) if number % 2 else (False, True):
                runs[speculation].append(await _run(client, model, prompt, speculation=speculation))
    return runs


async def _run(
    client: Client,
    model: str,
    prompt: str,
    *,
    speculation: bool,
    num_tokens: int = _COMPARED_TOKENS,
    is_shown: bool = False,
) -> Run:
    token_ids: list[int] = []
    usage = None
    events = client.generate(
        prompt, model=model, max_tokens=num_tokens, temperature=0, ignore_eos=True, speculation=speculation
    )
    async for event in events:
        token_ids.extend(event.delta.token_ids)
        if is_shown:
            show(event.delta)
        if event.HasField("usage"):
            usage = event.usage
    if usage is None:
        raise RuntimeError("the stream ended without its usage")
    seconds = usage.total_seconds - usage.time_to_first_token_seconds
    return Run(token_ids, (len(token_ids) - 1) / seconds, usage.num_drafted_tokens, usage.num_accepted_tokens)


def show(delta: Delta) -> None:
    """Prints the text of a delta: what came with accepted tokens in one colour, the target's own in another."""
    accepted, own = delta.text[: delta.num_accepted_characters], delta.text[delta.num_accepted_characters :]
    if accepted:
        out.print(accepted, style=_ACCEPTED, end="")
    if own:
        out.print(own, style=_OWN, end="")


def report(runs: dict[bool, list[Run]]) -> int:
    """Prints what runs came to. Returns 0, or 1 when outputs differ."""
    on, off = (statistics.median(run.tokens_per_second for run in runs[mode]) for mode in (True, False))
    ratio = statistics.median(
        a.tokens_per_second / b.tokens_per_second for a, b in zip(runs[True], runs[False], strict=True)
    )
    drafted = sum(run.drafted for run in runs[True])
    accepted = sum(run.accepted for run in runs[True])
    identical = all(a.token_ids == b.token_ids for a, b in zip(runs[True], runs[False], strict=True))
    title = f"{_COMPARED_TOKENS} tokens, greedy, median of {len(runs[True])} texts"
    table = Table(title=title, box=None, title_justify="left")
    table.add_column("speculation")
    table.add_column("tokens/s", justify="right")
    table.add_row("off", f"{off:.1f}")
    table.add_row("on", f"{on:.1f}")
    table.add_row("on / off", f"{ratio:.2f}")
    table.add_row("accepted of proposed", f"{accepted / drafted:.0%}" if drafted else "nothing proposed")
    table.add_row("identical", "yes" if identical else "NO")
    out.print(table)
    return 0 if identical else 1
