"""`paceline demo`: a completion, streamed, and then the same with speculation on and off, side by side."""

import statistics
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from gateway.client import Client
from gateway.launcher import StackSettings, running_stack

PROMPT = '''import os


class TemporaryFolder:
    """Create a folder, and remove it when it is no longer needed."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
'''
_SHOWN_TOKENS = 160
_MEASURED_TOKENS = 128
_REPEATS = 3


class Run(NamedTuple):
    """One measured completion."""

    token_ids: list[int]
    tokens_per_second: float
    drafted: int
    accepted: int


async def run_demo(settings: StackSettings, console: Console) -> int:
    """Returns 0, or 1 when speculation changed the output."""
    with console.status("starting draft, verifier and gateway"):
        stack_context = running_stack(settings)
        stack = await stack_context.__aenter__()
    try:
        async with Client(stack.address()) as client:
            await _show(client, console)
            runs: dict[bool, list[Run]] = {True: [], False: []}
            with console.status("measuring"):
                for _ in range(_REPEATS):
                    for speculation in (True, False):
                        runs[speculation].append(await _measure(client, speculation))
    finally:
        await stack_context.__aexit__(None, None, None)
    return _report(runs, console)


async def _show(client: Client, console: Console) -> None:
    console.print(PROMPT, end="", style="dim")
    async for event in client.generate(PROMPT, max_tokens=_SHOWN_TOKENS, temperature=0):
        console.print(event.delta.text, end="")
    console.print("\n")


async def _measure(client: Client, speculation: bool) -> Run:
    token_ids: list[int] = []
    usage = None
    events = client.generate(
        PROMPT, max_tokens=_MEASURED_TOKENS, temperature=0, ignore_eos=True, speculation=speculation
    )
    async for event in events:
        token_ids.extend(event.delta.token_ids)
        if event.HasField("usage"):
            usage = event.usage
    if usage is None:
        raise RuntimeError("the stream ended without its usage")
    seconds = usage.total_seconds - usage.time_to_first_token_seconds
    return Run(token_ids, (len(token_ids) - 1) / seconds, usage.num_drafted_tokens, usage.num_accepted_tokens)


def _report(runs: dict[bool, list[Run]], console: Console) -> int:
    on, off = (statistics.median(run.tokens_per_second for run in runs[mode]) for mode in (True, False))
    drafted = sum(run.drafted for run in runs[True])
    accepted = sum(run.accepted for run in runs[True])
    identical = len({tuple(run.token_ids) for mode in runs for run in runs[mode]}) == 1
    table = Table(title=f"{_MEASURED_TOKENS} tokens, greedy, median of {_REPEATS}", box=None, title_justify="left")
    table.add_column("speculation")
    table.add_column("tokens/s", justify="right")
    table.add_row("off", f"{off:.1f}")
    table.add_row("on", f"{on:.1f}")
    table.add_row("on / off", f"{on / off:.2f}")
    table.add_row("acceptance", f"{accepted / drafted:.0%}" if drafted else "nothing drafted")
    table.add_row("identical", "yes" if identical else "NO")
    console.print(table)
    return 0 if identical else 1
