"""`paceline demo`: an assistant answers live, with speculation and without, side by side in speed."""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import typer
from rich.table import Table

from paceline import Client, Message, PacelineError
from paceline.cli.serve import ENGINE, reach
from paceline.cli.terminal import fail, out
from paceline.v1.inference_pb2 import Delta

QUESTIONS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a Python function that says whether a number is prime.",
    "Give me five tips for learning a new language.",
)
"""Each is asked with speculation first: the other way round, an answer would be known by heart."""
_MAX_TOKENS = 128
_WARM_UP = ("Say hello.", 16)
_ACCEPTED = "green"
_OWN = "bold"


class Run(NamedTuple):
    """One measured answer."""

    token_ids: list[int]
    tokens_per_second: float
    """Behind the first token."""
    drafted: int
    accepted: int


class Asked(NamedTuple):
    """A question's answer both ways."""

    question: str
    on: Run
    off: Run

    @property
    def ratio(self) -> float:
        """What speculation gained."""
        return self.on.tokens_per_second / self.off.tokens_per_second

    @property
    def is_same(self) -> bool:
        """Whether both answers are the same, token for token."""
        return self.on.token_ids == self.off.token_ids


def demo() -> None:
    """Asks the assistant three questions, and shows what its draft is worth."""
    reach(ENGINE)
    from services.local.errors import LaunchError

    try:
        raise typer.Exit(asyncio.run(_demo()))
    except (LaunchError, PacelineError) as error:
        fail(str(error))


async def _demo() -> int:
    """Returns 0, or 1 when speculation changed an answer."""
    from services.local.launcher import running
    from services.local.pair import ASSISTANT, Pair, named
    from services.local.system import SystemSettings

    began = time.monotonic()
    model, draft = named(ASSISTANT)
    pair = Pair(model=model, draft=draft, threads=os.cpu_count() or 1, draft_threads=1)
    async with contextlib.AsyncExitStack() as resources:
        with out.status("starting draft, verifier and gateway"):
            launcher = await resources.enter_async_context(running(SystemSettings((pair,), log_level="WARNING")))
            client = await resources.enter_async_context(Client(launcher.address()))
        out.print(f"{model}, ready after {time.monotonic() - began:.0f} s\n", style="dim")
        return report(await ask_all(client))


async def ask_all(client: Client) -> list[Asked]:
    """Asks every question with speculation, live, and then without."""
    for speculation in (True, False):
        await _ask(client, _WARM_UP[0], speculation=speculation, max_tokens=_WARM_UP[1])
    asked: list[Asked] = []
    for question in QUESTIONS:
        out.rule(question, align="left")
        on = await _ask(client, question, speculation=True, is_shown=True)
        with out.status("the same without speculation"):
            off = await _ask(client, question, speculation=False)
        asked.append(Asked(question, on, off))
        out.print(f"\n\n{told(asked[-1])}\n", style="dim")
    out.print("green", style=_ACCEPTED, end="")
    out.print(" was proposed by the draft and accepted by the target, ", end="")
    out.print("bold", style=_OWN, end="")
    out.print(" is what the target decided itself\n")
    return asked


def told(asked: Asked) -> str:
    """What came of a question, in a line."""
    same = "the same words" if asked.is_same else "OTHER WORDS"
    speeds = f"{asked.on.tokens_per_second:.0f} tokens/s, without speculation {asked.off.tokens_per_second:.0f}"
    return f"{speeds}: {asked.ratio:.2f} times as fast, {same}"


async def _ask(
    client: Client, question: str, *, speculation: bool, max_tokens: int = _MAX_TOKENS, is_shown: bool = False
) -> Run:
    token_ids: list[int] = []
    usage = None
    messages: list[Message] = [{"role": "user", "content": question}]
    async for event in client.chat(messages, max_tokens=max_tokens, temperature=0, speculation=speculation):
        token_ids.extend(event.delta.token_ids)
        if is_shown:
            show(event.delta)
        if event.HasField("usage"):
            usage = event.usage
    if usage is None:
        raise RuntimeError("the stream ended without its usage")
    seconds = usage.total_seconds - usage.time_to_first_token_seconds
    speed = (len(token_ids) - 1) / seconds if seconds > 0 else 0.0
    return Run(token_ids, speed, usage.num_drafted_tokens, usage.num_accepted_tokens)


def show(delta: Delta) -> None:
    """Prints the text of a delta: what came with accepted tokens in one colour, the target's own in another."""
    accepted, own = delta.text[: delta.num_accepted_characters], delta.text[delta.num_accepted_characters :]
    if accepted:
        out.print(accepted, style=_ACCEPTED, end="")
    if own:
        out.print(own, style=_OWN, end="")


def report(asked: Sequence[Asked]) -> int:
    """Prints what answers came to, and what to type next. Returns 0, or 1 when some differ."""
    table = Table(box=None, title="Greedy, tokens a second behind the first", title_justify="left")
    table.add_column("question")
    for name in ("off", "on", "on / off", "accepted of proposed", "same words"):
        table.add_column(name, justify="right")
    for each in asked:
        share = f"{each.on.accepted / each.on.drafted:.0%}" if each.on.drafted else "-"
        speeds = (f"{run.tokens_per_second:.0f}" for run in (each.off, each.on))
        table.add_row(each.question, *speeds, f"{each.ratio:.2f}", share, "yes" if each.is_same else "NO")
    out.print(table)
    worth = statistics.median(each.ratio for each in asked)
    out.print(f"\nWith the draft, answers come {worth:.2f} times as fast as without.", highlight=False)
    out.print("Next: `paceline up` here, and `paceline chat` in another terminal.", highlight=False)
    return 0 if all(each.is_same for each in asked) else 1
